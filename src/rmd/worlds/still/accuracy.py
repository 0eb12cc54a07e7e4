"""Attribute accuracy of judged pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.metrics import Interval, wilson
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, NONE


@dataclass(frozen=True)
class Accuracy:
    """`all_right`: share of samples with every requested attribute right. `by_name`: the same for each attribute."""

    all_right: Interval
    by_name: Mapping[str, float]


def accuracy(right: Tensor, attributes: Tensor) -> Accuracy:
    """Return the attribute accuracy of judged samples; the share with all right has Wilson's 95 % interval.

    Args:
        right: (n, 9) bool, whether each attribute is right, as `Judge.assess` returns it.
        attributes: (n, 9) ground truth, `NONE` where a scene has no such attribute. Such entries do not count, and
            an attribute that no scene has is left out of `by_name`.

    Raises:
        RMDError: the shapes differ, or there is no sample.
    """
    count = len(attributes)
    if count == 0 or right.shape != attributes.shape or right.shape != (count, len(ATTRIBUTE_NAMES)):
        raise RMDError(
            f"expected two tables of {len(ATTRIBUTE_NAMES)} attributes per sample, got the shapes "
            f"{tuple(right.shape)} and {tuple(attributes.shape)}"
        )
    asked = attributes != NONE
    whole = (right | ~asked).all(1)
    counts = zip(ATTRIBUTE_NAMES, (right & asked).sum(0).tolist(), asked.sum(0).tolist(), strict=True)
    return Accuracy(
        all_right=wilson(int(whole.sum()), count),
        by_name={name: hits / total for name, hits, total in counts if total},
    )
