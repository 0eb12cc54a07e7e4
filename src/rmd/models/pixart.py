"""PixArt-alpha and PixArt-Sigma: transformers on T5 prompts with a mask; their learned variance is not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rmd.core.plan import Stage
from rmd.models.base import Architecture, Backbone
from rmd.models.cond import Cond, text_to
from rmd.models.parts import check_channels, middle_block, working_dtype
from rmd.models.published import PICTURE_VAE, T5_XXL

MAX_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Tokens of an encoded prompt, as in the official pipelines; the padding of shorter prompts is masked."""
_CONFIG = {
    "sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": 8, "cross_attention_dim": 1152, "caption_channels": 4096, "patch_size": 2, "interpolation_scale": 2,
}  # fmt: skip

_PARTS = {"text_encoder": T5_XXL, "vae": PICTURE_VAE}


class PixArtBackbone(Backbone):
    """PixArtAlphaPipeline and PixArtSigmaPipeline.

    PixArt-alpha at 1024 px is given a resolution and an aspect ratio: those of the stage, or of the final picture.
    Sides are used as given, without the pipelines' `use_resolution_binning`. Captions are put in lower case and
    stripped, but HTML is not removed (`clean_caption=False`).
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
    runs_alone = True
    architectures: ClassVar[Mapping[str, Architecture]] = {
        "PixArt-alpha/PixArt-XL-2-1024-MS": Architecture(_CONFIG, text_length=120, parts=_PARTS),
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": Architecture(
            _CONFIG | {"use_additional_conditions": False}, text_length=300, parts=_PARTS
        ),
    }

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        check_channels("transformer", configs.get("transformer", {}), configs.get("vae"), {}, variance=True)

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        tokens = architecture.text_length
        return {"embeds": (tokens, architecture.config["caption_channels"]), "mask": (tokens,)}

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

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        embeds = cond.tensors["embeds"]
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.pipe.transformer.use_additional_conditions:
            size = final if self.conditioning.target == "final" else stage
            sides = torch.tensor([[size.height, size.width]], dtype=embeds.dtype, device=embeds.device)
            added["resolution"] = sides.expand(len(cond), -1)
            ratio = torch.tensor([[size.height / size.width]], dtype=embeds.dtype, device=embeds.device)
            added["aspect_ratio"] = ratio.expand(len(cond), -1)
        return {
            "encoder_hidden_states": embeds,
            "encoder_attention_mask": cond.tensors["mask"],
            "added_cond_kwargs": added,
        }

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        return middle_block(network)

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = working_dtype(module, self.pipe.transformer.pos_embed.proj.weight)
        given = text_to(kwargs, dtype)
        output: Tensor = module(x.to(dtype), timestep=timestep, return_dict=False, **given)[0]
        return output[:, : x.shape[1]]  # the other channels, if any, are the learned variance
