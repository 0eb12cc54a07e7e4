"""PixArt-alpha and PixArt-Sigma transformers: T5 prompts with a mask, learned variance that distillation drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rmd.core.plan import Stage
from rmd.models.base import Backbone, Cond
from rmd.models.parts import check_channels, text_to
from rmd.models.registry import register

MAX_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Of a prompt, as the official pipelines have it; what fills shorter prompts up is masked."""


@register
class PixArtBackbone(Backbone):
    """PixArtAlphaPipeline and PixArtSigmaPipeline.

    PixArt-alpha at 1024 px is told a resolution and an aspect ratio: the stage's, or the final picture's. Sides are
    used as they are (the pipelines' `use_resolution_binning` has no part in this). Captions are lowered and stripped,
    not cleaned of HTML (`clean_caption=False`).
    """

    family = "pixart"
    pipeline_classes = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    denoiser_name = "transformer"
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("T5EncoderModel",),
    }
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds", "prompt_attention_mask": "mask"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    shard_classes = ("BasicTransformerBlock",)

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        check_channels("transformer", configs.get("transformer", {}), configs.get("vae"), {}, variance=True)

    @property
    def size_multiple(self) -> int:
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._tokens,
        )
        return Cond({"embeds": embeds, "mask": mask})

    def official_options(self, frames: int) -> dict[str, Any]:
        return {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": self._tokens}

    @property
    def _tokens(self) -> int:
        return int(min(MAX_TOKENS[type(self.pipe).__name__], self.pipe.tokenizer.model_max_length))

    def null(self, count: int) -> Cond:
        return self.encode([""]).expand(count)

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = int(self.pipe.vae_scale_factor)
        return (batch, int(self.pipe.transformer.config.in_channels), height // factor, width // factor)

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        embeds = cond.tensors["embeds"]
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.pipe.transformer.use_additional_conditions:
            told = final if self.conditioning.target == "final" else stage
            sides = torch.tensor([[told.height, told.width]], dtype=embeds.dtype, device=embeds.device)
            added["resolution"] = sides.expand(len(cond), -1)
            ratio = torch.tensor([[told.height / told.width]], dtype=embeds.dtype, device=embeds.device)
            added["aspect_ratio"] = ratio.expand(len(cond), -1)
        return {
            "encoder_hidden_states": embeds,
            "encoder_attention_mask": cond.tensors["mask"],
            "added_cond_kwargs": added,
        }

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        transformer: Any = network
        return transformer.transformer_blocks[len(transformer.transformer_blocks) // 2], int(
            transformer.config.num_attention_heads * transformer.config.attention_head_dim
        )

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = self.pipe.transformer.pos_embed.proj.weight.dtype
        given = text_to(kwargs, dtype)
        output: Tensor = module(x.to(dtype), timestep=timestep, return_dict=False, **given)[0]
        return output[:, : x.shape[1]]  # the other half, where there is one, is the learned variance
