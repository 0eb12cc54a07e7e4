"""Recipe files are found, extend one another, and are overridden."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.recipes.layers import Layer, merge, origin, read_layers, recipe_names
from rmd.recipes.schema import FlowNoise, load_recipe


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_extends_a_packaged_recipe_key_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: sdxl\noptim: {student_lr: 1e-6}\nplan: {sides: [512, 768]}\n")
    mine, theirs = load_recipe(path), load_recipe("sdxl")
    assert mine.name == "mine"
    assert mine.optim == theirs.optim.model_copy(update={"student_lr": 1e-6})
    assert mine.plan == theirs.plan.model_copy(update={"sides": ((512, 512), (768, 768))})


def test_another_kind_of_noise_replaces_the_extended_one(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes\nnoise: {kind: flow, shift: 3.0}\n")
    mine, theirs = load_recipe(path), load_recipe("scenes")
    assert mine.noise == FlowNoise(kind="flow", shift=3.0)
    assert mine.model_copy(update={"noise": theirs.noise, "name": "scenes"}) == theirs
    same = write(tmp_path, "same.yaml", "extends: scenes\nnoise: {kind: vp, beta_end: 0.02}\n")
    assert load_recipe(same).noise.model_dump() == {**theirs.noise.model_dump(), "beta_end": 0.02}
    assert load_recipe("scenes", ["noise.kind=flow"]).noise == FlowNoise(kind="flow")


def test_the_teachers_noise_replaces_one_that_is_spelt_out_and_is_replaced_by_one(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes\nnoise: teacher\n")
    assert load_recipe(path).noise == "teacher"
    assert load_recipe("scenes", ["noise=teacher"]).noise == "teacher"
    assert load_recipe(path, ["noise={kind: flow, shift: 2.0}"]).noise == FlowNoise(kind="flow", shift=2.0)
    assert load_recipe(path, ["noise.kind=flow", "noise.shift=2.0"]).noise == FlowNoise(kind="flow", shift=2.0)
    with pytest.raises(RMDError, match=r"noise\.kind is missing; it is vp or flow"):
        load_recipe(path, ["noise.shift=2.0"])


@pytest.mark.parametrize("name", ["tdm", "dmd2"])
def test_another_method_keeps_the_inherited_settings_that_it_has(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", f"extends: scenes\nmethod: {{name: {name}, tau: all}}\n")
    overridden = load_recipe("scenes", [f"method.name={name}", "method.tau=all"]).method
    method, inherited = load_recipe(path).method, dict(load_recipe("scenes").method)
    assert method == overridden
    kept = {key: value for key, value in inherited.items() if key in dict(method)}
    assert dict(method) == {**dict(method), **kept, "name": name, "tau": "all"}
    assert kept["fake_weight"] == "snr_plus_one" and "warmup_steps" not in kept


@pytest.mark.parametrize("key", ["warmup_steps=0", "stage_draws=[1]", "tau_noise=fresh", "adversarial=0.5"])
def test_keys_that_a_method_lacks_are_refused_in_the_same_layer_and_later(key: str, tmp_path: Path) -> None:
    name = key.partition("=")[0]
    sentence = rf"method\.{name} does not go with method tdm"
    with pytest.raises(RMDError, match=sentence):
        load_recipe("scenes", ["method.name=tdm", f"method.{key}"])
    with pytest.raises(RMDError, match=sentence):
        load_recipe("scenes", [f"method={{name: tdm, {key.replace('=', ': ')}}}"])
    path = write(tmp_path, "mine.yaml", "extends: scenes\nmethod: {name: tdm}\n")
    with pytest.raises(RMDError, match=sentence):
        load_recipe(path, [f"method.{key}"])


@pytest.mark.parametrize(
    ("over", "kept"),
    [
        ({"steps": 6}, {"steps": 6, "grid_end": 0.1, "thresholds": [-2.5]}),
        ({"times": [1000, 500]}, {"times": [1000, 500], "thresholds": [-2.5]}),
        ({"split": [2, 2]}, {"grid_end": 0.1, "split": [2, 2]}),
        ({"cross_at": {"sigma": [0.8]}}, {"steps": 4, "cross_at": {"sigma": [0.8]}, "grid_end": 0.1}),
        ({"times": None}, {"steps": 4, "times": None, "grid_end": 0.1, "thresholds": [-2.5]}),
        ({"map": "none"}, {"steps": 4, "grid_end": 0.1, "thresholds": [-2.5], "map": "none"}),
    ],
)
def test_a_layer_drops_what_the_layers_below_say_in_another_way(
    over: dict[str, object], kept: dict[str, object]
) -> None:  # fmt: skip
    under = {"plan": {"steps": 4, "grid_end": 0.1, "thresholds": [-2.5]}, "name": "a"}
    assert merge([Layer("under", under), Layer("over", {"plan": over})]) == {"plan": kept, "name": "a"}
    assert under["plan"] == {"steps": 4, "grid_end": 0.1, "thresholds": [-2.5]}


def test_a_level_in_the_other_unit_replaces_the_one_below() -> None:
    """Recipe `sdxl` crosses at a sigma, so a logSNR on top of it must not leave both."""
    under = {"plan": {"cross_at": {"sigma": [0.8]}}}
    over = {"plan": {"cross_at": {"logsnr": [-3.0]}}}
    assert merge([Layer("under", under), Layer("over", over)]) == over
    assert load_recipe("sdxl", ["plan.cross_at={logsnr: [-3.0]}"]).plan.cross_at.sigma == ()


def test_both_ways_in_one_layer_stay_and_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes-paper\nplan: {steps: 4, times: [1000, 500]}\n")
    with pytest.raises(RMDError, match="plan has 2 steps by times, but 4 by steps: change one of them"):
        load_recipe(path)


def test_times_and_crossings_can_be_given_on_top_of_a_packaged_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes\nplan: {cross_at: {sigma: [0.8]}, split: [2, 2]}\n")
    overrides = ["plan.split=[2, 2]", "plan.cross_at={sigma: [0.8]}"]
    crossed = load_recipe("scenes", overrides).build_plan()
    assert load_recipe(path).build_plan() == crossed == load_recipe("scenes", overrides[::-1]).build_plan()
    times = [step.teacher_time for step in crossed.steps]
    assert load_recipe(path, [f"plan.times={times}"]).build_plan() == crossed
    # The same level in the other unit: sigma 0.8 is a logSNR of 2 log(0.2 / 0.8).
    assert load_recipe("scenes", ["plan.split=[2, 2]", "plan.cross_at={logsnr: [-2.772589]}"]).build_plan() == crossed
    # Back to uniform times and thresholds.
    usual = load_recipe("scenes-paper", ["plan.map=lower", "crossing={rule: block, beta: 0.2}"])
    assert load_recipe(path, ["plan.steps=4", "plan.thresholds=[-2.5]"]).build_plan() == usual.build_plan()


def test_a_misspelt_key_is_refused_although_the_method_changes_later() -> None:
    with pytest.raises(RMDError, match=r"there is no key method\.wramup_steps"):
        load_recipe("scenes", ["method.wramup_steps=3", "method.name=tdm"])


def test_a_file_extends_another_relative_to_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path, "parent.yaml", "extends: scenes\nname: ours\ntrain: {seed: 7}\n")
    child = write(tmp_path, "deeper/child.yml", "extends: ../parent.yaml\ntrain: {iterations: 3}\n")
    recipe = load_recipe(child)
    assert (recipe.name, recipe.train.seed, recipe.train.iterations) == ("child", 7, 3)


def test_layers_come_root_first_and_the_last_one_wins() -> None:
    layers = read_layers("sdxl-1+1+2", ["train.seed=1", "train={seed: 2, iterations: 9}"])
    assert [layer.label for layer in layers[:3]] == ["base.yaml", "sdxl.yaml", "sdxl-1+1+2.yaml"]
    train = load_recipe("sdxl-1+1+2", ["train.seed=1", "train={seed: 2, iterations: 9}"]).train
    assert (train.seed, train.iterations, train.batch_size) == (2, 9, 32)


leaves = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.lists(st.integers(), max_size=2))
trees = st.recursive(leaves, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(mappings, mappings)
def test_merging_changes_no_layer_and_is_idempotent(under: dict[str, object], over: dict[str, object]) -> None:
    before = repr((under, over))
    layers = [Layer("under", under), Layer("over", over)]
    merged = merge(layers)
    assert merge([*layers, layers[-1]]) == merged
    for value in merged.values():
        if isinstance(value, dict):
            value["a"] = "changed"
    assert repr((under, over)) == before


@given(mappings, mappings)
def test_every_value_of_the_last_layer_takes_effect(under: dict[str, object], over: dict[str, object]) -> None:
    def holds(given: dict[str, object], merged: dict[str, object]) -> bool:
        return all(
            holds(value, merged[key])  # type: ignore[arg-type]
            if isinstance(value, dict)
            else merged[key] == value
            for key, value in given.items()
        )

    merged = merge([Layer("under", under), Layer("over", over)])
    assert holds(over, merged)
    assert set(merged) == set(under) | set(over)


def test_origin_is_the_last_layer_with_the_key_or_else_the_file() -> None:
    layers = [
        Layer("base.yaml", {"a": {"x": 1}}),
        Layer("mine.yaml", {"a": {"y": 1}}),
        Layer("override a.x=2", {"a": {"x": 2}}),
    ]
    assert origin(layers[:2], ["a", "x"]) == "base.yaml"
    assert origin(layers, ["a", "x"]) == "override a.x=2"
    assert origin(layers, ["a", "missing"]) == "mine.yaml"


def test_a_number_in_scientific_notation_needs_no_dot(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes\noptim: {student_lr: 1e-5, fake_lr: 2.5E-4}\n")
    optim = load_recipe(path, ["optim.weight_decay=1e-2"]).optim
    assert (optim.student_lr, optim.fake_lr, optim.weight_decay) == (1e-5, 2.5e-4, 0.01)


def test_text_that_resembles_a_number_stays_text() -> None:
    assert load_recipe("scenes", ["name=2e"]).name == "2e"
    assert load_recipe("scenes", ["name=v1e-5"]).name == "v1e-5"


# What is wrong with a file, and the sentence about it.
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "bad.yaml is empty; a recipe needs at least `extends: base` and its own values"),
        ("- 1\n- 2\n", "bad.yaml: expected `key: value` lines, but it holds [1, 2]"),
        ("a: [1\nb: 2\n", "bad.yaml, line 2: this is not YAML: expected ',' or ']', but got ':'"),
        (
            "extends: scenes\nname: a\nname: b\n",
            "bad.yaml, line 3: the key name appears twice",
        ),
        (
            "extends: [sdxl]\n",
            "bad.yaml: extends should be the name or the path of one recipe, but is ['sdxl']",
        ),
        ("extends: bad.yaml\n", "recipes extend each other in a circle: bad.yaml extends bad.yaml"),
        ("a: \x07\n", "bad.yaml, line 1: this is not YAML: it must not contain the character U+0007"),
    ],
)
def test_one_sentence_for_a_bad_file(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError) as caught:
        read_layers(write(tmp_path, "bad.yaml", text))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_longer_circle_names_every_file_on_it(tmp_path: Path) -> None:
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    start = write(tmp_path, "start.yaml", "extends: a.yaml\n")
    with pytest.raises(RMDError, match=r"in a circle: a\.yaml extends b\.yaml extends a\.yaml$"):
        read_layers(start)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RMDError, match=r"latin\.yaml cannot be read: line 1 is not UTF-8 text$"):
        read_layers(str(path))


def test_a_missing_file_and_a_folder_say_what_to_do(tmp_path: Path) -> None:
    for path in (f"{tmp_path}{os.sep}none.yaml", str(tmp_path)):
        with pytest.raises(RMDError, match=r"there is no recipe file .*; check the path, or use one of flux, pixart, "):
            read_layers(path)


def test_an_unknown_name_offers_the_nearest_and_lists_all() -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("sdlx")
    assert str(caught.value).startswith("there is no recipe 'sdlx' (did you mean 'sdxl'?); the recipes are ")
    assert all(name in str(caught.value) for name in recipe_names())


@pytest.mark.parametrize("name", ["", "zzz"])
def test_an_unknown_name_far_from_all_lists_them(name: str) -> None:
    with pytest.raises(RMDError, match=rf"^there is no recipe '{name}'; the recipes are flux, pixart, pixart-lora, "):
        load_recipe(name)


@pytest.mark.parametrize("override", ["train.seed", "=1", "train..seed=1", ".=1"])
def test_an_override_without_key_or_value(override: str) -> None:
    with pytest.raises(RMDError, match="should look like key=value, for example"):
        load_recipe("scenes", [override])


def test_extends_is_refused_as_an_override() -> None:
    with pytest.raises(RMDError, match=r"^extends can only be used in a recipe file"):
        load_recipe("scenes", ["extends=sdxl"])


TEXTS = ["/models/m #2", "my model: v1", "[x]", "{a", "~", "yes", "1e3", "null", "12", "it's", "'a' b'", "- x"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["teacher", "data.prompts", "data.column"])
def test_a_text_setting_is_taken_literally(key: str, text: str) -> None:
    recipe = load_recipe("scenes", [f"{key}={text}"])
    assert (recipe.data.model_dump() | {"teacher": recipe.teacher})[key.removeprefix("data.")] == text


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'/a b/p.txt'", "/a b/p.txt"),
        ('"a\\u00e9"', "a\u00e9"),
        ("'it''s'", "it's"),
        ("  /a b  ", "/a b"),
        ("' a '", " a "),
    ],
)
def test_quotes_around_a_text_setting_are_removed(written: str, text: str) -> None:
    assert load_recipe("scenes", [f"data.prompts={written}"]).data.prompts == text


def test_an_empty_value_clears_a_text_setting(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes\ndata: {column: caption, cache: c}\n")
    data = load_recipe(path, ["data.column=", "data.cache=''"]).data
    assert (data.column, data.cache) == (None, "")
    with pytest.raises(RMDError, match=r"^override teacher=: teacher should be text, but is empty$"):
        load_recipe("scenes", ["teacher="])


def test_the_values_of_other_settings_are_yaml() -> None:
    recipe = load_recipe("scenes", ["plan.map=none # as in DMD2", "train.seed=0x10", "data.exclude=[a, 'b: c']"])
    assert (recipe.plan.map, recipe.train.seed, recipe.data.exclude) == ("none", 16, ("a", "b: c"))


@pytest.mark.parametrize("key", ["noise", "nonsense", "plan", "teacher.x", "noise.kind"])
def test_only_text_settings_are_taken_literally(key: str) -> None:
    with pytest.raises(RMDError, match="this is not YAML: "):
        load_recipe("scenes", [f"{key}=a: b: c"])


@pytest.mark.parametrize(
    "text",
    ['name: "a\\0b"', 'teacher: "a\\nb"', 'data: {exclude: [ok, "\\ud800"]}', '"a\\x1b": 1', "name: \x7f"],
)
def test_control_characters_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe(write(tmp_path, "bad.yaml", f"extends: scenes\n{text}\n"))
    assert re.match(r"bad\.yaml.* (holds|not contain) the character U\+[0-9A-F]{4}", str(caught.value))


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b", "x" * 201])
def test_a_name_that_is_not_a_valid_folder_name(name: str) -> None:
    with pytest.raises(RMDError, match=r"name should be (a name without slashes|text of at most 200 characters)"):
        load_recipe("scenes", [f"name={name}"])


def test_a_chain_of_a_thousand_recipes(tmp_path: Path) -> None:
    for i in range(1000):
        write(tmp_path, f"r{i}.yaml", f"extends: r{i + 1}.yaml\n")
    with pytest.raises(RMDError, match=r"^r0\.yaml extends more than 19 recipes, one after another: use fewer$"):
        read_layers(str(tmp_path / "r0.yaml"))


def test_files_that_are_not_recipes(tmp_path: Path) -> None:
    pipe, large, endless = tmp_path / "pipe.yaml", tmp_path / "large.yaml", tmp_path / "endless.yaml"
    os.mkfifo(pipe)
    large.write_text("a: 1\n" * 300_000, encoding="utf-8")
    endless.symlink_to("/dev/zero")
    for path, sentence in (
        (pipe, "is not an ordinary file"),
        (endless, "is not an ordinary file"),
        (large, "is too large to be"),
    ):
        with pytest.raises(RMDError, match=sentence):
            read_layers(str(path))


@pytest.mark.parametrize("name", ["x" * 5000, "./" + "x" * 5000, "./a\0b", "~nobody-is-called-so/x.yaml", "\udce9/x"])
def test_names_that_cannot_be_a_recipes(name: str) -> None:
    with pytest.raises(RMDError) as caught:
        read_layers(name)
    assert len(str(caught.value)) < 700  # most of it is the list of the packaged recipes


@pytest.mark.parametrize(
    "override",
    ["x" * 100_000, "plan.steps=[" + "1, " * 30_000 + "]", "a" * 50_000 + "=1", "." * 50_000 + "=1", "a." * 50_000],
)
def test_a_long_override_makes_a_short_sentence(override: str) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", [override])
    assert len(str(caught.value)) < 700  # most of it is the list of the packaged recipes
