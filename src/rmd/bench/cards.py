"""GPUs by the memory that they are sold with, and how much of it a run can use."""

from __future__ import annotations

from dataclasses import dataclass

USABLE = 0.93
"""Share of a card's memory in GiB that torch reports; the driver and error correction keep the rest."""
SIZES = (12, 16, 24, 32, 40, 48, 80, 96, 141, 180)
"""Memory of the cards that are sold, in GB as the makers count."""


@dataclass(frozen=True)
class Card:
    """A kind of GPU."""

    name: str
    gb: int
    """Memory, in GB as the maker counts."""
    tflops: float
    """Dense multiplications and additions in bfloat16, summed in float32, in 10^12 per second, by the maker's data."""


CARDS = (
    Card("RTX 4090", 24, 165.2),
    Card("L40S", 48, 362.0),
    Card("A100", 80, 312.0),
    Card("H100", 80, 989.4),
    Card("H200", 141, 989.4),
)
"""Cards for which `rmd bench hours` computes how long runs take."""


def usable_bytes(gb: float) -> float:
    """Return the bytes that a run can use on a card that is sold with `gb` GB."""
    return USABLE * gb * 2**30


def smallest_card(needed: float) -> int | None:
    """Return the memory of the smallest card with `needed` usable bytes, in GB; None if there is no such card."""
    return next((gb for gb in SIZES if usable_bytes(gb) >= needed), None)
