"""The settings of methods: each has its own keys, and other packages add methods with settings of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from rmd.common.errors import RMDError
from rmd.recipes.hashes import run_hash, settings_hash
from rmd.recipes.methods import (
    METHODS,
    CascadeConfig,
    DMD2Config,
    MethodConfig,
    RMDConfig,
    TDMConfig,
    method_config,
    method_keys,
)
from rmd.recipes.schema import Recipe, load_recipe, to_yaml

SHARED = {"name", "guidance", "fake_updates", "order", "metric", "weight", "tau", "fake_weight", "snr_cap"}
SHARED |= {"weight_floor", "tau_offset", "tau_spacing", "tau_shift"}
STAGES = {
    "guidance_tau",
    "stage_guidance",
    "matching",
    "own_share",
    "tau_noise",
    "stage_weights",
    "warmup_steps",
    "stage_draws",
}


@pytest.mark.parametrize(
    ("name", "config", "own"),
    [
        ("rmd", RMDConfig, STAGES),
        ("tdm", TDMConfig, set()),
        ("dmd2", DMD2Config, {"adversarial", "adversarial_fake"}),
    ],
)
def test_every_method_has_the_keys_that_have_an_effect_in_it(name: str, config: Any, own: set[str]) -> None:
    assert method_config(name) is config is METHODS.get(name).Config
    assert method_keys(name) == SHARED | own
    assert isinstance(load_recipe("scenes", [f"method.name={name}"]).method, config)


@pytest.mark.parametrize("name", ["", "RMD", "mine", None, 5, ["rmd"], {}])
def test_other_names_have_no_settings(name: object) -> None:
    assert method_config(name) is None and method_keys(name) == set()


def test_a_recipe_without_a_name_trains_by_rmd() -> None:
    values = load_recipe("scenes").model_dump()
    del values["method"]["name"]
    assert Recipe.model_validate(values).method == load_recipe("scenes").method


def test_only_the_adversarial_loss_needs_images() -> None:
    settings = ([], ["method.name=dmd2"], ["method.name=dmd2", "method.adversarial=0.1"])
    needs = [load_recipe("scenes", overrides).method.needs_images for overrides in settings]
    assert needs == [False, False, True]


class Mine(MethodConfig):
    """Settings of a method of another package."""

    name: Literal["mine"] = "mine"
    strength: Annotated[float, Field(ge=0, le=10)] = 0.5
    words: str | None = None


class MyMethod:
    """The least that a recipe needs of another package's method."""

    Config = Mine


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_loaded", dict(METHODS._loaded))
    METHODS.register("mine", MyMethod)  # type: ignore[arg-type]  # only its settings matter here


@pytest.mark.usefixtures("registered")
def test_another_packages_method_brings_its_own_settings() -> None:
    overrides = ["method.name=mine", "method.strength=2", "method.words=a"]
    recipe = load_recipe("scenes", overrides)
    assert recipe.method == Mine(guidance=3.0, strength=2.0, words="a")
    assert "  strength: 2.0\n" in to_yaml(recipe)
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe and run_hash(again) == run_hash(recipe)
    assert run_hash(recipe) != run_hash(load_recipe("scenes", [*overrides, "method.strength=3"]))
    assert not isinstance(recipe.method, CascadeConfig)


@pytest.mark.usefixtures("registered")
def test_the_name_of_another_packages_method_is_part_of_the_hash() -> None:
    mine = load_recipe("scenes", ["method={name: mine, guidance: 3.0}"])
    rmd = load_recipe("scenes", ["method={warmup_steps: 0, fake_weight: snr}"])
    assert run_hash(mine) != run_hash(rmd) and settings_hash(mine) != settings_hash(rmd)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("method.strength=11", "method.strength should be at most 10.0, but is 11"),
        ("method.strenght=1", "there is no key method.strenght; did you mean method.strength?"),
        ("method.tau=all", "method.tau does not go with method mine"),
        ("method.name=min", "method.name should be 'rmd', 'tdm', 'dmd2' or 'mine', but is 'min'"),
    ],
)
def test_the_settings_of_another_packages_method_are_checked(override: str, sentence: str) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", ["method.name=mine", override])
    assert str(caught.value) == f"override {override}: {sentence}"


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("config", [None, object, dict])
def test_a_method_without_settings_is_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MyMethod, "Config", config)
    with pytest.raises(RMDError, match=r"^the method 'mine' has no settings: its class needs an attribute Config"):
        load_recipe("scenes", ["method.name=mine"])
