"""`rmd.distil`: the run of a pipeline in memory, the student that it returns, and the pipeline that stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY, recipe_of
from helpers import PROMPTS, assert_same, copy_state
from torch import Tensor, nn

import rmd
from rmd.common.errors import RMDError
from rmd.models.registry import wrap
from rmd.recipes.schema import Recipe
from rmd.train.distil import PROMPTS_FILE, Distillation, distil
from rmd.train.loop import Trainer

MODES = ("lora", "full")
SHORT = {"train": {"iterations": 2}}

pytestmark = pytest.mark.usefixtures("small_panels")


def pipeline() -> Any:
    """Return a random pipeline of the family that is trained the quickest."""
    return TINY["pixart"]().pipe


def tiny_recipe(mode: str = "lora", prompts: Path | str = "none", **changes: Any) -> Recipe:
    return recipe_of("pixart", Path("tiny"), mode, data={"prompts": str(prompts)}, **changes)


def distillation(folder: Path, mode: str = "lora", **changes: Any) -> Distillation:
    return distil(pipeline(), PROMPTS, recipe=tiny_recipe(mode, **changes), folder=folder)


def pictures(pipe: Any) -> Tensor:
    images: Tensor = pipe(PROMPTS[:2], generator=torch.Generator().manual_seed(3), output_type="pt").images
    return images


def test_the_public_names_are_there() -> None:
    assert rmd.distil is distil and rmd.Trainer is Trainer and rmd.RMDError is RMDError
    assert all(getattr(rmd, name) is not None for name in rmd.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rmd.nothing  # noqa: B018


def test_a_pipeline_that_was_loaded_from_a_path_names_it_as_text(tmp_path: Path) -> None:
    """Otherwise pydantic warns when the recipe's YAML and the student's config are written."""
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "teacher")
    pipe.register_to_config(_name_or_path=tmp_path / "teacher")
    run = distil(pipe, PROMPTS, recipe=tiny_recipe(), folder=tmp_path / "mine")
    assert run.trainer.recipe.teacher == str(tmp_path / "teacher")


@pytest.mark.parametrize("mode", MODES)
def test_the_run_is_that_of_the_recipe_and_the_pipeline_stays_as_it_was(mode: str, tmp_path: Path) -> None:
    pipe = pipeline()
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    before = {name: copy_state(module) for name, module in modules.items()}
    flags = [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    run = distil(pipe, PROMPTS, recipe=tiny_recipe(mode, **SHORT), folder=tmp_path / "mine")
    metrics = [step.metrics["student_loss"] for step in run]
    assert len(metrics) == run.trainer.recipe.train.iterations

    prompts = tmp_path / "mine" / PROMPTS_FILE
    official = Trainer(tiny_recipe(mode, prompts, **SHORT), wrap(pipeline()), tmp_path / "usual")
    assert official.train() == len(metrics)
    assert_same(official.student_state(), run.trainer.student_state())

    for name, module in modules.items():
        assert pipe.components[name] is module
        assert_same(before[name], module.state_dict())
    assert [parameter.requires_grad for parameter in pipe.transformer.parameters()] == flags


@pytest.mark.parametrize("mode", MODES)
def test_the_student_samples_saves_and_loads(mode: str, tmp_path: Path) -> None:
    run = distillation(tmp_path / "run", mode, **SHORT).train()
    student = run.pipeline()
    images = pictures(student)
    teacher = tmp_path / "teacher"
    pipeline().save_pretrained(teacher)
    student.save_pretrained(tmp_path / "out")
    loaded = rmd.RMDPipeline.from_pretrained(tmp_path / "out", teacher=teacher if mode == "lora" else None)
    torch.testing.assert_close(pictures(loaded), images)
    assert student.student.teacher is None  # the pipeline in memory does not say where it is from


def test_a_loop_that_was_left_continues_and_earlier_students_do_not_change(tmp_path: Path) -> None:
    run = distillation(tmp_path / "run", **SHORT)
    for step in run:
        if step.done == 1:
            break
    early = run.pipeline()
    images = pictures(early)
    assert [step.done for step in run] == [2]
    assert list(run) == []
    assert torch.equal(pictures(early), images)
    whole = distillation(tmp_path / "whole", **SHORT).train()
    assert_same(run.trainer.student_state(), whole.trainer.student_state())


def test_a_run_resumes(tmp_path: Path) -> None:
    changes = {"train": {"iterations": 2, "checkpoint_every": 1}}
    run = distillation(tmp_path / "run", **changes)
    for step in run:
        if step.done == 1:
            break
    del run
    recipe = tiny_recipe(**changes)
    resumed = distil(pipeline(), PROMPTS, recipe=recipe, folder=tmp_path / "run", resume=True)
    assert [step.done for step in resumed] == [2]
    with pytest.raises(RMDError, match="holds a run already"):
        distil(pipeline(), PROMPTS, recipe=recipe, folder=tmp_path / "run").train()


def test_a_folder_and_a_packaged_recipe(tmp_path: Path) -> None:
    small = ["train.iterations=2", "train.batch_size=2", "train.sample_every=2", "method.warmup_steps=0"]
    run = distil("scenes", "scenes", recipe="scenes", steps=2, overrides=small, folder=tmp_path / "run", device="cpu")
    assert len(run.trainer.plan.steps) == 2 and run.trainer.recipe.data.prompts == "scenes"
    assert [step.done for step in run] == [1, 2]
    assert run.pipeline().student.teacher == "scenes"


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family(family: str, tmp_path: Path) -> None:
    pipe = TINY[family]().pipe
    recipe = recipe_of(family.split("-")[0].removesuffix("_two"), tmp_path, "lora", train={"iterations": 1})
    recipe = recipe.model_copy(update={"family": wrap(TINY[family]().pipe).family})
    run = distil(pipe, PROMPTS, recipe=recipe, folder=tmp_path / "run").train()
    assert run.pipeline().plan == run.trainer.plan


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match="there is no prompt"):
        distil(pipeline(), [], recipe=tiny_recipe(), folder=tmp_path)
    with pytest.raises(RMDError, match="change a recipe that is given by name"):
        distil(pipeline(), PROMPTS, recipe=tiny_recipe(), steps=2, folder=tmp_path)
    with pytest.raises(RMDError, match="the recipe's family is wan, but the teacher"):
        distil(pipeline(), PROMPTS, recipe=recipe_of("wan", tmp_path, "lora"), folder=tmp_path)
