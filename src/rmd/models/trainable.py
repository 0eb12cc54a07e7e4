"""Checks that student and fake score can be made from a teacher's network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from rmd.common.errors import RMDError

_QUANTISING = ("torchao.", "optimum.", "bitsandbytes.")
"""Packages whose tensors report a floating-point dtype although they hold packed integers."""


def check_trainable(denoiser: nn.Module, mode: Literal["lora", "full"], targets: Sequence[str]) -> None:
    """Check that a teacher's network can be trained in a mode.

    Args:
        targets: name suffixes of the layers that would receive adapters.

    Raises:
        RMDError: it is compiled, already carries an adapter, or is quantised in a way that the mode cannot train.
    """
    if hasattr(denoiser, "_orig_mod"):
        raise RMDError(
            "the teacher's network is compiled (torch.compile), and adapters and copies need it as it was: give the "
            "pipeline before it is compiled"
        )
    carried = next((layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)), None)
    if carried is not None:
        names = ", ".join(sorted({str(name) for name in carried.active_adapters}))
        raise RMDError(
            f"the teacher's network carries an adapter ({names}): merge it with pipe.fuse_lora() and "
            "pipe.unload_lora_weights(), or leave it out"
        )
    quantised = next((name for name, p in denoiser.named_parameters() if _is_quantised(p)), None)
    if quantised is not None and mode == "full":
        raise RMDError(
            f"the teacher's weights are quantised ({quantised}), and roles.mode=full trains all of them: load it "
            "without quantisation, or set roles.mode to lora"
        )
    ends = tuple(f".{target}" for target in targets)
    if quantised is not None and f".{quantised.rpartition('.')[0]}".endswith(ends):
        layer: Any = denoiser.get_submodule(quantised.rpartition(".")[0])
        if type(layer) in (nn.Linear, nn.Conv2d) and not layer.weight.is_floating_point():
            raise RMDError(
                f"the teacher's weight {quantised} is stored as integers in an ordinary layer, which an adapter cannot "
                "compute with: quantise it with bitsandbytes, which has layers of its own, or not at all"
            )


def _is_quantised(parameter: nn.Parameter) -> bool:
    """Return whether a parameter holds packed numbers, instead of those that the network computes with."""
    kinds = (type(parameter), type(parameter.data))
    return not parameter.is_floating_point() or any(kind.__module__.startswith(_QUANTISING) for kind in kinds)
