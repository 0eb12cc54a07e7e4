"""Saved students load in stock diffusers, and predict what they predicted in training."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from helpers import PROMPTS, assert_same, copy_state, make_recipe, tiny_pipeline, tiny_sdxl, write_prompts
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from research.sampling import sample_images
from rmd.common.errors import RMDError
from rmd.common.files import locked
from rmd.core.plan import Stage, StepPlan
from rmd.models import Backbone
from rmd.models import student as module
from rmd.models.roles import Roles, build_roles
from rmd.models.student import (
    BLOCK,
    BLOCK_CONFIG,
    CONFIG_NAME,
    STANDALONE,
    load_student,
    read_student,
    save_student,
    stored_teacher,
)
from rmd.recipes.hashes import config_hash
from rmd.recipes.schema import Recipe

FINAL = Stage(1, 32, 32)


def distilled(backbone: Backbone, recipe: Recipe) -> Roles:
    """Return roles whose student differs clearly from its teacher."""
    roles = build_roles(
        backbone.denoiser,
        mode=recipe.roles.mode,
        targets=backbone.adapted("all"),
        rank=recipe.roles.rank,
        alpha=recipe.roles.alpha,
    )
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in roles.trainable("student"):
            parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    return roles


@torch.no_grad()
def predict(backbone: Backbone, network: torch.nn.Module) -> Tensor:
    """Return a network's raw output for fixed latents, times and prompts."""
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), FINAL, FINAL)
    output: Tensor = network(x, torch.tensor([800.0, 100.0]), **kwargs).sample
    return output


def predictions(backbone: Backbone, roles: Roles) -> tuple[Tensor, Tensor]:
    """Return the raw outputs of the student and of the teacher."""
    with roles.use("student") as student:
        first = predict(backbone, student)
    with roles.use("teacher") as teacher:
        return first, predict(backbone, teacher)


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, Recipe]:
    prompts = write_prompts(tmp_path)
    return {mode: make_recipe(prompts, mode) for mode in ("full", "lora")}


@pytest.mark.parametrize("two_encoders", [False, True])
def test_a_full_student_is_a_stock_pipeline(two_encoders: bool, recipes: dict[str, Recipe], tmp_path: Path) -> None:
    backbone = tiny_sdxl(two_encoders=two_encoders)
    roles = distilled(backbone, recipes["full"])
    before = copy_state(backbone.denoiser)
    folder = save_student(backbone, roles.state("student"), recipes["full"], tmp_path / "student")
    student, teacher = predictions(backbone, roles)
    assert (student - teacher).abs().max() > 0.01

    loaded = DiffusionPipeline.from_pretrained(folder)
    assert type(loaded) is StableDiffusionXLPipeline
    assert torch.equal(predict(backbone, loaded.unet), student)
    ours, theirs = dict(backbone.pipe.scheduler.config), dict(loaded.scheduler.config)
    ours.pop("_use_default_values")  # lists which values were given explicitly
    assert theirs == ours
    assert_same(copy_state(loaded.vae), copy_state(backbone.pipe.vae))
    assert_same(copy_state(backbone.denoiser), before)  # the teacher in memory has not changed


@pytest.mark.parametrize("two_encoders", [False, True])
def test_a_lora_student_is_a_lora_of_stock_diffusers(
    two_encoders: bool, recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    """Alpha (4) differs from the rank (2), so that a reader that loses it would scale the adapter wrongly."""
    backbone = tiny_sdxl(two_encoders=two_encoders)
    roles = distilled(backbone, recipes["lora"])
    folder = save_student(backbone, roles.state("student"), recipes["lora"], tmp_path / "student")
    student, teacher = predictions(backbone, roles)
    assert (student - teacher).abs().max() > 0.01

    fresh = tiny_pipeline(two_encoders=two_encoders)
    torch.testing.assert_close(predict(backbone, fresh.unet), teacher, rtol=0, atol=1e-5)
    fresh.load_lora_weights(folder)
    torch.testing.assert_close(predict(backbone, fresh.unet), student, rtol=0, atol=1e-5)
    fresh.fuse_lora()
    torch.testing.assert_close(predict(backbone, fresh.unet), student, rtol=0, atol=1e-4)
    fresh.unload_lora_weights()
    fresh.unfuse_lora()


def test_a_lora_file_holds_the_student_alone_under_its_usual_names(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    backbone = tiny_sdxl()
    roles = distilled(backbone, recipes["lora"])
    folder = save_student(backbone, roles.state("student"), recipes["lora"], tmp_path / "student")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [BLOCK, BLOCK_CONFIG, STANDALONE, "pytorch_lora_weights.safetensors", CONFIG_NAME]
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert_same(saved, {f"unet.{name}": value for name, value in roles.state("student").items()})
    assert header["unet.r"] == 2
    assert header["unet.lora_alpha"] == 4.0
    assert header["unet.target_modules"] == list(backbone.adapted("all"))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_plan_is_saved_with_the_student(mode: str, recipes: dict[str, Recipe], tmp_path: Path) -> None:
    recipe, backbone = recipes[mode], tiny_sdxl()
    folder = save_student(backbone, distilled(backbone, recipe).state("student"), recipe, tmp_path / "student")
    config = json.loads((folder / CONFIG_NAME).read_text())
    assert StepPlan.from_dict(config.pop("plan")) == recipe.build_plan()
    assert config == {
        "version": 1,
        "method": "rmd",
        "mode": mode,
        "teacher": "tiny",
        "family": "sdxl",
        "recipe": "tiny",
        "recipe_hash": config_hash(recipe),
        "guidance": 2.0,
        "prompts": "prompts.txt",
        "conditioning": {
            "original": "final",
            "target": "stage",
            "embedded_guidance": 3.5,
            "pos_rescale": False,
        },
    }


def test_a_loaded_student_samples_the_same_pictures(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    recipe, backbone = recipes["full"], tiny_sdxl()
    roles, plan = distilled(backbone, recipe), recipe.build_plan()
    folder = save_student(backbone, roles.state("student"), recipe, tmp_path / "student")
    loaded = load_student(folder)
    assert loaded.plan == plan
    with roles.use("student") as network:
        expected = sample_images(backbone, network, plan, PROMPTS, seed=0)
    images = sample_images(loaded.backbone, loaded.backbone.denoiser, loaded.plan, PROMPTS, seed=0)
    assert torch.equal(images, expected)


def test_a_student_replaces_a_student_and_nothing_else(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    recipe, backbone, folder = recipes["lora"], tiny_sdxl(), tmp_path / "student"
    state = distilled(backbone, recipe).state("student")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(RMDError, match=f"^{folder} holds something other than a student: remove it, or choose another"):
        save_student(backbone, state, recipe, folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    save_student(backbone, state, recipe, folder)  # an empty folder is accepted
    (folder / "left.txt").write_text("of the student before")
    save_student(backbone, state, recipe, folder)
    assert not (folder / "left.txt").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.ENOSPC, "No space left on device"), "the disk is full"), (SafetensorError("broken"), "broken")],
)
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_failed_save_keeps_the_earlier_student(
    mode: str,
    error: Exception,
    reason: str,
    recipes: dict[str, Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, backbone, folder = recipes[mode], tiny_sdxl(), tmp_path / "out" / "student"
    roles = distilled(backbone, recipe)
    save_student(backbone, roles.state("student"), recipe, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = copy_state(backbone.denoiser)

    def fail(*arguments: Any) -> None:
        arguments[-1].mkdir()
        (arguments[-1] / "half").write_text("")
        raise error

    monkeypatch.setattr(module, "_save_pipeline" if mode == "full" else "_save_lora", fail)
    with pytest.raises(RMDError, match=f"^cannot save the student to {folder}: {reason}$"):
        save_student(backbone, roles.state("student"), recipe, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [".student.lock", "student"]
    assert_same(copy_state(backbone.denoiser), weights)


def test_the_teacher_is_restored_if_the_pipeline_cannot_be_saved(
    recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_sdxl()
    roles, before = distilled(backbone, recipes["full"]), copy_state(backbone.denoiser)

    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backbone.pipe, "save_pretrained", fail)
    with pytest.raises(RMDError, match="the disk is full"):
        save_student(backbone, roles.state("student"), recipes["full"], tmp_path / "student")
    assert_same(copy_state(backbone.denoiser), before)
    assert not (tmp_path / "student").exists()


def test_anything_but_a_student_is_refused(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=f"holds no student: it has no {CONFIG_NAME}$"):
        load_student(tmp_path)
    backbone = tiny_sdxl()
    state = distilled(backbone, recipes["lora"]).state("student")
    folder = save_student(backbone, state, recipes["lora"], tmp_path / "student")
    with pytest.raises(RMDError, match=r"^tiny is neither a folder nor in the cache"):
        load_student(folder)
    for text, sentence in (
        ("{", r"rmd_config\.json is not valid JSON: "),
        ("[]", r"rmd_config\.json: should be a group of keys, but is \[\]$"),
        ("{}", r"rmd_config\.json: method is missing \(and 9 more\)$"),
    ):
        (folder / CONFIG_NAME).write_text(text)
        with pytest.raises(RMDError, match=sentence):
            load_student(folder)


def test_a_teachers_folder_is_kept_by_its_absolute_path(
    recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, recipe = tiny_sdxl(), recipes["lora"]
    backbone.pipe.save_pretrained(tmp_path / "models" / "base")
    state = distilled(backbone, recipe).state("student")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/base", "~/models/base"):
        folder = save_student(backbone, state, recipe.model_copy(update={"teacher": name}), tmp_path / "student")
        assert read_student(folder).teacher == str(tmp_path / "models" / "base")
    (tmp_path / "scenes").mkdir()
    assert [stored_teacher(name) for name in ("scenes", "an/id")] == ["scenes", "an/id"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_student(folder).config.teacher == str(tmp_path / "models" / "base")
    assert load_student(folder, teacher="~/models/base").backbone.family == "sdxl"
    (tmp_path / "models").rename(tmp_path / "moved")
    expected = (
        f"^there is no folder {tmp_path}/models/base; the student {folder} was distilled from the teacher "
        rf"{tmp_path}/models/base: if that has moved, give teacher=\.\.\. or --teacher \(of rmd eval: --base\)$"
    )
    with pytest.raises(RMDError, match=expected):
        load_student(folder)


def test_two_processes_cannot_write_one_student(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    backbone, recipe = tiny_sdxl(), recipes["lora"]
    state = distilled(backbone, recipe).state("student")
    with (
        locked(tmp_path, ".student.lock"),
        pytest.raises(RMDError, match=f"^another process is writing to {tmp_path}: wait until it has finished"),
    ):
        save_student(backbone, state, recipe, tmp_path / "student")
    save_student(backbone, state, recipe, tmp_path / "student")
    (tmp_path / "file").write_text("")
    with pytest.raises(RMDError, match=r"file is a file: a student needs a folder of its own$"):
        save_student(backbone, state, recipe, tmp_path / "file")


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_files_get_the_permissions_of_the_umask(mode: str, recipes: dict[str, Recipe], tmp_path: Path) -> None:
    backbone = tiny_sdxl()
    state = distilled(backbone, recipes[mode]).state("student")
    before = os.umask(0o027)
    try:
        folder = save_student(backbone, state, recipes[mode], tmp_path / "student")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o640}


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_student_that_is_not_finite_is_not_saved(mode: str, recipes: dict[str, Recipe], tmp_path: Path) -> None:
    backbone = tiny_sdxl()
    state = {name: value.clone() for name, value in distilled(backbone, recipes[mode]).state("student").items()}
    name = list(state)[3]
    state[name].view(-1)[-1] = math.inf
    with pytest.raises(RMDError, match=f"^this student is not saved: the tensor {name} holds values"):
        save_student(backbone, state, recipes[mode], tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_weights_that_are_not_finite_are_named(
    mode: str, part: str, copied: dict[str, Path], saved: dict[str, Path], tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(saved["lora"].parent / "teacher", tmp_path / "teacher"))
    folder = copied["full"] if mode == "full" else teacher
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RMDError, match=rf", {part}: the tensor \S+ holds values that are not finite"):
        load_student(copied[mode], teacher=teacher)
