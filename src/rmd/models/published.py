"""Configurations of the text encoders and VAEs that published teachers share, for arithmetic that needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Part = tuple[str, Mapping[str, Any]]
"""The class of a network in diffusers or transformers, and the configuration that gives its size."""

_CLIP_L: Final[Mapping[str, Any]] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_CLIP_H: Final[Mapping[str, Any]] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
}  # fmt: skip
_CLIP_G: Final[Mapping[str, Any]] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280,
}  # fmt: skip
_T5: Final[Mapping[str, Any]] = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_LEVELS: Final[Mapping[str, Any]] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip

CLIP_L: Final[Part] = ("CLIPTextModel", _CLIP_L)
CLIP_L_POOLED: Final[Part] = ("CLIPTextModelWithProjection", _CLIP_L)
CLIP_H: Final[Part] = ("CLIPTextModel", _CLIP_H)
CLIP_G_POOLED: Final[Part] = ("CLIPTextModelWithProjection", _CLIP_G)
T5_XXL: Final[Part] = ("T5EncoderModel", {**_T5, "vocab_size": 32128})
UMT5_XXL: Final[Part] = ("UMT5EncoderModel", {**_T5, "vocab_size": 256384})
PICTURE_VAE: Final[Part] = ("AutoencoderKL", {**_LEVELS, "latent_channels": 4})
"""The VAE of Stable Diffusion 1.5 and 2.1, SDXL and PixArt."""
WIDE_VAE: Final[Part] = (
    "AutoencoderKL", {**_LEVELS, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
)  # fmt: skip
"""The VAE of Stable Diffusion 3 and 3.5 and FLUX.1, with 16 latent channels."""
WAN_VAE: Final[Part] = ("AutoencoderKLWan", {"base_dim": 96, "z_dim": 16})
