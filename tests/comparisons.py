"""Results of cells that were not computed, for what is made of them."""

from __future__ import annotations

from rmd.compare.cells import CellResult, Training
from rmd.evaluate.rows import Row


def result(
    attributes: float = 0.5, *, distance: float = 100.0, right: tuple[bool, ...] = (True, False), name: str = "rmd",
    training: Training | None = None,
) -> CellResult:  # fmt: skip
    """A cell whose other numbers follow from these."""
    row = Row(
        name=name, label=name, nfe=4.0, seconds_per_image=0.02, speedup=1.0, seconds_end_to_end=0.03,
        attributes=attributes, attributes_ci=(attributes - 0.1, attributes + 0.1),
        attributes_by_name={"layout": 1.0}, kernel_distance=distance,
        kernel_distance_ci=(distance - 20, distance + 20), kernel_distance_to_teacher=distance / 10,
        kernel_distance_to_teacher_ci=(0.0, distance / 5), frechet_distance=80.0, high_frequency=0.7, diversity=8.5,
    )  # fmt: skip
    return CellResult(row=row, right=right, prompts=("a red ball", "a blue star"), training=training)
