"""Stable Diffusion 3 and 3.5 (MMDiT): rectified flow, two CLIP encoders and an optional T5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.models.base import Architecture, Backbone
from rmd.models.cond import Cond, text_to
from rmd.models.parts import check_channels, middle_block, working_dtype
from rmd.models.published import CLIP_G_POOLED, CLIP_L_POOLED, T5_XXL, WIDE_VAE

MAX_TOKENS = 256
"""Tokens of a prompt that T5 reads, as in the official pipeline; without T5, zeros take their place."""


class SD3Backbone(Backbone):
    """StableDiffusion3Pipeline. Positions are cut out of the middle of the model's table, as the model itself does.

    With `Conditioning.pos_rescale`, an experiment, a low-resolution stage gets the positions of the final size,
    interpolated.
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
    rescales_positions = True
    runs_alone = True
    shard_classes = ("JointTransformerBlock",)
    architectures: ClassVar[Mapping[str, Architecture]] = {
        "stabilityai/stable-diffusion-3.5-medium": Architecture(
            {
                "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
                "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
                "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
            },
            text_length=333,
            parts={
                "text_encoder": CLIP_L_POOLED, "text_encoder_2": CLIP_G_POOLED, "text_encoder_3": T5_XXL,
                "vae": WIDE_VAE,
            },
        ),
    }  # fmt: skip

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        check_channels(
            "transformer", configs.get("transformer", {}), configs.get("vae"),
            {33: "an inpainting model, which is given a mask and the picture around it"},
        )  # fmt: skip

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        config = architecture.config
        return {
            "embeds": (architecture.text_length, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

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
        return middle_block(network)

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = working_dtype(module, self.pipe.transformer.pos_embed.proj.weight)
        given = text_to({name: value for name, value in kwargs.items() if name != "positions"}, dtype)
        with _spread_positions(module, kwargs["positions"]) if "positions" in kwargs else nullcontext():
            output: Tensor = module(hidden_states=x.to(dtype), timestep=timestep, return_dict=False, **given)[0]
        return output


@contextmanager
def _spread_positions(module: nn.Module, final: tuple[int, int]) -> Iterator[None]:
    """Make the network give smaller latents the positions of latents with the sides `final`, interpolated."""
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
