"""The video demo: its targets, its baseline, and, on tiny parts, every file that it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from rmd.evaluate.demo_moving import moving_prompts, moving_targets, run_moving_demo, tdm_recipe

from research.scenes.moving.build import (
    build_clip_references,
    build_clip_teacher,
    build_clip_vae_weights,
    build_frame_judge,
)
from research.scenes.record import Data
from research.scenes.teacher import Curriculum
from rmd.evaluate import demo_moving
from rmd.evaluate.protocol import SAMPLES_PER_PROMPT
from rmd.evaluate.rows import Motion, Row
from rmd.recipes.schema import load_recipe
from rmd.worlds.moving.grammar import held_out, parse_clip
from rmd.worlds.moving.path import FRAMES

pytestmark = pytest.mark.usefixtures("quick_muon")

SHORT = Curriculum(low_iterations=1, high_iterations=1, low_batch=4, high_batch=4, warmup=1)
ROWS = ["teacher", "teacher-4", "cascade-undistilled", "tdm", "rmd"]


def row(name: str, *, motion: float = 0.8, **changes: float) -> Row:
    values = {"attributes": 0.9, "kernel_distance": 10.0, "seconds_per_image": 0.01} | changes
    moves = Motion(
        motion=motion, motion_ci=(0, 1), speed=0.5, speed_ci=(0, 1), dynamics=1, flicker=1, change_distance=1,
        change_distance_ci=(0, 1),
    )  # fmt: skip
    return Row(
        name=name, label=name, nfe=4, seconds_end_to_end=0.1, attributes_ci=(0, 1), attributes_by_name={}, speedup=1,
        kernel_distance_ci=(0, 1), kernel_distance_to_teacher=1, kernel_distance_to_teacher_ci=(0, 1),
        frechet_distance=1, high_frequency=1, diversity=1, motion=moves, **values,
    )  # fmt: skip


GOOD = {
    "teacher": row("teacher"),
    "cascade-undistilled": row("cascade-undistilled", kernel_distance=30.0),
    "rmd": row("rmd", motion=0.75, attributes=0.85),
}


def test_a_good_run_meets_every_target() -> None:
    assert [check.passed for check in moving_targets(GOOD, 1.5)] == [True] * 4


@pytest.mark.parametrize(
    ("changed", "gain"),
    [
        (row("rmd", motion=0.71), 1.5),
        (row("rmd", attributes=0.80), 1.5),
        (row("rmd", kernel_distance=31.0), 1.5),
        (row("rmd"), 1.39),
    ],
)
def test_each_target_can_be_missed(changed: Row, gain: float) -> None:
    assert sum(not check.passed for check in moving_targets(GOOD | {"rmd": changed}, gain)) == 1


def test_the_baseline_has_the_recipes_budget_at_the_final_resolution() -> None:
    changes = ["train.iterations=7", "train.seed=3", "method.guidance=7.0", "method.stage_draws=[1, 2]"]
    recipe = load_recipe("scenes-wan", changes)
    found = tdm_recipe(recipe)
    assert (found.method.name, found.plan.sides, found.plan.steps) == ("tdm", ((64, 64),), 4)
    assert (found.train, found.optim, found.frames) == (recipe.train, recipe.optim, FRAMES)
    assert len(found.build_plan().stages) == 1 and not found.method.stage_draws
    assert found.method.guidance == 7.0  # what is set for one is set for both


def test_prompts_come_in_pairs_of_the_whole_grammar() -> None:
    prompts = moving_prompts(200, seed=0)
    assert prompts[::SAMPLES_PER_PROMPT] == prompts[1::SAMPLES_PER_PROMPT]
    found = [parse_clip(text) for text in prompts]
    assert all(a is not None for a in found) and any(a is not None and held_out(a) for a in found)
    assert prompts != moving_prompts(200, seed=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher, judge and references of a few iterations."""
    root, few = tmp_path_factory.mktemp("wan"), Data(8, seed=1)
    out, cache = root / "out", root / "cache"

    def quiet(line: str) -> None:
        pass

    vae = build_clip_vae_weights(out, cache=cache, iterations=2, data=Data(16, seed=1), log=quiet)
    build_clip_teacher(out, cache=cache, vae=vae, curriculum=SHORT, clean=few, poor=few, still=few, log=quiet)
    judged = Data(64, seed=21, training=False)
    build_frame_judge(out, cache=cache, iterations=2, data=judged, test=Data(4, 22, False), log=quiet)
    build_clip_references(out, cache=cache, data=Data(4, 31, False), steps=2, log=quiet)
    return out


@pytest.mark.usefixtures("small_panels")
def test_the_demo_writes_what_it_promises(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_moving, "teacher_home", lambda name: home)
    monkeypatch.setattr(demo_moving, "TEACHER_STEPS", 2)
    monkeypatch.setattr(demo_moving, "GRID_PROMPTS", 2)
    changes = ["train.iterations=1", "train.batch_size=2", "evaluation.n=6", f"teacher={home / 'teacher'}"]
    recipe = load_recipe("scenes-wan", changes)
    seen: list[str] = []
    result = run_moving_demo(recipe, tmp_path, quick=False, progress=lambda what, *_: seen.append(what))
    assert result is not None
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [found["name"] for found in report["rows"]] == ROWS
    assert [found["nfe"] for found in report["rows"]] == [4, 8, 8, 4, 4]
    assert all(found["motion"] is not None for found in report["rows"]) and len(report["checks"]) == 4
    assert seen[:2] == ["distilling (RMD)", "distilling (TDM)"]
    assert {path.name for path in (tmp_path / "grids").iterdir()} == {f"{name}.webp" for name in [*ROWS, "comparison"]}
    for name in ("rmd", "comparison"):
        with Image.open(tmp_path / "grids" / f"{name}.webp") as sheet:
            assert sheet.n_frames == FRAMES
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == 2 * len(ROWS)
    for words in ("Motion right", "Flicker", "Kernel distance of changes", "for a clip where its"):
        assert words in page
    assert (tmp_path / "student" / "rmd_config.json").is_file()
