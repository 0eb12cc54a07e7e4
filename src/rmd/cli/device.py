"""Chooses the device on which a command computes, and prepares the CPU."""

from __future__ import annotations

import torch

from rmd.common.errors import RMDError, shown


def prepare_cpu(threads: int | None = None) -> None:
    """Set up the process for computing on a CPU. Call it before anything is computed.

    Denormal numbers are flushed to zero: sharp attention and decaying small weights produce many of them, and CPUs are
    slow with them. A thread inherits this mode from the one that starts it, so threads that already run keep theirs.

    Args:
        threads: the number of torch's threads; None: torch chooses it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def find_device(wanted: str | None, *, kinds: tuple[str, ...] = ("cpu", "cuda")) -> torch.device:
    """Return the device that the user wants, by default the first GPU, or else the CPU.

    Args:
        wanted: the name of the device, such as cuda:1; None: the default.
        kinds: the types of device on which the command can compute. Training excludes Apple's "mps", which has no
            float64 for the noise levels of the losses.

    Raises:
        RMDError: there is no such device, or the command cannot compute on it.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise RMDError(
            f"there is no device {shown(wanted)}: use {', '.join(kinds)}, or cuda:1 for a second GPU"
        ) from None
    if device.type not in kinds:
        raise RMDError(f"this command cannot compute on {device.type}: use {' or '.join(kinds)}")
    if device.type != "cuda" and device.index:
        raise RMDError(f"there is no {wanted}, only one {device.type}: use --device {device.type}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RMDError("torch finds no mps, the GPU of an Apple computer: use --device cpu")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RMDError(f"there is no {wanted}, since torch finds {count} GPUs: use --device cpu, or a torch with CUDA")
    return device
