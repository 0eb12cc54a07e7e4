"""The page on the probe has the numbers of the runs that are stored beside the findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd.common.files import read_model
from rmd.evaluation.probe import Probe
from rmd.evaluation.trust import verdict

DOCS = Path(__file__).parents[3] / "docs"
RUNS = {
    "SDXL type, 32 px": "scenes",
    "SD3 type, 32 px": "scenes-sd3",
    "PixArt type, 32 px": "scenes-pixart",
    "SDXL type, 16 px": "scenes-16",
}


def read(name: str) -> Probe:
    return read_model(DOCS / "findings" / "probes" / f"{name}.json", Probe)


@pytest.mark.parametrize("label", RUNS)
def test_the_table_has_the_loss_and_the_verdict_of_every_run(label: str) -> None:
    probe, text = read(RUNS[label]), (DOCS / "probe.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    loss, said = (cell.strip() for cell in row.split("|")[2:4])
    (stage,) = probe.stages
    assert stage.loss is not None and (probe.samples, probe.steps) == (24, 25)
    assert loss == f"{100 * stage.loss.value:.0f} %" and said == f"`{probe.matching}`"
    assert probe.matching == verdict(stage.criteria)


def test_what_the_page_says_about_16_px() -> None:
    (stage,), text = read("scenes-16").stages, (DOCS / "probe.md").read_text(encoding="utf-8")
    loss, unseen, power, coherence = stage.criteria
    assert [row.decides for row in stage.criteria] == [True, False, False, False]
    share, ratio = unseen.measured.removesuffix("%"), float(power.measured)
    assert f"the teacher is wrong in {share} % of the attributes" in text
    assert f"off by a factor of {max(ratio, 1 / ratio):.1f}" in " ".join(text.split())
    assert unseen.speaks_for == power.speaks_for == "teacher" and coherence.speaks_for == "mixed"
    assert loss.speaks_for == "own" and f"lies at {stage.sigma:.2f}".replace("0.", ".") in text
