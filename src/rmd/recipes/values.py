"""Types of single settings, with bounds.

Settings that only count iterations may be large. A setting for which memory is allocated has a bound, so that a typing
error is refused at once instead of after minutes.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

TimeMap = Literal["raise", "vp", "lower", "none"]
Upsample = Literal["bilinear", "nearest", "bicubic"]
NoiseRule = Literal["plain", "corrected", "block"]
StepNoise = Literal["predicted", "fresh"]

MAX_SIDE = 65536
"""Longest side of an image in pixels."""
MAX_STAGES = 64
"""Largest number of stages in a plan."""

Count = Annotated[int, Field(gt=0, le=10**9)]
Whole = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(gt=0, le=4096)]
Many = Annotated[int, Field(gt=0, le=65536)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Rate = Annotated[float, Field(gt=0, le=1e12)]
Weight = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def parse_side(value: object) -> tuple[int, int]:
    """Return (height, width) in pixels from 512, [480, 832] or "480x832".

    Raises:
        ValueError: the value is none of these, or a side is longer than `MAX_SIDE`.
    """
    match value:
        case int() if not isinstance(value, bool):
            sides = value, value
        case [int(height), int(width)] if not (isinstance(height, bool) or isinstance(width, bool)):
            sides = height, width
        case str() if match := re.fullmatch(r"\s*([0-9]{1,9})(?:\s*[xX]\s*([0-9]{1,9}))?\s*", value):
            sides = int(match[1]), int(match[2] or match[1])
        case _:
            sides = 0, 0
    if min(sides) < 1:
        raise ValueError("should be a side in pixels (512), [height, width] or HEIGHTxWIDTH")
    if max(sides) > MAX_SIDE:
        raise ValueError(f"should be at most {MAX_SIDE} pixels")
    return sides


# Models are strict, but YAML has lists where they hold tuples.
Numbers = Annotated[tuple[float, ...], Field(strict=False, max_length=MAX_STAGES)]
Pair = Annotated[tuple[Decay, Decay], Field(strict=False)]
Side = Annotated[tuple[int, int], BeforeValidator(parse_side)]
Sides = Annotated[tuple[Side, ...], Field(strict=False, min_length=1, max_length=MAX_STAGES)]


def folder_name(text: str) -> str:
    """Return the text if it is a valid folder name; raise ValueError otherwise."""
    if "/" in text or "\\" in text or text in (".", ".."):
        raise ValueError("should be a name without slashes, because the run's folder is called so")
    return text
