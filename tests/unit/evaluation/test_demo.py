"""The demo: its targets and baseline, and on tiny parts every row of every world; the whole demo runs in tests/e2e."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import row_of
from families import TINY, recipe_of
from helpers import PROMPTS, write_prompts
from PIL import Image

from research.scenes.families import FAMILIES
from research.scenes.moving.build import (
    build_clip_references,
    build_clip_teacher,
    build_clip_vae_weights,
    build_frame_judge,
)
from research.scenes.record import Data
from research.scenes.teacher import Curriculum
from research.scenes.vae import build_vae
from rmd.common.errors import RMDError
from rmd.core.fit import Side
from rmd.evaluation import demo
from rmd.evaluation.demo import check_targets, run_demo, tdm_recipe, timed_together
from rmd.evaluation.rows import Report, Row
from rmd.evaluation.versions import versions
from rmd.models import Backbone
from rmd.recipes.schema import load_recipe
from rmd.report.demo import write_demo
from rmd.train.loop import Trainer
from rmd.worlds.moving.path import FRAMES
from rmd.worlds.moving.world import DEMO as MOVING
from rmd.worlds.registry import WORLDS
from rmd.worlds.still.world import DEMO as STILL

SHORT = Curriculum(low_iterations=1, high_iterations=1, low_batch=4, high_batch=4, warmup=1)


def still(name: str, *, speedup: float = 1.0, **changes: float) -> Row:
    values = {"attributes": 0.9, "kernel_distance": 10.0, "kernel_distance_to_teacher": 5.0} | changes
    return row_of(name, speedup=speedup, **values)


GOOD = {
    "teacher": still("teacher", kernel_distance=2.0),
    "teacher-4": still("teacher-4", kernel_distance=20.0, kernel_distance_to_teacher=18.0),
    "cascade-undistilled": still("cascade-undistilled", attributes=0.8, kernel_distance=3.0),
    "rmd": still("rmd", attributes=0.88, kernel_distance=9.0, kernel_distance_to_teacher=8.0, speedup=20.0),
}


def facts(overhead: float, gain: float) -> dict[str, float]:
    return {"overhead": overhead, "gain": gain}


def test_a_good_run_meets_every_target() -> None:
    assert [check.passed for check in check_targets(STILL.targets, GOOD, facts(0.01, 1.5))] == [True] * 8


@pytest.mark.parametrize(
    ("changed", "overhead", "gain"),
    [
        (still("rmd", attributes=0.84, kernel_distance=9.0, speedup=20.0), 0.01, 1.5),
        (still("cascade-undistilled", attributes=0.89), 0.01, 1.5),
        (still("teacher-4", kernel_distance=17.9, kernel_distance_to_teacher=18.0), 0.01, 1.5),
        (still("rmd", kernel_distance=9.0, kernel_distance_to_teacher=19.0, speedup=20.0), 0.01, 1.5),
        (still("rmd", kernel_distance=9.0, speedup=14.9), 0.01, 1.5),
        (GOOD["rmd"], 0.03, 1.5),
        (GOOD["rmd"], 0.01, 1.39),
        (still("teacher", kernel_distance=7.0), 0.01, 1.5),
    ],
)
def test_each_target_can_be_missed(changed: Row, overhead: float, gain: float) -> None:
    checks = check_targets(STILL.targets, GOOD | {changed.name: changed}, facts(overhead, gain))
    assert sum(not check.passed for check in checks) == 1


def test_a_ratio_is_over_its_row_and_a_share_of_nothing_is_huge() -> None:
    checks = {check.name: check.measured for check in check_targets(STILL.targets, GOOD, facts(0.01, 1.5))}
    assert checks["distance to the teacher's samples over the 4-step teacher's"] == 8 / 18
    assert checks["attributes over the undistilled cascade's"] == 0.88 / 0.8
    nothing = GOOD | {"teacher": still("teacher", attributes=0.0)}
    assert check_targets(STILL.targets, nothing, facts(0, 2))[0].measured == pytest.approx(0.88e9)


MOVES = {
    "teacher": still("teacher", motion=0.8),
    "cascade-undistilled": still("cascade-undistilled", kernel_distance=30.0, motion=0.8),
    "rmd": still("rmd", motion=0.75, attributes=0.85),
}


def test_a_good_video_run_meets_every_target() -> None:
    assert [check.passed for check in check_targets(MOVING.targets, MOVES, facts(0.01, 1.5))] == [True] * 4


@pytest.mark.parametrize(
    ("changed", "gain"),
    [
        (still("rmd", motion=0.71), 1.5),
        (still("rmd", motion=0.8, attributes=0.80), 1.5),
        (still("rmd", motion=0.8, kernel_distance=31.0), 1.5),
        (still("rmd", motion=0.8), 1.39),
    ],
)
def test_each_target_of_the_video_demo_can_be_missed(changed: Row, gain: float) -> None:
    checks = check_targets(MOVING.targets, MOVES | {"rmd": changed}, facts(0.01, gain))
    assert sum(not check.passed for check in checks) == 1


def test_all_rows_are_timed_by_calls_that_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("pixart", tmp_path / "teacher", "full", data={"prompts": str(write_prompts(tmp_path))})
    trainer = Trainer(recipe, TINY["pixart"](), tmp_path / "run")
    asked = []

    def measured(backbone: Backbone, sides: Sequence[Side], prompts: Sequence[str], **more: Any) -> dict[Side, float]:
        asked.append((sides, len(prompts), more["network"] is trainer.backbone.denoiser))
        return {(16, 16): 1.0, (32, 32): 4.0}

    monkeypatch.setattr("rmd.sample.timing.side_seconds", measured)
    assert [step.stage for step in trainer.plan.steps] == [1, 1, 2, 2]
    evaluations = {"teacher": 50, "teacher-4": 8, "teacher-low": 50, "rmd": 4}
    rows = [still(name).model_copy(update={"nfe": count}) for name, count in evaluations.items()]
    timed, gain = timed_together(rows, {"rmd": trainer}, PROMPTS)
    assert gain == 16 / 10
    assert [each.seconds_per_image for each in timed] == [200, 32, 50, 10]
    assert [each.speedup for each in timed] == [1, 200 / 32, 4, 20]
    assert asked == [([(16, 16), (32, 32)], len(PROMPTS), False)]  # the student, all sides in one go


def test_the_report_names_versions() -> None:
    assert {"rmd", "python", "torch", "diffusers"} <= versions().keys()


def test_the_baseline_has_the_recipes_budget_at_the_final_resolution() -> None:
    changes = ["train.iterations=7", "train.seed=3", "method.guidance=7.0", "method.stage_draws=[1, 2]"]
    recipe = load_recipe("scenes-wan", changes)
    baseline = tdm_recipe(recipe)
    assert (baseline.method.name, baseline.plan.sides, baseline.plan.steps) == ("tdm", ((64, 64),), 4)
    assert (baseline.train, baseline.optim, baseline.frames) == (recipe.train, recipe.optim, FRAMES)
    assert len(baseline.build_plan().stages) == 1 and "stage_draws" not in baseline.method.model_dump()
    assert baseline.method.guidance == 7.0  # a change of the recipe holds for both


def test_a_recipe_of_no_world_is_one_sentence(tmp_path: Path) -> None:
    recipe = load_recipe("sdxl", [f"data.prompts={write_prompts(tmp_path)}"])
    with pytest.raises(RMDError, match=r"^there is no judge for prompts of .* set data.prompts to one of scenes, "):
        run_demo(recipe, tmp_path, quick=True, progress=lambda *_: None)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.slow  # the same code runs for clips below, and for the third family in tests/e2e
@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_the_demo_runs_with_every_family_of_the_scenes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng(devices=[]):
        FAMILIES[family](build_vae().eval()).pipe.save_pretrained(tmp_path / "teacher")
    monkeypatch.setattr(demo, "TEACHER_STEPS", 2)
    changes = ["train.iterations=2", "train.batch_size=2", "evaluation.n=6", f"teacher={tmp_path / 'teacher'}"]
    recipe = load_recipe(f"scenes-{family}", changes)
    result = run_demo(recipe, tmp_path / "run", quick=True, progress=lambda *_: None)
    assert result is not None and write_demo(result, tmp_path / "run").is_file()
    assert [row.nfe for row in result.report.rows] == [4, 8, 8, 4, 4]
    assert [row.name for row in result.report.rows] == list(STILL.rows)
    assert result.report.rows[0].speedup == 1.0
    names = {path.name for path in (tmp_path / "run" / "grids").iterdir()}
    assert names == {f"{name}.png" for name in STILL.rows}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, quick_muon: None) -> Path:
    """Teacher, judge and references of moving scenes, each trained for a few iterations."""
    root, few = tmp_path_factory.mktemp("moving"), Data(8, seed=1)
    out, cache = root / "wan", root / "cache"

    def quiet(line: str) -> None:
        pass

    vae = build_clip_vae_weights(out, cache=cache, iterations=2, data=Data(16, seed=1), log=quiet)
    build_clip_teacher(out, cache=cache, vae=vae, curriculum=SHORT, clean=few, poor=few, still=few, log=quiet)
    judged = Data(64, seed=21, training=False)
    build_frame_judge(out, cache=cache, iterations=2, data=judged, test=Data(4, 22, False), log=quiet)
    build_clip_references(out, cache=cache, data=Data(4, 31, False), steps=2, log=quiet)
    return root


@pytest.mark.usefixtures("small_panels")
def test_the_video_demo_writes_what_it_promises(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmd.worlds.assets.assets_folder", lambda: home)
    monkeypatch.setattr(demo, "TEACHER_STEPS", 2)
    recipe = load_recipe("scenes-wan", ["train.iterations=1", "train.batch_size=1", "evaluation.n=6"])
    seen: list[str] = []
    result = run_demo(recipe, tmp_path, quick=False, progress=lambda what, *_: seen.append(what))
    assert result is not None
    page = write_demo(result, tmp_path).read_text(encoding="utf-8")
    report = Report.model_validate_json((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert tuple(row.name for row in report.rows) == MOVING.rows
    assert [row.nfe for row in report.rows] == [4, 8, 8, 4, 4]
    assert all(tuple(row.measures) == WORLDS.get("moving-scenes").metrics for row in report.rows)
    assert len(report.checks) == 4 and report.moving
    assert seen[:2] == ["distilling (RMD)", "distilling (TDM)"]
    names = {f"{name}.webp" for name in [*MOVING.rows, "comparison"]}
    assert {path.name for path in (tmp_path / "grids").iterdir()} == names
    for name in ("rmd", "comparison"):
        with Image.open(tmp_path / "grids" / f"{name}.webp") as sheet:
            assert sheet.n_frames == FRAMES
    assert page.count("data:image/webp;base64,") == 3 * len(MOVING.rows)  # one for each of three captions
    for words in ("Motion right", "Flicker", "Kernel distance of changes", "for a clip where its"):
        assert words in page
    assert (tmp_path / "student" / "rmd_config.json").is_file()
