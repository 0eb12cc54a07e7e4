"""The demo's targets, prompts and command; the whole demo runs in tests/e2e."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY, recipe_of
from helpers import PROMPTS, write_prompts

from research.scenes.families import FAMILIES
from research.scenes.vae import build_vae
from rmd.cli.app import main
from rmd.cli.demo import _clear
from rmd.common.files import LOCK, locked
from rmd.core.fit import Side
from rmd.evaluate import demo
from rmd.evaluate.demo import targets, versions
from rmd.evaluate.protocol import SAMPLES_PER_PROMPT, evaluation_prompts
from rmd.evaluate.rows import Row
from rmd.models import Backbone
from rmd.recipes.schema import load_recipe
from rmd.train.loop import Trainer
from rmd.worlds.still.grammar import has_held_out, parse


def row(name: str, **changes: float) -> Row:
    values = {"attributes": 0.9, "kernel_distance": 10.0, "kernel_distance_to_teacher": 5.0, "speedup": 1.0}
    values |= {"seconds_per_image": 0.01} | changes
    return Row(
        name=name, label=name, nfe=4, seconds_end_to_end=0.1, attributes_ci=(0, 1), attributes_by_name={},
        kernel_distance_ci=(0, 1), kernel_distance_to_teacher_ci=(0, 1), frechet_distance=1, high_frequency=1,
        diversity=1, **values,
    )  # fmt: skip


GOOD = {
    "teacher": row("teacher", kernel_distance=2.0),
    "teacher-4": row("teacher-4", kernel_distance=20.0, kernel_distance_to_teacher=18.0),
    "cascade-undistilled": row("cascade-undistilled", kernel_distance=30.0, kernel_distance_to_teacher=28.0),
    "rmd": row("rmd", attributes=0.88, kernel_distance=9.0, kernel_distance_to_teacher=8.0, speedup=20.0),
}


def test_a_good_run_meets_every_target() -> None:
    assert all(check.passed for check in targets(GOOD, 0.01, 1.5))


@pytest.mark.parametrize(
    ("name", "change", "overhead", "gain"),
    [
        ("rmd", {"attributes": 0.84}, 0.01, 1.5),
        ("rmd", {"kernel_distance": 16.0}, 0.01, 1.5),
        ("teacher-4", {"kernel_distance": 8.0}, 0.01, 1.5),
        ("rmd", {"kernel_distance_to_teacher": 19.0}, 0.01, 1.5),
        ("rmd", {"speedup": 14.9}, 0.01, 1.5),
        ("rmd", {}, 0.03, 1.5),
        ("rmd", {}, 0.01, 1.39),
        ("teacher", {"kernel_distance": 7.0}, 0.01, 1.5),
    ],
)
def test_each_target_can_be_missed(name: str, change: dict[str, float], overhead: float, gain: float) -> None:
    rows = GOOD | {name: GOOD[name].model_copy(update=change)}
    missed = [check.name for check in targets(rows, overhead, gain) if not check.passed]
    assert missed


def test_the_gain_is_that_of_calls_timed_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("pixart", tmp_path / "teacher", "full", data={"prompts": str(write_prompts(tmp_path))})
    trainer = Trainer(recipe, TINY["pixart"](), tmp_path / "run")
    asked = []

    def measured(backbone: Backbone, sides: Sequence[Side], prompts: Sequence[str], **more: Any) -> dict[Side, float]:
        asked.append((sides, len(prompts), more["network"] is trainer.backbone.denoiser))
        return {(16, 16): 1.0, (32, 32): 4.0}

    monkeypatch.setattr("rmd.sample.timing.side_seconds", measured)
    assert [step.stage for step in trainer.plan.steps] == [1, 1, 2, 2]
    assert demo.gain_over_full_steps(trainer, PROMPTS) == 16 / 10
    assert asked == [([(16, 16), (32, 32)], len(PROMPTS), False)]  # the student, all sides in one go


def test_prompts_come_in_pairs_of_the_whole_grammar() -> None:
    prompts = evaluation_prompts(400, seed=0)
    assert len(prompts) == 400
    assert prompts[::SAMPLES_PER_PROMPT] == prompts[1::SAMPLES_PER_PROMPT]
    assert len(set(prompts)) > 190
    found = [parse(text) for text in prompts]
    assert any(a is not None and has_held_out(a) for a in found)
    assert prompts != evaluation_prompts(400, seed=1)


def test_the_report_names_versions() -> None:
    assert {"rmd", "python", "torch", "diffusers"} <= versions().keys()


@pytest.mark.parametrize(("part", "mark"), [("run", "recipe.yaml"), ("student", "rmd_config.json")])
def test_only_an_earlier_demo_is_replaced(
    part: str, mark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / part / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("years of work", encoding="utf-8")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    sentence = f"rmd: {tmp_path / part} is not an earlier demo's: remove it, or choose another --out\n"
    assert capsys.readouterr().err == sentence
    assert mine.is_file()
    (tmp_path / part / mark).touch()
    _clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("part", ["", "run", "run-tdm"])
def test_a_demo_does_not_write_where_another_process_does(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / part
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").touch()
    with locked(folder):
        assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    said = f"rmd: another process is writing to {folder}: wait until it has finished, or choose another folder\n"
    assert capsys.readouterr().err == said
    assert (folder / "recipe.yaml").is_file()


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_the_demo_runs_with_every_family_of_the_scenes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng(devices=[]):
        FAMILIES[family](build_vae().eval()).pipe.save_pretrained(tmp_path / "teacher")
    monkeypatch.setattr(demo, "TEACHER_STEPS", 2)
    monkeypatch.setattr(demo, "GRID_PROMPTS", 2)
    changes = ["train.iterations=2", "train.batch_size=2", "evaluation.n=6", f"teacher={tmp_path / 'teacher'}"]
    result = demo.run_demo(
        load_recipe(f"scenes-{family}", changes), tmp_path / "run", quick=True, progress=lambda *_: None
    )
    assert result is not None and result.page.is_file()
    assert [row.nfe for row in result.report.rows] == [4, 8, 8, 4, 4]
