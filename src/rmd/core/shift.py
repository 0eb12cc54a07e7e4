"""The flow shift of a grid of times, and shifts that depend on the size of a sample.

Larger pictures have more tokens, and need more noise to hide them. FLUX, Qwen-Image and LTX have shifts that grow with
their number. Their scheduler's configuration sets `use_dynamic_shifting` and gives two
numbers of tokens with a parameter mu for each. Between and beyond them, mu is linear in the number of tokens, and the
flow shift is exp(mu), or mu itself (`time_shift_type`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from rmd.common.errors import RMDError, one_of
from rmd.core.betas import number

MAX_TIME = 1000.0
"""The time of pure noise."""
TimeLike = TypeVar("TimeLike", float, Tensor)
KINDS = ("exponential", "linear")
"""Values of `time_shift_type`."""


@dataclass(frozen=True)
class DynamicShift:
    """The rule by which a teacher's flow shift follows from the size of a sample.

    Attributes:
        base_shift, max_shift: mu at `base_tokens` and at `max_tokens`.
        base_tokens, max_tokens: numbers of tokens.
        kind: "exponential" if the shift is exp(mu), "linear" if it is mu.
        token_side: side of a token in pixels.
        token_frames: frames of a clip for each latent frame.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: float = 256
    max_tokens: float = 4096
    kind: str = "exponential"
    token_side: int = 16
    token_frames: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, object], token_side: int, token_frames: int = 1) -> DynamicShift:
        """Read the rule from the configuration of a diffusers scheduler, with diffusers' defaults.

        Raises:
            RMDError: a value has the wrong type, or both numbers of tokens are the same.
        """
        rule = cls(
            base_shift=number(config, "base_shift", 0.5),
            max_shift=number(config, "max_shift", 1.15),
            base_tokens=number(config, "base_image_seq_len", 256),
            max_tokens=number(config, "max_image_seq_len", 4096),
            kind=one_of("time_shift_type of the scheduler", config.get("time_shift_type") or KINDS[0], KINDS),
            token_side=token_side,
            token_frames=token_frames,
        )
        if rule.base_tokens == rule.max_tokens:
            raise RMDError("the scheduler's base_image_seq_len and max_image_seq_len must differ")
        return rule

    def at(self, height: int, width: int, frames: int = 1) -> float:
        """Return the flow shift of a picture or clip with these sides in pixels.

        Raises:
            RMDError: the rule gives no positive shift at this size.
        """
        tokens = (height // self.token_side) * (width // self.token_side) * ((frames - 1) // self.token_frames + 1)
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        shift = math.exp(min(mu, 50.0)) if self.kind == "exponential" else mu
        if not shift > 0:
            raise RMDError(f"the scheduler's dynamic shift at {height}x{width} pixels is not positive, but {shift:g}")
        return shift


def shift_time(t: TimeLike, shift: float) -> TimeLike:
    """Return a time after the flow shift: sigma <- shift sigma / (1 + (shift - 1) sigma), with sigma = t / 1000.

    Args:
        t: times in [0, 1000].
        shift: positive; 1 changes nothing.
    """
    # In this form pure noise stays exactly pure noise, and a shift of 1 changes no bit.
    return t * (shift * MAX_TIME / (shift * t + (MAX_TIME - t)))
