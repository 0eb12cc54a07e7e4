"""A dry run meets and reports whatever is broken, even in one place only, before the run does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import TINY, recipe_of, t5_tokenizer
from helpers import PROMPTS, write_prompts
from torch import nn

from rmd.cli.dry_run import rehearse as dry_run
from rmd.common.errors import RMDError
from rmd.data.cache import build_cache
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.train import rehearsal
from rmd.train.loop import Trainer
from rmd.train.rehearsal import check_disk, check_place, check_prompts, check_student

LONG = " ".join(["a red ball"] * 20)


@pytest.fixture(scope="module", params=["pixart", "wan"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def teacher(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / family
    TINY[family]().pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(family: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    data = {"prompts": str(write_prompts(tmp_path))}
    return recipe_of(family, teacher, "lora", data=data, train={"iterations": 1}, method={"fake_updates": 1})


def rehearse(recipe: Recipe, break_it: Callable[[Trainer], object] = lambda trainer: None) -> list[str]:
    """Return what a dry run prints about a trainer that has been broken in one place; it leaves nothing behind."""
    trainer, said = Trainer(recipe, load_teacher(recipe), Path("run")), []
    break_it(trainer)
    try:
        dry_run(trainer, said.append)
    finally:
        assert list(Path().iterdir()) == []
    return said


def spoil(network: nn.Module, ending: str) -> None:
    """Set the weights whose names have the given ending to NaN."""
    with torch.no_grad():
        parameters = [parameter for name, parameter in network.named_parameters() if name.endswith(ending)]
        assert parameters
        for parameter in parameters:
            parameter.fill_(float("nan"))


def test_all_is_tried_and_said(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, LONG]))
    asked: list[nn.Module] = []

    def judge(student: nn.Module) -> dict[str, float]:
        asked.append(student)
        return {}

    *_, tried, size = rehearse(recipe, lambda trainer: setattr(trainer, "judge", judge))
    assert len(asked) == 1
    assert tried.startswith(f"tried: {len(PROMPTS) + 1} prompts tokenized, 1 of them cut at ")
    assert tried.endswith(
        "every step trained, pictures made, the judge called; the student was written and loaded again"
    )
    assert size == "1 iterations of batch 2 into run"


BROKEN: list[tuple[Callable[[Trainer], object], str]] = [
    (lambda t: spoil(t.backbone.pipe.vae.decoder, "conv_out.bias"), "the VAE decodes the student's samples to values"),
    (lambda t: spoil(t.backbone.text_encoders[-1], "final_layer_norm.weight"), "the text encoders return values that"),
    (lambda t: spoil(t.backbone.denoiser, "proj_out.bias"), "the student's loss or gradient is not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "sentence"), BROKEN, ids=["vae", "text encoder", "denoiser"])
def test_a_part_that_is_broken_is_met(break_it: Callable[[Trainer], object], sentence: str, recipe: Recipe) -> None:
    with pytest.raises(RMDError, match=f"^{sentence}"):
        rehearse(recipe, break_it)


def test_a_tokenizer_of_another_model_is_met(recipe: Recipe) -> None:
    other = t5_tokenizer()
    other.add_tokens(["sand"])
    with pytest.raises(
        RMDError, match=r"^tokenizer turns '.*sand' into token 30, but its text encoder knows 30 tokens"
    ):
        rehearse(recipe, lambda trainer: setattr(trainer.backbone.pipe, "tokenizer", other))


def test_a_prompt_that_no_tokenizer_reads_is_met(recipe: Recipe) -> None:
    def lone_surrogate(trainer: Trainer) -> None:
        trainer.prompts = type(trainer.prompts)([*PROMPTS, "half \ud83d of it"], 0)

    with pytest.raises(RMDError, match=r"^tokenizer\S* cannot read the prompt 'half "):
        rehearse(recipe, lone_surrogate)


def test_a_size_that_a_step_cannot_have_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TINY["sd3"]().pipe.save_pretrained(tmp_path / "teacher")  # whose positions end at 64 pixels
    data = {"prompts": str(write_prompts(tmp_path))}
    recipe = recipe_of("sd3", tmp_path / "teacher", "lora", data=data, plan={"sides": [16, 128]})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(RMDError, match=r"^stage 2 of 128x128 pixels is larger than this model's positions reach"):
        rehearse(recipe)


def test_a_student_whose_base_cannot_be_loaded_again_is_met(recipe: Recipe, teacher: Path, tmp_path: Path) -> None:
    gone = Path(shutil.copytree(teacher, tmp_path / "copy"))
    elsewhere = recipe.model_copy(update={"teacher": str(gone)})

    with pytest.raises(RMDError, match=r"vae holds no weights"):
        rehearse(elsewhere, lambda trainer: (gone / "vae" / "diffusion_pytorch_model.safetensors").unlink())


def test_prompts_that_are_not_in_the_cache_are_met(recipe: Recipe, tmp_path: Path) -> None:
    build_cache(load_teacher(recipe), PROMPTS, tmp_path / "cache", shard_prompts=2)
    data = recipe.data.model_copy(update={"cache": str(tmp_path / "cache")})
    cached = recipe.model_copy(update={"data": data})
    *_, tried, _ = rehearse(cached)
    assert tried.startswith(f"tried: {len(PROMPTS)} prompts found in the cache {tmp_path / 'cache'}, every step")
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "something else"]))
    with pytest.raises(RMDError, match=r"^1 of 5 prompts are not in the cache .*, the first of them 'something else'"):
        rehearse(cached)


def test_a_full_disk_is_met(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(recipe, load_teacher(recipe), Path("run"))
    numbers = sum(p.numel() for role in ("student", "fake") for p in trainer.roles.trainable(role))
    student = sum(p.numel() for p in trainer.roles.trainable("student"))
    needed = 12 * numbers + 4 * student + 4 * student  # weights and two moments, the average, and the student

    def left(count: int) -> Callable[[Any], SimpleNamespace]:
        return lambda path: SimpleNamespace(free=count)

    monkeypatch.setattr(rehearsal.shutil, "disk_usage", left(needed))
    assert check_disk(trainer).endswith("are free")
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", left(needed - 1))
    with pytest.raises(RMDError, match=r"^a checkpoint takes about .* MB are free where run is: free some space, or"):
        check_disk(trainer)


def test_large_students_are_not_written(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(recipe, load_teacher(recipe), Path("run"))
    assert check_prompts(trainer).startswith("4 prompts tokenized")
    monkeypatch.setattr(rehearsal, "MOST_RELOADED", 10)
    assert check_student(trainer).startswith("the student was not written and loaded again (0.")


def test_where_a_run_may_lie(tmp_path: Path) -> None:
    assert check_place(tmp_path / "a" / "b") == tmp_path
    assert check_place(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(RMDError, match=r"/file is a file; choose another --out$"):
        check_place(tmp_path / "file" / "run")
