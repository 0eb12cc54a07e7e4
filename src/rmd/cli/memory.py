"""The lines in which commands print how much memory training needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmd.bench.memory import Memory


def memory_lines(needed: Memory) -> list[str]:
    """Return the estimate by part in GB, with the phases of which only the largest counts, and the total."""
    from rmd.bench.memory import SLACK

    rows = [(part.bytes, part.name) for part in needed.parts]
    rows.append((needed.peak.bytes, f"{needed.peak.name}, at its largest moment"))
    rows.append((SLACK, "CUDA and what its allocator cannot use (assumed)"))
    rows.append((needed.total, "in total"))
    lines = [f"  {size / 1e9:8.2f} GB  {name}" for size, name in rows]
    others = [f"{phase.name} {phase.bytes / 1e9:.2f}" for phase in needed.phases if phase is not needed.peak]
    return [*lines, f"  At other moments, less is needed: {', '.join(others)}."] if others else lines


def at_once(samples: float) -> str:
    """Return how many samples a GPU computes at once: `4 samples at once`, `a quarter of a sample` as `1/4 sample`."""
    if samples < 1:
        return f"1/{round(1 / samples)} of a sample at once"
    return "1 sample at once" if samples == 1 else f"{samples:g} samples at once"
