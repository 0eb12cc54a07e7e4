"""The probe's summary and page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.core.metrics import Interval
from rmd.evaluation.probe import Probe, ProbeResult, Reading, Ring, StageProbe
from rmd.evaluation.trust import Matching, criteria
from rmd.recipes.schema import load_recipe
from rmd.report.curves import LIGHT
from rmd.report.probe import draw_rings, page, settings, summary, write_probe
from rmd.worlds.base import Measured

ONE = Measured(value=1.0, low=0.9, high=1.1)
FLAT = [Interval(1.0, 0.9, 1.1)] * 4


def result_of(matching: Matching = "own", *, stages: int = 1, judged: bool = True) -> ProbeResult:
    rings = [Ring(low=i / 4, high=(i + 1) / 4, power=ONE, recoded=ONE, coherence=ONE) for i in range(4)]
    loss = Measured(value=0.0, low=-0.3, high=0.3) if judged else None
    sizes = [f"{16 * 2**i}x{16 * 2**i}" for i in range(stages)]
    made = [
        StageProbe(
            size=size, rings=rings, difference=Measured(value=0.1),
            readings=[Reading(label="low <b>", measures={"attributes": Measured(value=0.5)}, distance=ONE)] * judged,
            loss=loss, upsamplers={"dct": 0.1, "taps": 0.05}, taps=(0.5, 0.5), bits=[(0.75, 0.007), (0.8, 0.004)],
            sigma=0.8, criteria=criteria(FLAT, FLAT, loss, 0.1), matching=matching,
        )
        for size in sizes
    ]  # fmt: skip
    probe = Probe(
        recipe="scenes", teacher="<teacher>", size="64x64", samples=6, seed=0, steps=3, guidance=3.0, judged=judged,
        stages=made, matching=matching, sigmas=[0.8], method="rmd", sides=["32", "64"], split=[2, 2],
        now=[(0.64, 0.016)], sampling=(2.5, 4), training={"own": 3.7, "mixed": 4.4, "teacher": 5.2},
    )  # fmt: skip
    pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    return ProbeResult(probe, ["a", "b"], {size: {"full": pictures, "low": pictures} for size in sizes})


def test_the_verdict_comes_first_and_names_the_settings() -> None:
    lines = summary(result_of().probe)
    assert lines[0] == "Trust:     The teacher's 16x16 can be trusted."
    assert any("method.matching=own" in line for line in lines) and any("sigma=[0.8]" in line for line in lines)
    assert any("repeat it with more --samples" in line for line in lines)


def test_a_low_resolution_that_later_steps_mend_is_not_called_right() -> None:
    probe = result_of().probe
    off = criteria([Interval(0.3, 0.2, 0.4)] * 4, FLAT, Measured(value=0.0), 0.7)
    stage = probe.stages[0].model_copy(update={"criteria": off})
    lines = summary(probe.model_copy(update={"stages": [stage]}))
    assert lines[0] == "Trust:     The teacher's 16x16 is wrong by itself, but the steps after the crossing mend it."
    assert (
        sum("does not decide" in line for line in lines) == 3
        and "finished samples" in lines[lines.index("Why, at 16x16:") + 1]
    )


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_a_summary_fits_on_a_screen(stages: int) -> None:
    assert len(summary(result_of(stages=stages).probe)) <= 19  # and the path of the page


def test_the_recommended_settings_are_accepted() -> None:
    words = shlex.split(settings(result_of().probe))
    recipe = load_recipe("scenes", [word for word in words if word != "--set"])
    plan = recipe.build_plan()
    assert recipe.method.model_dump()["matching"] == "own"
    assert [step.stage for step in plan.steps] == [1, 1, 2, 2] and 690 < plan.steps[2].teacher_time < 700


def test_without_a_judge_it_warns() -> None:
    result = result_of(judged=False)
    assert any("no judge" in line for line in summary(result.probe)) and "What the judge reads" not in page(result)


def test_a_page_is_self_contained_and_escapes_text() -> None:
    html = page(result_of("teacher"))
    assert "&lt;teacher&gt;" in html and "low &lt;b&gt;" in html
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', html)
    assert html.index("Verdict") < html.index("16x16 against 64x64") < html.index("What it costs")


def test_files_are_written_whole(tmp_path: Path) -> None:
    result = result_of()
    path = write_probe(result, tmp_path / "deep" / "probe")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert read_model(path.with_name("probe.json"), Probe) == result.probe
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RMDError, match="cannot write to"):
        write_probe(result, tmp_path / "file" / "probe")


def test_curves_are_valid_svg() -> None:
    rings = result_of().probe.stages[0].rings
    ElementTree.fromstring(draw_rings("power", rings, {"low": [ring.power for ring in rings]}, LIGHT))
