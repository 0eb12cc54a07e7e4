"""A recipe's noise is its teacher's: either read from the teacher, or compared with it to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from families import TINY, recipe_of, tiny_sd3, tiny_wan
from helpers import write_prompts

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.core.noise import schedule_from_config
from rmd.models import Backbone
from rmd.models.resolve import noise_of, resolve_noise
from rmd.models.teacher import check_teacher, teacher_source
from rmd.recipes.hashes import run_hash
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise, load_recipe, to_yaml
from rmd.train.loop import Trainer
from rmd.worlds.assets import TEACHERS

WRITTEN_BY_DIFFUSERS = [
    {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": 500, "trained_betas": None},
    {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
    {"_class_name": "DDPMScheduler", "beta_schedule": "cosine"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.16, "num_train_timesteps": 500},
    dict(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).config),
]


@pytest.mark.parametrize("config", WRITTEN_BY_DIFFUSERS, ids=range(len(WRITTEN_BY_DIFFUSERS)))
def test_the_noise_read_from_a_scheduler_gives_its_schedule_to_the_last_bit(config: dict[str, Any]) -> None:
    config.setdefault("_class_name", "UniPCMultistepScheduler")
    noise, exact = noise_of(config), schedule_from_config(config)
    ours, times = noise.schedule(), torch.linspace(0, 1000, 2001, dtype=torch.float64)
    assert (ours.kind, ours.shift, ours.train_steps) == (exact.kind, exact.shift, exact.train_steps)
    assert torch.equal(ours.alpha(times), exact.alpha(times)) and torch.equal(ours.sigma(times), exact.sigma(times))


def test_a_scheduler_with_listed_betas_is_refused() -> None:
    with pytest.raises(RMDError, match="its scheduler lists its betas one by one"):
        noise_of({"beta_schedule": "linear", "trained_betas": [0.1, 0.2]})


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_the_packaged_recipes_have_their_teachers_noise(name: str) -> None:
    recipe = load_recipe(name)
    assert resolve_noise(recipe) is recipe
    left = load_recipe(name, ["noise=teacher"])
    with pytest.raises(RMDError, match=r"has not been read: resolve_noise\(recipe\) returns"):
        left.build_plan()
    assert resolve_noise(left) == recipe
    assert run_hash(resolve_noise(left)) == run_hash(recipe)


@pytest.mark.heavy
def test_a_recipe_without_noise_takes_the_teachers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = tiny_sd3(shift=3.16)
    backbone.pipe.save_pretrained(tmp_path / "teacher")
    recipe = recipe_of("sd3", tmp_path / "teacher", "lora", train={"iterations": 1})
    text = to_yaml(recipe)
    start, end = text.index("noise:"), text.index("plan:")
    path = tmp_path / "mine.yaml"
    path.write_text(text[:start] + text[end:].replace("prompts.txt", str(write_prompts(tmp_path))))
    assert load_recipe(str(path)).noise == "teacher"
    assert main(["plan", str(path)]) == 0
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 0
    trained = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert trained.noise == FlowNoise(kind="flow", shift=3.16)
    plan = json.loads((tmp_path / "run" / "student" / "rmd_config.json").read_text())["plan"]
    assert [step["teacher_time"] for step in plan["steps"]] == list(backbone.schedule.grid(4))


def test_a_trainer_takes_the_noise_of_the_backbone_it_is_given(tmp_path: Path) -> None:
    recipe = recipe_of("sd3", tmp_path, "lora", data={"prompts": str(write_prompts(tmp_path))})
    left = recipe.model_copy(update={"noise": "teacher"})
    trainer = Trainer(left, tiny_sd3(), tmp_path / "run")
    assert trainer.recipe == recipe and trainer.identity.run_hash == run_hash(recipe)


def test_a_teacher_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    for teacher, sentence in {
        str(tmp_path): r"there is no file .*scheduler_config\.json",
        "~/no/such/folder": "there is no folder .*/no/such/folder",
        "no/model": "no/model is neither a folder nor in the cache of the Hub, and the Hub cannot be reached",
        "no/such/thing": "there is no folder no/such/thing",
    }.items():
        recipe = load_recipe("sd35", [f"teacher={teacher}", "noise=teacher"])
        with pytest.raises(
            RMDError, match=rf"^noise is the teacher's, .*: {sentence}.*; or spell the noise out in the recipe"
        ):
            resolve_noise(recipe)


def told(recipe: Recipe, backbone: Backbone, changes: dict[str, Any], sentence: str) -> None:
    noise = recipe.noise.model_copy(update=changes)  # type: ignore[union-attr]  # these recipes spell it out
    with pytest.raises(
        RMDError, match=rf"^the recipe's noise is not that of the teacher .*: {sentence}; set `noise: te"
    ):
        check_teacher(recipe.model_copy(update={"noise": noise}), backbone)


def test_every_key_of_the_noise_is_compared_and_named(tmp_path: Path) -> None:
    flow, vp = tiny_sd3(shift=3.16), TINY["pixart"]()
    recipe = recipe_of("sd3", tmp_path, "lora")
    own = recipe.model_copy(update={"noise": FlowNoise(kind="flow", shift=3.16)})
    check_teacher(own, flow)
    check_teacher(own.model_copy(update={"noise": "teacher"}), flow)
    told(own, flow, {"shift": 1.0}, r"noise\.shift is 1\.0, and the teacher's is 3\.16")
    told(own, flow, {"num_train_timesteps": 500}, r"noise\.num_train_timesteps is 500, and the teacher's is 1000")
    recipe = recipe_of("pixart", tmp_path, "lora")
    check_teacher(recipe, vp)
    for key, ours, theirs in [
        ("beta_start", 1.0001e-4, 1e-4), ("beta_end", 0.0200001, 0.02), ("rescale_betas_zero_snr", True, False),
        ("beta_schedule", "scaled_linear", "linear"), ("num_train_timesteps", 999, 1000),
    ]:  # fmt: skip
        told(recipe, vp, {key: ours}, rf"noise\.{key} is {ours}, and the teacher's is {theirs}")
    with pytest.raises(RMDError, match=r"noise\.kind is flow, and the teacher's is vp"):
        check_teacher(recipe.model_copy(update={"noise": FlowNoise(kind="flow")}), vp)


def test_the_grid_of_times_may_have_its_own_shift(tmp_path: Path) -> None:
    recipe = recipe_of("wan", tmp_path, "lora", plan={"shift": 5.0})
    assert recipe.noise == FlowNoise(kind="flow", shift=3.0)
    times = tuple(step.teacher_time for step in recipe.build_plan().steps)
    assert times == schedule_from_config({"shift": 5.0}).grid(4)
    check_teacher(recipe, tiny_wan(shift=3.0))
    check_teacher(recipe, tiny_wan(shift=7.0))  # the teacher's shift does not matter then
    vp = recipe.model_copy(update={"noise": VPNoise(kind="vp")})
    with pytest.raises(RMDError, match=r"^plan\.shift is for noise of kind flow"):
        vp.build_plan()


def test_a_teachers_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert teacher_source("owner/model") == Path("owner/model")  # the folder, not the repository of the same name
    assert teacher_source("~/owner/model") == tmp_path / "owner" / "model"
    assert teacher_source("another/model") == "another/model"


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(RMDError, match=r"^the teacher's name is empty: give a folder"):
        teacher_source("")
