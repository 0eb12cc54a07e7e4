"""FLUX.1: a diffusion transformer on packed latents, rectified flow, CLIP's pooled text and T5's tokens.

FLUX.1-dev was distilled from a guided model and takes the scale of that guidance as an input
(`conditioning.embedded_guidance`); a recipe's `method.guidance` of 1 leaves it at that. FLUX.1-schnell takes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rmd.core.plan import Stage
from rmd.models.base import Architecture
from rmd.models.cond import Cond, text_to
from rmd.models.packed import PIXELS, PackedBackbone, pack, places, unpack
from rmd.models.parts import check_channels, middle_block, working_dtype
from rmd.models.published import CLIP_L, T5_XXL, WIDE_VAE

MAX_TOKENS = 512
"""Tokens of a prompt that T5 reads, as in the official pipeline."""
_OTHER_INPUTS = {
    128: "FLUX.1 Canny or Depth, which is given a picture of edges or of depths",
    384: "FLUX.1 Fill, which is given a mask and the picture around it",
}
"""Kinds of transformer by their number of input channels."""


class FluxBackbone(PackedBackbone):
    """FluxPipeline. Prompts are padded to the same length, as in training, and positions start at the top left."""

    family = "flux"
    pipeline_classes = ("FluxPipeline",)
    denoiser_name = "transformer"
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
    }
    optional_parts = ("image_encoder", "feature_extractor")
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds", "pooled_prompt_embeds": "pooled"}
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_mlp",
        "proj_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    shard_classes = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    architectures: ClassVar[Mapping[str, Architecture]] = {
        "black-forest-labs/FLUX.1-dev": Architecture(
            {
                "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
                "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
                "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
            },
            text_length=MAX_TOKENS,
            parts={"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": WIDE_VAE},
        ),
    }  # fmt: skip

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        check_channels("transformer", configs.get("transformer", {}), configs.get("vae"), _OTHER_INPUTS, packed=PIXELS)

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        config = architecture.config
        return {
            "embeds": (architecture.text_length, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, device=self.device, max_sequence_length=self._tokens
        )
        return Cond({"embeds": embeds, "pooled": pooled})

    @property
    def _tokens(self) -> int:
        return int(min(MAX_TOKENS, self.pipe.tokenizer_2.model_max_length))

    def official_options(self, frames: int) -> dict[str, Any]:
        return {"max_sequence_length": self._tokens}

    def official_guidance(self, guidance: float) -> dict[str, Any]:
        embedded = {"guidance_scale": self.conditioning.embedded_guidance}
        return embedded if guidance == 1.0 else {**embedded, "true_cfg_scale": guidance, "negative_prompt": ""}

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        scale = self.conditioning.embedded_guidance if self.pipe.transformer.config.guidance_embeds else None
        return {
            "encoder_hidden_states": cond.tensors["embeds"],
            "pooled_projections": cond.tensors["pooled"],
            "guidance": None if scale is None else torch.full((len(cond),), scale, device=self.device),
        }

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        return middle_block(network)

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = working_dtype(module, self.pipe.transformer.x_embedder.weight)
        given = text_to(kwargs, dtype)
        rows = places(x).to(dtype)
        words = rows.new_zeros(given["encoder_hidden_states"].shape[1], 3)
        output: Tensor = module(
            hidden_states=pack(x.to(dtype)), timestep=timestep / 1000, img_ids=rows, txt_ids=words,
            return_dict=False, **given,
        )[0]  # fmt: skip
        return unpack(output, x.shape)
