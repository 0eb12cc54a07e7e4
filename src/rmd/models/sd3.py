"""Stable Diffusion 3 and 3.5 (MMDiT): rectified flow, two CLIP encoders and an optional T5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.models.base import Backbone, Cond
from rmd.models.parts import check_channels, text_to
from rmd.models.registry import register

MAX_TOKENS = 256
"""That T5 reads of a prompt, as the official pipeline has it; its place is filled with zeros where it is left out."""


@register
class SD3Backbone(Backbone):
    """StableDiffusion3Pipeline; positions are cut from the middle of the model's own table, as it does itself.

    With `Conditioning.pos_rescale`, an experiment, those of the final size are spread over a low-resolution stage.
    """

    family = "sd3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    denoiser_name = "transformer"
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
    }
    optional_parts = ("text_encoder_3", "tokenizer_3")
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds", "pooled_prompt_embeds": "pooled"}
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    shard_classes = ("JointTransformerBlock",)

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        check_channels(
            "transformer", configs.get("transformer", {}), configs.get("vae"),
            {33: "an inpainting model, which is given a mask and the picture around it"},
        )  # fmt: skip

    @property
    def size_multiple(self) -> int:
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._tokens,
        )
        return Cond({"embeds": embeds, "pooled": pooled})

    def official_options(self, frames: int) -> dict[str, Any]:
        return {"max_sequence_length": self._tokens}

    @property
    def _tokens(self) -> int:
        tokenizer = self.pipe.tokenizer_3
        return MAX_TOKENS if tokenizer is None else int(min(MAX_TOKENS, tokenizer.model_max_length))

    def null(self, count: int) -> Cond:
        return self.encode([""]).expand(count)

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = int(self.pipe.vae_scale_factor)
        return (batch, int(self.pipe.transformer.config.in_channels), height // factor, width // factor)

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        limit = int(self.pipe.transformer.config.pos_embed_max_size) * self.size_multiple
        if max(stage.height, stage.width) > limit:
            raise RMDError(
                f"stage {stage.index} of {stage.size} pixels is larger than this model's positions reach: "
                f"choose sides of at most {limit}"
            )
        kwargs: dict[str, Any] = {
            "encoder_hidden_states": cond.tensors["embeds"], "pooled_projections": cond.tensors["pooled"]
        }  # fmt: skip
        if self.conditioning.pos_rescale:
            kwargs["positions"] = self.latent_shape(1, final.height, final.width)[-2:]
        return kwargs

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        transformer: Any = network
        return transformer.transformer_blocks[len(transformer.transformer_blocks) // 2], int(
            transformer.config.num_attention_heads * transformer.config.attention_head_dim
        )

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = self.pipe.transformer.pos_embed.proj.weight.dtype
        given = text_to({name: value for name, value in kwargs.items() if name != "positions"}, dtype)
        with _spread_positions(module, kwargs["positions"]) if "positions" in kwargs else nullcontext():
            output: Tensor = module(hidden_states=x.to(dtype), timestep=timestep, return_dict=False, **given)[0]
        return output


@contextmanager
def _spread_positions(module: nn.Module, final: tuple[int, int]) -> Iterator[None]:
    """Give a smaller picture the positions of one with latents of the `final` sides, interpolated."""
    embedding: Any = next(part for name, part in module.named_modules() if name.split(".")[-1] == "pos_embed")

    def replace(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        sides = inputs[0].shape[-2:]
        if tuple(sides) == tuple(final):
            return None
        patches = tuple(side // embedding.patch_size for side in final)
        whole = embedding.cropped_pos_embed(*final).unflatten(1, patches).movedim(-1, 1)
        small = tuple(side // embedding.patch_size for side in sides)
        spread = F.interpolate(whole.float(), size=small, mode="bilinear").flatten(2).transpose(1, 2)
        result: Tensor = (output + (spread - embedding.cropped_pos_embed(*sides))).to(output.dtype)
        return result

    handle = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
