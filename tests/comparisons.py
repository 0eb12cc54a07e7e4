"""Cell results with chosen numbers, for tests of what is made of them."""

from __future__ import annotations

from rmd.compare.cells import CellResult, Training
from rmd.evaluation.rows import Measured, Row


def measured(value: float, half: float | None = None, **parts: float) -> Measured:
    """Return a measured value with an interval of a half-width, and with the shares of its parts."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return Measured(value=value, low=low, high=high, parts=parts)


def row_of(
    name: str = "rmd", *, seconds: float = 0.02, speedup: float = 1.0, half: float = 0.1, **values: float
) -> Row:  # fmt: skip
    """Return a row with the still scenes' metrics, of which `values` replaces some and adds others.

    `half` is the half-width of the interval of the share of right samples.
    """
    usual = {
        "attributes": 0.5, "kernel_distance": 100.0, "kernel_distance_to_teacher": 10.0, "frechet_distance": 80.0,
        "high_frequency": 0.7, "diversity": 8.5,
    }  # fmt: skip
    halves = {"attributes": half, "kernel_distance": 20.0, "kernel_distance_to_teacher": 10.0}
    measures = {key: measured(value, halves.get(key)) for key, value in (usual | values).items()}
    measures["attributes"] = measures["attributes"].model_copy(update={"parts": {"layout": 1.0}})
    return Row(
        name=name, label=name, nfe=4.0, seconds_per_image=seconds, speedup=speedup, seconds_end_to_end=0.03,
        measures=measures,
    )  # fmt: skip


def result(
    attributes: float = 0.5, *, distance: float = 100.0, right: tuple[bool, ...] = (True, False), name: str = "rmd",
    training: Training | None = None, half: float = 0.1,
) -> CellResult:  # fmt: skip
    """Return a cell's result with a share of right samples and a kernel distance."""
    row = row_of(
        name, half=half, attributes=attributes, kernel_distance=distance, kernel_distance_to_teacher=distance / 10
    )
    return CellResult(row=row, right=right, prompts=("a red ball", "a blue star"), training=training)
