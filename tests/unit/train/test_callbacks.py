"""The work of a run beside its updates: averages, pictures, judging, metrics, guard and checkpoints, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LinearBackbone, assert_same, make_recipe, write_prompts
from torch import Tensor
from toy_runs import ZERO_SNR, Crash, everything, toy

from rmd.common.errors import RMDError
from rmd.models import Backbone
from rmd.models.roles import TRAINED
from rmd.recipes.schema import load_recipe
from rmd.train import callbacks
from rmd.train.callbacks import Callback, Iteration
from rmd.train.checkpoint import checkpoints
from rmd.train.guard import Best, CollapseGuard
from rmd.train.loop import Trainer
from rmd.train.marks import Marks, read_marks
from rmd.train.run import PANEL_PROMPTS, Run, build_run
from rmd.train.tracking import MACHINE, TRACKERS, LocalFiles, Tracker, read_metrics

modes = pytest.mark.parametrize("mode", ["lora", "full"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def test_the_average_follows_the_student(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts, optim={"ema": 0.75}), tmp_path / "run")
    expected = {name: value.clone() for name, value in trainer.roles.state("student").items()}
    for iteration in range(4):
        trainer.iterate(iteration)
        for name, value in trainer.roles.state("student").items():
            expected[name] = 0.75 * expected[name] + 0.25 * value
    for name, value in trainer.student_state().items():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, trainer.roles.state("student")[name])


def test_without_an_average_the_student_is_itself(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, optim={"ema": 0.0})
    trainer = toy(recipe, tmp_path / "run")
    trainer.train()
    assert_same(trainer.student_state(), trainer.roles.state("student"))
    resumed = toy(recipe, tmp_path / "run")
    assert resumed.start(resume=True) == 6
    assert_same(everything(resumed), everything(trainer))


def test_a_run_leaves_its_recipe_metrics_pictures_and_checkpoints(prompts: Path, tmp_path: Path) -> None:
    train = {"iterations": 7, "log_every": 2, "sample_every": 4, "checkpoint_every": 2, "keep_last": 3}
    recipe, folder = make_recipe(prompts, train=train), tmp_path / "run"
    trainer = toy(recipe, folder)
    seen: list[int] = []
    trainer.on_iteration = lambda done, values: seen.append(done)
    trainer.train()
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert load_recipe(str(folder / "recipe.yaml")) == recipe
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == [
        "step-000004",
        "step-000006",
        "step-000007",
    ]
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures == [f"{name}-{i:06d}.png" for name in ("samples", "scores") for i in (4, 7)]
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [2, 4, 6, 7]
    assert set(rows[0]) == {
        "iteration",
        "step",
        "stage",
        "student_loss",
        "student_grad_norm",
        "fake_loss",
        "fake_grad_norm",
        "gap",
        "sample_std",
        "calls_student",
        "calls_teacher",
        "calls_fake",
        *MACHINE,
    }
    held_out = {f"held_out/{kind}/step-{step.index}" for kind in ("fake_error", "gap") for step in trainer.plan.steps}
    assert [set(row) - set(rows[0]) for row in rows] == [set(), held_out, set(), held_out]
    steps = [trainer.method.draw_step(int(row["iteration"]) - 1) for row in rows]
    assert [(row["step"], row["stage"]) for row in rows] == [(step.index, step.stage) for step in steps]


def test_pictures_show_the_averaged_student(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    shown: list[dict[str, Tensor]] = []
    panel = callbacks.sample_panel

    def spy(backbone: Backbone, module: Any, plan: Any, cond: Any, *, seed: int, at_once: int) -> Any:
        shown.append({name: value.clone() for name, value in trainer.roles.state("student").items()})
        assert len(cond) == PANEL_PROMPTS
        return panel(backbone, module, plan, cond, seed=seed, at_once=at_once)

    monkeypatch.setattr(callbacks, "sample_panel", spy)
    trainer.train()
    assert len(shown) == 1
    assert_same(shown[0], trainer.trained.average)


def test_a_collapse_stops_the_run_and_keeps_the_last_good_checkpoint(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"iterations": 300, "checkpoint_every": 10, "keep_last": 2}
    recipe = make_recipe(prompts, plan={"steps": 1, "sides": [32], "thresholds": [], "multiple": 4}, train=train)
    trainer = toy(recipe, tmp_path / "run")
    usual, began = trainer.iterate, 24

    def iterate(iteration: int) -> Any:
        values, rollout = usual(iteration)
        return (values | {"sample_std": 0.01 * values["sample_std"]} if iteration >= began else values), rollout

    monkeypatch.setattr(trainer, "iterate", iterate)
    with pytest.raises(RMDError) as caught:
        trainer.train()
    assert str(caught.value).startswith("the student is collapsing: the samples of step 1 have 0.0")
    assert "something has been unusual since iteration 25; stopped at 29" in str(caught.value)
    assert "step-000020 is older: continue from it with --resume --reset-optimizer" in str(caught.value)
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000010", "step-000020"]
    unguarded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"guard": False, "iterations": 31})})
    other = toy(unguarded, tmp_path / "run")
    monkeypatch.setattr(other, "iterate", iterate)
    assert other.train(resume=True) == 31


def test_the_guard_remembers_across_a_resume(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts)
    trainer = toy(recipe, tmp_path / "run")
    trainer.train()
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 8})})
    resumed = toy(longer, tmp_path / "run")
    resumed.start(resume=True)
    assert resumed.guard.state == trainer.guard.state != CollapseGuard().state
    assert resumed.start(resume=True, reset_optimizers=True) == 6


def test_the_judge_looks_at_the_averaged_student_at_intervals(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, evaluation={"every": 4}, train={"iterations": 10, "log_every": 100})
    trainer = toy(recipe, tmp_path / "run")
    seen: list[Tensor] = []

    def judge(network: torch.nn.Module) -> Marks:
        seen.append(torch.cat([parameter.detach().flatten() for parameter in trainer.roles.trainable("student")]))
        return Marks({"judge/all_right": 0.5}, {"judge/all_right": (0.0, 1.0)})

    trainer.judge = judge
    trainer.train()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in rows if "judge/all_right" in row] == [4, 8, 10]
    average = torch.cat([value.flatten() for value in trainer.trained.average.values()])
    assert torch.equal(seen[-1], average)


def marks_of(*values: float) -> Marks:
    return Marks({"judge/all_right": sum(values) / len(values)}, {"judge/all_right": values})


def test_the_checkpoint_that_the_judge_likes_best_is_kept_whatever_is_pruned(prompts: Path, tmp_path: Path) -> None:
    marks = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75, 10: 0.5}
    asked = iter(marks.values())
    best = {}
    for last in (6, 10):  # a resume remembers
        recipe = make_recipe(
            prompts, evaluation={"every": 2}, train={"iterations": last, "checkpoint_every": 3, "keep_last": 1}
        )
        trainer = toy(recipe, tmp_path / "run")
        trainer.judge = lambda network: marks_of(next(asked))
        trainer.train(resume=last == 10)
        best[last] = trainer.best
    assert best == {6: Best(iteration=4, value=0.75), 10: Best(iteration=4, value=0.75)}
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000004", "step-000010"]
    book = read_marks(tmp_path / "run" / "marks.jsonl")  # the resumed run's records follow those of the first
    assert {record.iteration: record.samples["judge/all_right"] for record in book} == {
        iteration: (mark,) for iteration, mark in marks.items()
    }


def test_a_callback_of_the_user_sees_every_iteration_after_the_checkpoint_has_begun(
    prompts: Path, tmp_path: Path
) -> None:
    told: list[tuple[Any, ...]] = []

    class Mine(Callback):
        def start(self, run: Run, iteration: int) -> None:
            told.append(("start", iteration))

        def after_student_update(self, run: Run) -> None:
            steps = {role: len(run.trained.optimizers[role].state) > 0 for role in TRAINED}
            told.append(("student", steps["student"]))

        def after_iteration(self, run: Run, iteration: Iteration) -> None:
            recorded = [row["iteration"] for row in read_metrics(run.folder / "metrics.jsonl")]
            told.append(("done", iteration.done, iteration.last, recorded[-1]))

        def close(self) -> None:
            told.append(("close",))

    recipe = make_recipe(prompts, train={"iterations": 2})
    backbone = LinearBackbone(**ZERO_SNR)
    Trainer(build_run(recipe, backbone, folder=tmp_path / "run"), callbacks=[Mine()]).train()
    rest = [("student", True), ("done", 1, False, 1), ("student", True), ("done", 2, True, 2), ("close",)]
    assert told == [("start", 0), *rest]


def test_callbacks_are_closed_in_reverse_order_when_one_fails(prompts: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self, run: Run, iteration: int) -> None:
            if self.name == "third":
                raise Crash
            told.append(self.name)

        def close(self) -> None:
            told.append(f"{self.name} closed")

    trainer = toy(make_recipe(prompts), tmp_path / "run")
    trainer.callbacks += [Named(name) for name in ("first", "second", "third")]
    with pytest.raises(Crash):
        trainer.train()
    assert told == ["first", "second", "second closed", "first closed"]


def test_a_callback_may_end_the_run_which_is_saved(prompts: Path, tmp_path: Path) -> None:
    class Stop(Callback):
        def after_iteration(self, run: Run, iteration: Iteration) -> None:
            run.stop_requested = iteration.done == 3

    recipe = make_recipe(prompts, train={"iterations": 50, "checkpoint_every": 100})
    trainer = toy(recipe, tmp_path / "run")
    trainer.callbacks.append(Stop())
    assert trainer.train() == 4
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000004"]


def test_a_tracker_that_cannot_be_opened_ends_the_run_and_closes_the_others(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Fails(Tracker):
        def __init__(self, folder: Path, *, start: int, config: Any) -> None:
            raise RMDError("there is no way to the service")

    usual = LocalFiles.close
    monkeypatch.setattr(LocalFiles, "close", lambda self: closed.append(self.folder.name) or usual(self))
    monkeypatch.setitem(TRACKERS._loaded, "wandb", Fails)
    trainer = toy(make_recipe(prompts, train={"loggers": ["wandb"]}), tmp_path / "run")
    with pytest.raises(RMDError, match=r"^there is no way to the service$"):
        trainer.train()
    assert closed == ["run"]
