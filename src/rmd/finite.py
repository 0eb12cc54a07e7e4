"""Checks that weights and samples are finite: a model that has broken makes black pictures and says nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rmd.errors import RMDError


def is_finite(tensor: Tensor) -> Tensor:
    """Whether no value is NaN or infinite, as a bool scalar that stays on the tensor's device."""
    # the extremes are NaN where any value is, take no memory, and are found many times faster than `isfinite`
    values = tensor if tensor.element_size() > 1 else tensor.float()
    return torch.stack(torch.aminmax(values.detach())).isfinite().all()


def check_tensors(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse tensors that hold NaN or infinite values; quantised and empty ones and those without data pass.

    Args:
        tensors: names and tensors, on any devices; each device is waited for once.
        where: what they belong to, for the error.

    Raises:
        RMDError: the first such tensor is named.
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
    """As `check_tensors`, for what a module would save: its weights and persistent buffers."""
    state = module.state_dict(keep_vars=True)
    check_tensors(((name, value) for name, value in state.items() if isinstance(value, Tensor)), where)


def check_pictures(pictures: Tensor) -> None:
    """RMDError unless what a VAE decoded is finite."""
    if not bool(is_finite(pictures)):
        raise RMDError(
            "the VAE gave values that are not finite: decode in float32 or bfloat16 if this is float16, and check the "
            "VAE's weights"
        )
