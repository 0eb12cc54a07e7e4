"""Checks and helpers for a pipeline's parts that the backbones of all families share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError, integer, shown


def latent_rules(vae: Any, device: torch.device) -> tuple[float, Tensor | float, Tensor | float, Tensor | float]:
    """Return the scale, mean, standard deviation and shift of a VAE's latents, as far as its config has them.

    A VAE's own latents are `latents / scale * std + mean + shift`.
    """
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    shift = getattr(config, "shift_factor", None) or 0.0
    if mean is None or std is None:
        return config.scaling_factor, 0.0, 1.0, shift
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    return config.scaling_factor, mean, std, shift


@contextmanager
def upcast(vae: Any) -> Iterator[None]:
    """Run a float16 VAE that would overflow in float32 for the duration of the block."""
    needed = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if needed:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if needed:
            vae.to(torch.float16)


def check_tokenizers(parts: Mapping[str, Any]) -> None:
    """Check that a pipeline's tokenizers produce no more tokens than its text encoders accept.

    Args:
        parts: the pipeline's parts by name; `tokenizer_2` belongs to `text_encoder_2`.

    Raises:
        RMDError: a tokenizer's model_max_length is not a positive number, or exceeds the positions of its encoder.
    """
    for name, tokenizer in parts.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        longest = tokenizer.model_max_length
        if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
            raise RMDError(f"model_max_length of the {name} should be a positive number, but is {shown(longest)}")
        config = getattr(parts.get(name.replace("tokenizer", "text_encoder")), "config", None)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(config, key, None)
            for each in token if isinstance(token, list) and token else [token]:  # some encoders have several ends
                if each is not None:
                    integer(f"{key} of the text encoder that goes with the {name}", each)
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and longest > positions:
            raise RMDError(
                f"the {name} gives up to {longest:.6g} tokens (model_max_length), but its text encoder reads "
                f"{positions}: their files belong to different models"
            )


def check_channels(
    what: str,
    network: Mapping[str, Any],
    vae: Mapping[str, Any] | None,
    others: Mapping[int, str],
    *,
    variance: bool = False,
    packed: int = 1,
) -> None:
    """Check by its configuration that a denoiser maps latents to latents, without further input or output channels.

    Args:
        what: the name of the denoiser in error messages.
        vae: the VAE's configuration; None if the pipeline has no VAE.
        others: the kinds of model that other numbers of input channels indicate.
        variance: whether the denoiser may also predict a variance, which doubles the output channels.
        packed: latent pixels whose channels are put together for the denoiser.

    Raises:
        RMDError: the number of input or output channels is not that of the latents.
    """
    taken, given = number(network, "in_channels"), number(network, "out_channels")
    latents = None if vae is None else number(vae, "latent_channels") or number(vae, "z_dim")
    if taken is None:
        return
    latents = None if latents is None else latents * packed
    if taken in others and taken != latents:
        raise RMDError(
            f"this {what} has {taken} input channels: it is {others[taken]}. RMD distils models that are given a "
            "prompt and nothing else: give the family's text-to-image or text-to-video model"
        )
    if latents is not None and taken != latents:
        raise RMDError(
            f"this {what} has {taken} input channels and the latents of its VAE have {latents}: it takes further "
            "inputs, or belongs to another VAE. RMD distils models that are given a prompt and nothing else"
        )
    if given not in (None, taken) and not (variance and given == 2 * taken):
        raise RMDError(
            f"this {what} has {taken} input channels and {given} output channels: RMD needs a network that predicts "
            "one number for each number of the latents"
        )


def middle_block(transformer: Any) -> tuple[nn.Module, int]:
    """Return the block in the middle of a diffusers transformer, and the number of channels of its output."""
    blocks, config = transformer.transformer_blocks, transformer.config
    return blocks[len(blocks) // 2], int(config.num_attention_heads * config.attention_head_dim)


def working_dtype(network: Any, weight: Tensor) -> torch.dtype:
    """Return the precision in which a network computes.

    It is that of a weight that every family's network has outside of its blocks, unless weights are stored in a type
    without arithmetic, as diffusers' layerwise casting does; then the network is asked, which visits all its modules.
    """
    computes = weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    dtype: torch.dtype = weight.dtype if computes else getattr(network, "_orig_mod", network).dtype
    return dtype


def number(config: Mapping[str, Any], key: str) -> int | None:
    """Return an integer of a configuration, or None if it is absent or null; raise RMDError if it is anything else."""
    value = config.get(key)
    return None if value is None else integer(f"the configuration's {key}", value)
