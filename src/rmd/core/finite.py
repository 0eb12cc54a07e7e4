"""Checks that weights and samples are finite: a broken model makes black pictures without any error."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError


def is_finite(tensor: Tensor) -> Tensor:
    """Return whether no value is NaN or infinite, as a bool scalar that stays on the tensor's device."""
    # Minimum and maximum are NaN if any value is; they need no memory and are many times faster than `isfinite`.
    values = tensor if tensor.element_size() > 1 else tensor.float()
    return torch.stack(torch.aminmax(values.detach())).isfinite().all()


def check_tensors(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raise RMDError for tensors with NaN or infinite values; quantised, empty and data-less tensors are skipped.

    Args:
        tensors: names and tensors, on any devices; each device is synchronised once.
        where: what they belong to, for the error.

    Raises:
        RMDError: names the first such tensor.
    """
    flags: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        readable = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta"
        if readable and tensor.is_floating_point() and tensor.numel():
            flags.setdefault(tensor.device, []).append((name, is_finite(tensor)))
    for found in flags.values():
        finite = torch.stack([flag for _, flag in found]).tolist()
        if not all(finite):
            name = found[finite.index(False)][0]
            raise RMDError(f"{where}: the tensor {name} holds values that are not finite, so it can make no pictures")


def check_module(module: nn.Module, where: str) -> None:
    """Check what a module would save, its weights and persistent buffers, as `check_tensors` does."""
    state = module.state_dict(keep_vars=True)
    check_tensors(((name, value) for name, value in state.items() if isinstance(value, Tensor)), where)


def check_pictures(pictures: Tensor) -> None:
    """Raise RMDError unless the pictures that a VAE decoded are finite."""
    if not bool(is_finite(pictures)):
        raise RMDError(
            "the VAE gave values that are not finite: decode in float32 or bfloat16 if this is float16, and check the "
            "VAE's weights"
        )
