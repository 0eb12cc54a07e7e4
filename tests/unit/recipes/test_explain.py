"""One sentence for every invalid recipe, which names the key, where it is set, and what it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.recipes.explain import RENAMED
from rmd.recipes.schema import Recipe, load_recipe, to_yaml

# An override of the scenes recipe at uniform times, and the sentence that follows `override ...: `.
PROBLEMS = [
    ("plan.stpes=3", "there is no key plan.stpes; did you mean plan.steps?"),
    ("steps=3", "there is no key steps; did you mean plan.steps?"),
    ("optim.LR_student=3", "there is no key optim.LR_student; did you mean optim.student_lr?"),
    ("lr=3", "there is no key lr; did you mean optim.student_lr?"),
    ("optm.student_lr=3", "there is no key optm; did you mean optim?"),
    ("train.qqq=3", "there is no key train.qqq; train has iterations, batch_size, seed, "),
    ("qqq=3", "there is no key qqq; a recipe has extends, version, name, "),
    ("noise.beta_strat=3", "there is no key noise.beta_strat; did you mean noise.beta_start?"),
    ("noise.shift=3", "noise.shift does not go with noise of kind vp"),
    ("method.adversarial=1", "method.adversarial does not go with method rmd"),
    ("method.name=tmd", "method.name should be 'rmd', 'tdm' or 'dmd2', but is 'tmd'"),
    ("method.name=stagewise", "method.name=stagewise is now rmd with method.matching=own: use these"),
    ("method.name=5", "method.name should be 'rmd', 'tdm' or 'dmd2', but is 5"),
    ("method.qqq=5", "there is no key method.qqq; method has name, guidance, fake_updates, order, metric, weight, "),
    ("method.gudance=5", "there is no key method.gudance; did you mean method.guidance?"),
    ("method=5", "method should be a group of keys, but is 5"),
    ("noise.kind=fow", "noise.kind should be vp or flow, but is 'fow'"),
    ("noise=5", "noise should be `teacher` or a group of keys, but is 5"),
    ("noise=techer", "noise should be `teacher` or a group of keys, but is 'techer'"),
    ("noise.kind=5", "noise.kind should be vp or flow, but is 5"),
    ("noise.kind=teacher", "noise.kind should be vp or flow, but is 'teacher'"),
    ("plan.steps=abc", "plan.steps should be a whole number, but is 'abc'"),
    ("plan.steps='4'", "plan.steps should be a whole number, but is '4'"),
    ("plan.steps=4.0", "plan.steps should be a whole number, but is 4.0"),
    ("plan.steps=true", "plan.steps should be a whole number, but is true"),
    ("plan.steps=", "plan gives no steps: set steps, times or split"),
    (
        "plan={times: [1000], steps: 2}",
        "plan has 1 steps by times, but 2 by steps: change one of them",
    ),
    (
        "plan={times: [1000], cross_at: {sigma: [0.8]}}",
        "plan gives the times of its steps by times and by cross_at: leave out one of them",
    ),
    (
        "plan={split: [2, 2], thresholds: [0]}",
        "plan divides its steps by split and by thresholds: leave out one of them",
    ),
    (
        "plan.cross_at={sigma: [0.8]}",
        "plan has cross_at but no split: give the number of steps of each stage, such as [2",
    ),
    ("plan.cross_at={}", "plan needs either sigma or logsnr in cross_at"),
    ("plan.steps=0", "plan.steps should be greater than 0, but is 0"),
    ("plan.thresholds=-2.5", "plan.thresholds should be a list, but is -2.5"),
    ("plan.thresholds=[-2.5, a]", "plan.thresholds[1] should be a number, but is 'a'"),
    ("plan.thresholds=[-.inf]", "plan.thresholds[0] should be a finite number, but is -inf"),
    ("plan.sides=[]", "plan.sides should be a list of at least 1, but is []"),
    (
        "plan.sides=[32, 64x]",
        "plan.sides[1] should be a side in pixels (512), [height, width] or HEIGHTxWIDTH, ",
    ),
    ("plan.map=rise", "plan.map should be 'raise', 'vp', 'lower' or 'none', but is 'rise'"),
    ("plan.grid_end=1", "plan.grid_end should be less than 1.0, but is 1"),
    ("crossing.beta=1.5", "crossing.beta should be at most 1.0, but is 1.5"),
    ("crossing.train_beta=-1", "crossing.train_beta should be at least 0.0, but is -1"),
    ("optim=3", "optim should be a group of keys, but is 3"),
    ("optim.student_lr=.nan", "optim.student_lr should be a finite number, but is nan"),
    ("optim.betas=[0.9]", "optim.betas[1] is missing"),
    ("optim.betas=[0, 0.9, 0.9]", "optim.betas should be a list of at most 2, but is [0, 0.9, 0.9]"),
    ("data.prompts=''", "data.prompts should be text that is not empty, but is ''"),
    ("name=a/b", "name should be a name without slashes, because the run's folder is called so, but is 'a/b'"),
    ("version=2", "version should be 1, but is 2: update RMD to read this recipe"),
    ("version=0", "version should be 1, but is 0"),
    ("noise.rescale_betas_zero_snr=1", "noise.rescale_betas_zero_snr should be true or false, but is 1"),
]


@pytest.mark.parametrize(("override", "sentence"), PROBLEMS, ids=[override for override, _ in PROBLEMS])
def test_one_sentence_for_a_wrong_value(override: str, sentence: str) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", ["plan.steps=4", "plan.thresholds=[-2.5]", override])
    message = str(caught.value)
    assert message.startswith(f"override {override}: {sentence}")
    assert "\n" not in message and "pydantic" not in message


def test_a_long_value_is_cut() -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", ["plan.map=" + "x" * 500])
    assert len(str(caught.value).partition("but is ")[2]) == 60


def test_an_unknown_key_comes_first_and_the_rest_is_counted() -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", ["plan.steps=no", "train.seed=no", "train.sead=1"])
    sentence = "override train.sead=1: there is no key train.sead; did you mean train.seed? (and 2 more)"
    assert str(caught.value) == sentence


def test_the_file_that_sets_the_value_is_named(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("extends: scenes\nplan: {steps: many}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nname: child\n")
    with pytest.raises(RMDError, match=r"^parent\.yaml: plan\.steps should be a whole number, but is 'many'$"):
        load_recipe(str(tmp_path / "child.yaml"))


def test_a_missing_key_is_reported_for_the_recipe_itself(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("extends: base\nfamily: x\nteacher: x\nplan: {steps: 1, sides: [8]}\n")
    path = str(tmp_path / "bare.yaml")
    with pytest.raises(RMDError, match=r"^bare\.yaml: method\.guidance is missing$"):
        load_recipe(path)
    with pytest.raises(RMDError, match=r"^override noise={}: noise\.kind is missing; it is vp or flow$"):
        load_recipe(path, ["noise={}", "method.guidance=1"])


def test_a_recipe_of_a_later_version_needs_a_later_rmd(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(load_recipe("scenes")).replace("version: 1", "version: 2") + "unheard: 1\n")
    with pytest.raises(
        RMDError, match=r"recipe\.yaml.*: version should be 1, but is 2: update RMD to read this recipe$"
    ):
        load_recipe(str(path))


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", [f"{old}=1"])
    assert str(caught.value) == f"override {old}=1: {old} is now called {new}: use the new name"
    group, _, key = old.partition(".")
    (tmp_path / "old.yaml").write_text(f"extends: scenes\n{group}: {{{key}: 1}}\n")
    with pytest.raises(RMDError, match=rf"^old\.yaml: {old} is now called {new}: use the new name$"):
        load_recipe(str(tmp_path / "old.yaml"))
    group, _, key = new.partition(".")
    groups = {name: field.annotation for name, field in Recipe.model_fields.items()}
    assert key in groups[group].model_fields  # type: ignore[union-attr]
