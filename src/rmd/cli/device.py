"""Which device a command computes on, and how a CPU does."""

from __future__ import annotations

import torch

from rmd.common.errors import RMDError, shown


def prepare_cpu(threads: int | None = None) -> None:
    """Set up the whole process for computing on a CPU; to be called before anything is computed.

    Denormal numbers become zero: sharp attention and small weights under decay are full of them, and a CPU crawls
    through them. Threads take this over from the one that starts them, so it does not reach those that run already.

    Args:
        threads: of torch; by default its own choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def find_device(wanted: str | None, *, kinds: tuple[str, ...] = ("cpu", "cuda")) -> torch.device:
    """The wanted device, by default the first GPU or else the CPU.

    Args:
        kinds: what the command can compute on. Apple's "mps" has no float64, which the losses' noise levels are in.

    Raises:
        RMDError: there is no such device.
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
        raise RMDError("torch sees no mps here, the GPU of an Apple computer: use --device cpu")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise RMDError(f"there is no {wanted} here, torch sees {found} GPUs: use --device cpu, or a torch with CUDA")
    return device
