"""Training and sampling on another device than the CPU: nothing is left behind, and the numbers are the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, accelerator
from families import TINY, make_student, recipe_of
from helpers import PROMPTS, write_prompts
from torch import Tensor, nn

from rmd.common.pictures import to_image, to_uint8
from rmd.data.cache import build_cache
from rmd.evaluation.watch import judge_grader, student_watcher
from rmd.models import Backbone
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe, load_recipe
from rmd.sample.pipeline import RMDPipeline
from rmd.sample.timing import time_sampling
from rmd.train.loop import Trainer
from rmd.worlds.registry import WORLDS
from rmd.worlds.still.render import render, sample_scenes

families = pytest.mark.parametrize("family", sorted(TINY))
quickest = pytest.mark.parametrize(
    "family", ["pixart", "wan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3"))]
)
pytestmark = [pytest.mark.filterwarnings("ignore:There are modules"), pytest.mark.usefixtures("small_panels")]
ADVERSARIAL = (
    "method.name=dmd2", "method.tau=all", "crossing.within=fresh", "method.adversarial=0.1",
    "method.adversarial_fake=0.1", "plan.sides=[64]", "plan.thresholds=[]",
)  # fmt: skip


def recipe_at(folder: Path, family: str, mode: str, **changes: dict[str, Any]) -> Recipe:
    """Two iterations at sides that every family takes, with everything that is done at intervals."""
    base: dict[str, dict[str, Any]] = {
        "data": {"prompts": str(write_prompts(folder))},
        "plan": {"steps": 2, "sides": [16, 32], "multiple": 16},
        "train": {"iterations": 2, "sample_every": 2, "checkpoint_every": 2},
    }
    merged = {group: base.get(group, {}) | changes.get(group, {}) for group in {**base, **changes}}
    return recipe_of(family, folder, mode, **merged)


def move(backbone: Backbone, dtype: torch.dtype = torch.float32, *, but: list[nn.Module] | None = None) -> Backbone:
    for part in backbone.pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(dtype)
            if part not in (but or []):
                part.to(DEVICE)
    backbone.computes_on(DEVICE)
    return backbone


def trained(recipe: Recipe, backbone: Backbone, folder: Path) -> dict[str, Tensor]:
    """The student after a run, on the CPU; training it must leave it where it was."""
    trainer = Trainer(recipe, backbone, folder)
    trainer.train()
    away = backbone.device == DEVICE
    assert all((parameter.device == DEVICE) == away for parameter in trainer.roles.trainable("student"))
    return trainer.gathered_student()


@pytest.mark.parametrize("family", ["pixart", "sd3", "wan", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_training_there_gives_what_it_gives_on_the_cpu(family: str, tmp_path: Path) -> None:
    """Also when its text encoders stay on the CPU; in half precision, below, they come along."""
    recipe = recipe_at(tmp_path, family, "lora", data={"offload": True, "prompt_cache_mb": 1})
    expected = trained(recipe, TINY[family](), tmp_path / "cpu")
    backbone = TINY[family]()
    with accelerator():
        weights = trained(recipe, move(backbone, but=backbone.text_encoders), tmp_path / "there")
    for name, value in expected.items():
        # attention is computed in another order, and AdamW's first steps divide by the gradient
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)


@quickest
def test_training_in_half_precision_goes_on_from_its_checkpoint(family: str, tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, family, "full", train={"iterations": 1, "dtype": "bfloat16"})
    longer = recipe_at(tmp_path, family, "full", train={"iterations": 2, "dtype": "bfloat16"})
    with accelerator():
        trained(recipe, move(TINY[family](), torch.bfloat16), tmp_path / "run")
        trainer = Trainer(longer, move(TINY[family](), torch.bfloat16), tmp_path / "run")
        assert trainer.train(resume=True) == 2


@quickest
def test_cached_prompts_may_stay_on_the_cpu(family: str, tmp_path: Path) -> None:
    build_cache(TINY[family](), PROMPTS, tmp_path / "cache")
    recipe = recipe_at(tmp_path, family, "lora", train={"iterations": 1}, data={"cache": str(tmp_path / "cache")})
    backbone = TINY[family]()
    with accelerator():
        trained(recipe, move(backbone, but=backbone.text_encoders), tmp_path / "run")


def test_the_judge_and_an_adversarial_head_get_what_they_need(tmp_path: Path) -> None:
    scenes = sample_scenes(range(4), seed=0, training=True)
    for i, picture in enumerate(to_uint8(2 * render(scenes) - 1)):
        to_image(picture).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(scenes.captions[i], encoding="utf-8")
    (tmp_path / "captions.txt").write_text("\n".join(scenes.captions), encoding="utf-8")
    data = f"data.images={tmp_path}", f"data.prompts={tmp_path / 'captions.txt'}"
    recipe = load_recipe(
        "scenes", ["train.iterations=1", "train.batch_size=2", "evaluation.every=1", *ADVERSARIAL, *data]
    )
    with accelerator():
        trainer = Trainer(recipe, move(load_teacher(recipe)), tmp_path / "run")
        captions, graders = scenes.captions[:3], [judge_grader(WORLDS.get("scenes"))]
        trainer.judge = student_watcher(trainer.backbone, trainer.plan, captions, graders, seed=0)
        trainer.train()
    assert trainer.best is not None


@families
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_students_pictures_there_are_those_of_the_cpu(family: str, mode: str, tmp_path: Path) -> None:
    student = make_student(tmp_path, family, mode)

    def picture(pipe: RMDPipeline) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        made: Tensor = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(1), output_type="pt")[0]
        return made

    expected = picture(RMDPipeline.from_pretrained(student))
    pipe = RMDPipeline.from_pretrained(student)
    with accelerator() as device:
        image = picture(pipe.to(device))
        assert image.device == DEVICE
        torch.testing.assert_close(image.cpu(), expected, rtol=0, atol=1e-4)


@families
def test_sampling_is_timed_there(family: str, tmp_path: Path) -> None:
    pipe = RMDPipeline.from_pretrained(make_student(tmp_path, family, "full"))
    with accelerator() as device:
        backbone = pipe.to(device).backbone
        assert all(parameter.device == DEVICE for parameter in backbone.denoiser.parameters())
        timing = time_sampling("student", backbone, backbone.denoiser, pipe.plan, PROMPTS[:1], repeats=1)
    assert timing.calls == len(pipe.plan.steps)
