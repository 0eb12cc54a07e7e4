"""Timed training iterations: every step of the plan, real updates, with and without the teacher's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import TINY, recipe_of
from helpers import PROMPTS, assert_same, write_prompts

from rmd.bench import training
from rmd.bench.training import (
    BarePasses,
    EncodedTrainer,
    StepTiming,
    evaluations,
    mean_seconds,
    public_tdm_evaluations,
    time_in_turn,
    time_passes,
    time_training,
    untrained,
)
from rmd.cli.app import main
from rmd.core.plan import Step
from rmd.models.registry import family_class
from rmd.models.roles import TRAINED
from rmd.models.untrained import architecture_of
from rmd.recipes.schema import Recipe, to_yaml

CPU = torch.device("cpu")
families = pytest.mark.parametrize("family", sorted(TINY))


def recipe_for(folder: Path, family: str, mode: str = "lora") -> Recipe:
    TINY[family]().pipe.save_pretrained(folder / "teacher")
    recipe = recipe_of(family, folder / "teacher", mode)
    prompts = recipe.data.model_copy(update={"prompts": str(write_prompts(folder))})
    return recipe.model_copy(update={"data": prompts})


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        *((family, "lora") for family in sorted(TINY)), ("pixart", "full"), ("wan", "full"),
        *(pytest.param(family, "full", marks=pytest.mark.slow) for family in ("sdxl", "sd3")),
    ],
)  # fmt: skip
def test_every_step_is_trained_and_timed_on_random_weights(family: str, mode: str, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, family, mode)
    trainer = EncodedTrainer(recipe, *untrained(recipe, device=CPU, dtype=torch.float32))
    before = {name: tensor.clone() for name, tensor in trainer.roles.state("student").items()}
    seen = []
    timings = time_training(trainer, repeats=1, progress=lambda: seen.append(None))
    assert [timing.step for timing in timings] == list(trainer.plan.steps)
    assert len(seen) == 2 * len(timings)
    assert all(timing.seconds > 0 and timing.peak_bytes is None for timing in timings)
    assert any(not torch.equal(before[name], now) for name, now in trainer.roles.state("student").items())
    assert not (tmp_path / "unused").exists()


@families
def test_the_encoded_prompts_have_the_names_and_widths_of_real_ones(family: str, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, family)
    kind = family_class(family)
    shapes = kind.cond_shapes(architecture_of(recipe.teacher, kind))
    real = TINY[family]().encode(PROMPTS[:1]).tensors
    assert shapes.keys() == real.keys()
    for name, shape in shapes.items():
        if name != "mask":  # its length is the text's
            assert shape[-1] == real[name].shape[-1]
        assert len(shape) == real[name].ndim - 1


def test_the_mean_weighs_steps_as_they_are_drawn() -> None:
    timings = [StepTiming(step(1, 1), 1.0, None), StepTiming(step(2, 1), 3.0, None), StepTiming(step(3, 2), 10.0, None)]
    assert mean_seconds(timings, (0.25, 0.25, 0.5)) == 6.0


def step(index: int, stage: int) -> Step:
    return Step(index=index, stage=stage, teacher_time=0.0, model_time=0.0, logsnr=0.0, tau_low=0.0, tau_high=0.0)


def test_bare_passes_add_up_to_iterations() -> None:
    steps = [step(1, 1), step(2, 1), step(3, 2), step(4, 2)]
    passes = BarePasses({1: 1.0, 2: 10.0}, {1: 3.0, 2: 30.0}, {1: 2.0, 2: 20.0})
    scores = 20.0 + 10.0 + 2 * 30.0  # teacher, fake score, two updates of it
    seconds = [passes.of_iteration(steps, each, fake_updates=2, scored=2) for each in steps]
    assert seconds == [3.0 + scores, 1.0 + 3.0 + scores, 2.0 + 30.0 + scores, 12.0 + 30.0 + scores]
    low = 2.0 + 1.0 + 2 * 3.0
    assert passes.of_iteration(steps, steps[1], fake_updates=2, scored=1) == 1.0 + 3.0 + low
    assert passes.of_own_samples(steps, (0.25, 0.25, 0.25, 0.25)) == (1.0 + 2.0 + 12.0 + 22.0) / 4
    assert passes.of_public_tdm(4, fake_updates=1) == 4 * 10.0 + 30.0 + 20.0 + 10.0 + 30.0 + 20.0


def test_a_two_plus_two_student_makes_six_tenths_of_public_tdms_evaluations() -> None:
    ours, tdm = (
        evaluations(2.5, fake_updates=1, branches=2),
        public_tdm_evaluations(4, fake_updates=1, guidance=True),
    )
    assert (ours, tdm) == (6.5, 11)
    assert ours / tdm <= 0.65
    assert evaluations(1.0, fake_updates=2, branches=1) == 1 + 1 + 1 + 2
    assert evaluations(2.5, fake_updates=1, branches=2, fake_first=True) == 6.5 + 2.5


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_timing_bare_passes_changes_nothing(mode: str, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "pixart", mode)
    trainer = EncodedTrainer(recipe, *untrained(recipe, device=CPU, dtype=torch.float32))
    before = {role: {name: t.clone() for name, t in trainer.roles.state(role).items()} for role in TRAINED}
    passes = time_passes(trainer, repeats=1)
    kinds = (passes.forward, passes.trained, passes.guided)
    assert all(seconds.keys() == {1, 2} and min(seconds.values()) > 0 for seconds in kinds)
    for role in TRAINED:
        assert_same(trainer.roles.state(role), before[role])
        assert all(parameter.grad is None for parameter in trainer.roles.trainable(role))
    assert not trainer.method.evaluations


def test_iterations_and_bare_passes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tmp_path, "pixart")
    trainer = EncodedTrainer(recipe, *untrained(recipe, device=CPU, dtype=torch.float32))
    step, order = trainer.plan.steps[0], []
    speeds = iter([(9.0, 1), (3.0, 7), (1.0, 2), (2.0, None)])  # seconds, bytes; the first is the warm-up

    def iterations(*_: object, repeats: int, progress: object) -> list[StepTiming]:
        order.append(f"iteration, {repeats}")
        return [StepTiming(step, *next(speeds))]

    def passes(*_: object, repeats: int) -> BarePasses:
        order.append(f"passes, {repeats}")
        seconds = [9.0, 5.0, 4.0, 6.0][len(order) // 2 - 1]
        return BarePasses({1: seconds}, {1: 3 * seconds}, {1: 2 * seconds})

    monkeypatch.setattr(training, "time_training", iterations)
    monkeypatch.setattr(training, "time_passes", passes)
    timings, bare = time_in_turn(trainer, repeats=3)
    assert order == ["iteration, 0", "passes, 0"] * 4
    assert timings == [StepTiming(step, 2.0, 7)]
    assert bare == BarePasses({1: 5.0}, {1: 15.0}, {1: 10.0})


@pytest.mark.parametrize("weights", [[], ["--untrained"]])
def test_the_command(weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(recipe_for(tmp_path, "pixart")), encoding="utf-8")
    assert main(["bench", "train", str(path), "--repeats", "1", "--device", "cpu", "--json", *weights]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["untrained"], printed["batch"]) == (bool(weights), 2)
    assert [row["step"] for row in printed["steps"]] == [1, 2, 3, 4]
    assert all(row["bare_seconds"] > 0 for row in printed["steps"]) and printed["mean_bare_seconds"] > 0
    assert (printed["evaluations"], printed["public_tdm"]["evaluations"]) == (2.5 + 2 + 1 + 2, 4 + 1 + 2 + 1 + 2 * 3)
    assert main(["bench", "train", str(path), "--repeats", "1", *weights]) == 0
    shown = capsys.readouterr().out
    assert "16x16" in shown and "32x32" in shown and "s per iteration on average" in shown
    assert "x the bare forward and backward passes of its networks" in shown
    assert "network evaluations per student update: 7.5; TDM's public schedule makes 14, all at 32x32 (" in shown


def test_without_repeats_every_step_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(recipe_for(tmp_path, "wan")), encoding="utf-8")
    command = ["bench", "train", str(path), "--repeats", "0", "--device", "cpu", "--untrained"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["peak_bytes"]) for row in printed["steps"]] == [(n, None) for n in (1, 2, 3, 4)]
    assert all(row["seconds"] > 0 for row in printed["steps"])
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "seconds, the first time" in shown and "bare passes" not in shown


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("nowhere", "there is no device 'nowhere': use cpu, cuda"),
        ("mps", "this command cannot compute on mps: use cpu or cuda"),
        ("cuda:99", "there is no cuda:99, since torch finds "),
    ],
)
def test_a_device_that_is_not_there(device: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "sdxl", "--untrained", "--device", device]) == 1
    assert sentence in capsys.readouterr().err
