"""Checks for NaN and infinite values in weights, predictions and pictures.

A single such value in a model spreads through everything that it computes, and the result is a black picture without
any error. These checks turn it into an error that names the tensor.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError


def is_finite(tensor: Tensor) -> Tensor:
    """Return whether all values of a tensor are finite, as a boolean scalar on the tensor's device (no GPU sync)."""
    # The minimum and maximum are NaN if any value is. They allocate no memory, unlike `isfinite`, and are much faster.
    values = tensor if tensor.element_size() > 1 else tensor.float()
    return torch.stack(torch.aminmax(values.detach())).isfinite().all()


def check_tensors(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Check that tensors are finite; quantised tensors, and those that are empty or on the meta device, are skipped.

    Args:
        tensors: pairs of a name and a tensor, on any devices. There is one sync per device.
        where: what the tensors belong to, for the error message.

    Raises:
        RMDError: a tensor holds NaN or infinite values; the message names one.
    """
    flags: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        readable = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta"
        if readable and tensor.is_floating_point() and tensor.numel():
            flags.setdefault(tensor.device, []).append((name, is_finite(tensor)))
    for named_flags in flags.values():
        finite = torch.stack([flag for _, flag in named_flags]).tolist()
        if not all(finite):
            name = named_flags[finite.index(False)][0]
            raise RMDError(
                f"{where}: the tensor {name} holds values that are not finite, so the model cannot work: "
                "load intact weights"
            )


def check_module(module: nn.Module, where: str) -> None:
    """Check the state dict of a module, its weights and persistent buffers, as `check_tensors` does."""
    state = module.state_dict(keep_vars=True)
    check_tensors(((name, value) for name, value in state.items() if isinstance(value, Tensor)), where)


def check_pictures(pictures: Tensor) -> None:
    """Raise RMDError unless pictures that a VAE decoded are finite."""
    if not bool(is_finite(pictures)):
        raise RMDError(
            "the VAE returned values that are not finite: decode in float32 or bfloat16 instead of float16, and check "
            "the VAE's weights"
        )
