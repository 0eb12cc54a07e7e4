"""A recipe is built into a run: its data, its networks, and the errors that come before weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY, recipe_of
from helpers import assert_same, make_recipe, tiny_sdxl, write_prompts
from torch import Tensor
from toy_runs import Crash, everything, of_the_run, toy

from rmd.common.errors import RMDError
from rmd.train.loop import Trainer
from rmd.train.run import build_run

modes = pytest.mark.parametrize("mode", ["lora", "full"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


@modes
@pytest.mark.parametrize("family", sorted(TINY))
def test_recomputed_activations_change_no_number(family: str, mode: str, prompts: Path, tmp_path: Path) -> None:
    results = []
    for gradient_checkpointing in (False, True):
        recipe = recipe_of(
            family, tmp_path, mode, train={"gradient_checkpointing": gradient_checkpointing, "iterations": 2}
        )
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompts": str(prompts)})})
        trainer = toy(recipe, tmp_path / str(gradient_checkpointing), TINY[family]())
        values = [of_the_run(trainer.iterate(iteration)[0]) for iteration in range(2)]
        results.append((values, everything(trainer), trainer.identity))
    assert results[0][0] == results[1][0] and results[0][2] == results[1][2]
    assert_same(results[0][1], results[1][1])


def test_recomputing_spares_memory_and_a_network_that_cannot_is_told(prompts: Path, tmp_path: Path) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    for gradient_checkpointing in (False, True):
        kept.append(0)
        recipe = make_recipe(prompts, "full", train={"gradient_checkpointing": gradient_checkpointing})
        trainer = toy(recipe, tmp_path / "run", tiny_sdxl())
        (batch,) = trainer.batches(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainer.method.student_loss(batch, trainer.plan.steps[-1])
    assert kept[1] < 0.5 * kept[0]
    with pytest.raises(
        RMDError,
        match=r"network does not support gradient checkpointing: set train\.gradient_checkpointing to false$",
    ):
        toy(make_recipe(prompts, "full", train={"gradient_checkpointing": True}), tmp_path / "run")


@modes
def test_the_averaged_student_is_lent_for_a_block(mode: str, prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts, mode, optim={"student_lr": 0.1}), tmp_path / "run")
    trainer.iterate(0)
    trainer.iterate(1)
    before = everything(trainer)
    with pytest.raises(Crash), trainer.averaged_student():
        assert_same(trainer.roles.state("student"), trainer.trained.average)
        raise Crash
    assert_same(everything(trainer), before)
    last = list(trainer.trained.average)[-1]
    assert not torch.equal(before[f"student/{last}"], before[f"average/{last}"])


def test_a_batch_is_a_function_of_its_iteration(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    ((first,), (other,), (again,)) = (trainer.batches(iteration) for iteration in (5, 6, 5))
    assert first.iteration == 5
    assert_same(dict(first.cond.tensors), dict(again.cond.tensors))
    draws = [batch.noise.normal((2, 3), "x") for batch in (first, again, other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    texts, samples = trainer.prompts.batch(5, 2)
    assert samples == [10, 11]
    assert_same(dict(first.cond.tensors), dict(trainer.backbone.encode(texts).tensors))
    assert len(first.null) == len(first.cond) == 2


@pytest.mark.parametrize("family", sorted(TINY))
def test_the_unconditional_branch_is_encoded_once(
    family: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(family, Path("teacher"), "full")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompts": str(prompts)})})
    trainer = Trainer(recipe, TINY[family](), tmp_path / "run")
    with torch.no_grad():
        expected = trainer.backbone.null(3)
    usual, asked = trainer.backbone.null, []
    monkeypatch.setattr(trainer.backbone, "null", lambda count: asked.append(count) or usual(count))
    for _ in range(2):
        assert_same(dict(trainer.encoded(["a", "b", "c"])[1].tensors), dict(expected.tensors))
    assert asked == [1]


def test_held_out_samples_change_nothing(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    trainer.iterate(0)
    state, calls = everything(trainer), dict(trainer.method.evaluations)
    scores = trainer.held_out()
    assert_same(everything(trainer), state)
    assert trainer.method.evaluations == calls
    assert scores == trainer.held_out()
    assert len(scores) == 2 * len(trainer.plan.steps) and all(value >= 0 for value in scores.values())
    parameters = list(trainer.roles.trainable("fake"))
    with torch.no_grad():
        for parameter in parameters:
            parameter += 1.0
    worse = trainer.held_out()
    assert all(worse[name] != value for name, value in scores.items())


def test_held_out_samples_are_computed_as_many_at_once_as_training_computes(prompts: Path, tmp_path: Path) -> None:
    together, apart = (
        toy(make_recipe(prompts, train={"batch_size": 8, "gradient_accumulation_steps": count}), tmp_path / str(count))
        for count in (1, 4)
    )
    assert (together.at_once, apart.at_once) == (8, 2)
    sizes = []
    usual = apart.method.student_loss
    apart.method.student_loss = lambda batch, step: sizes.append(len(batch.cond)) or usual(batch, step)
    assert apart.held_out() == pytest.approx(together.held_out(), rel=1e-4)
    assert set(sizes) == {2}


def test_a_run_loads_the_teacher_of_its_recipe(prompts: Path, tmp_path: Path) -> None:
    TINY["pixart"]().pipe.save_pretrained(tmp_path / "teacher")
    recipe = recipe_of("pixart", tmp_path / "teacher", "lora", data={"prompts": str(prompts)})
    loaded = build_run(recipe, folder=tmp_path / "run")
    given = build_run(recipe, TINY["pixart"](), folder=tmp_path / "run")
    assert loaded.identity == given.identity and loaded.plan == given.plan
    assert_same(loaded.roles.state("student"), given.roles.state("student"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"train": {"batch_size": 3, "gradient_accumulation_steps": 2}},
            "a batch of 3 cannot be divided into 1 process",
        ),
        ({"data": {"prompts": "none.txt"}}, "there is no prompt file none.txt"),
    ],
)
def test_what_is_wrong_with_settings_is_reported_before_weights_are_loaded(
    changes: dict[str, Any], sentence: str, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(RMDError, match=f"^{sentence}"):
        build_run(make_recipe(prompts, **changes), folder=tmp_path / "run")  # whose teacher does not exist
