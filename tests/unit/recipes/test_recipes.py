"""The packaged recipes against the paper, and how recipe files are found, extended and overridden."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.recipes import PACKAGED, Layer, merge, origin, read_layers, recipe_names
from rmd.recipes.schema import FlowNoise, load_recipe, to_yaml

NAMES = [
    "pixart", "pixart-lora", "pixart-sigma", "pixart-sigma-lora", "scenes", "scenes-pixart", "scenes-sd3", "scenes-wan",
    "sd35", "sd35-full", "sdxl", "sdxl-1+1+2", "sdxl-1+2+1", "sdxl-2+1+1", "sdxl-full",
    "wan21-1.3b-3+3", "wan21-1.3b-full", "wan21-14b",
    "wan21-14b-2+2+2", "wan21-14b-3+3", "wan21-14b-4+2", "wan21-14b-full",
]  # fmt: skip


def split(name: str, *overrides: str) -> list[int]:
    plan = load_recipe(name, overrides).build_plan()
    counts = Counter(step.stage for step in plan.steps)
    return [counts[stage.index] for stage in plan.stages]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_recipe_is_listed_and_base_is_not() -> None:
    assert recipe_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_recipe_is_short_and_complete(name: str, tmp_path: Path) -> None:
    text = (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
    assert text.startswith("# ")
    recipe = load_recipe(name)
    assert recipe.name == name
    recipe.build_plan()
    assert load_recipe(write(tmp_path, "again.yaml", to_yaml(recipe))) == recipe


def test_base_is_short_and_lacks_what_a_backbone_decides() -> None:
    assert len((PACKAGED / "base.yaml").read_text(encoding="utf-8").splitlines()) <= 25
    with pytest.raises(RMDError, match=r"^base\.yaml: family is missing \(and \d+ more\)$"):
        load_recipe("base")


# Sec. 4.1 and App. B: guidance of the teacher, beta when training and sampling, warm-up, batch.
@pytest.mark.parametrize(
    ("name", "guidance", "train_beta", "beta", "warmup", "batch"),
    [
        ("sdxl", 7.5, 0.2, 1.0, 50, 32),
        ("pixart", 3.5, 0.2, 1.0, 50, 32),
        ("sd35", 4.5, 0.2, 1.0, 50, 32),
        ("wan21-14b", 5.0, 0.5, 0.9, 20, 4),
    ],
)
def test_settings_of_the_paper(
    name: str, guidance: float, train_beta: float, beta: float, warmup: int, batch: int
) -> None:
    recipe = load_recipe(name)
    assert recipe.method.guidance == guidance
    plan = recipe.build_plan()
    assert (plan.training_crossing.beta, plan.crossing.beta) == (train_beta, beta)
    assert plan.training_crossing.rule == plan.crossing.rule == "plain"
    assert (recipe.method.warmup_steps, recipe.train.batch_size) == (warmup, batch)
    assert (recipe.method.metric, recipe.optim.clip_norm) == ("pseudo_huber", 1.0)


@pytest.mark.parametrize(
    ("lora", "full"),
    [
        ("sdxl", "sdxl-full"), ("pixart-lora", "pixart"), ("pixart-sigma-lora", "pixart-sigma"), ("sd35", "sd35-full"),
        ("wan21-14b", "wan21-14b-full"),
    ],
)  # fmt: skip
def test_recipes_come_in_both_forms_that_differ_in_roles_and_rates_alone(lora: str, full: str) -> None:
    both = load_recipe(lora), load_recipe(full)
    assert [recipe.roles.mode for recipe in both] == ["lora", "full"]
    assert (both[0].roles.rank, both[0].roles.alpha) == (64, 64.0)
    assert both[0].optim.student_lr > both[1].optim.student_lr
    differ = {"name": True, "roles": True, "optim": {"student_lr", "fake_lr"}}
    assert both[0].model_dump(exclude=differ) == both[1].model_dump(exclude=differ)


def test_pixart_sigma_has_the_schedule_and_plan_of_pixart_alpha() -> None:
    alpha, sigma = load_recipe("pixart"), load_recipe("pixart-sigma")
    assert sigma.model_dump(exclude={"name", "teacher"}) == alpha.model_dump(exclude={"name", "teacher"})
    assert "Sigma" in sigma.teacher


# Tab. 6. Its numbers are printed to the nearest unit or the one below.
@pytest.mark.parametrize(
    ("name", "model_times", "sides"),
    [
        ("sdxl", [1000, 857, 500, 250], [(512, 512)] * 2 + [(1024, 1024)] * 2),
        ("pixart", [1000, 857, 500, 250], [(512, 512)] * 2 + [(1024, 1024)] * 2),
        ("sd35", [1000, 947, 750, 500], [(512, 512)] * 2 + [(1024, 1024)] * 2),
        ("wan21-14b", [1000, 974, 937, 834, 716, 505], [(480, 832)] * 3 + [(720, 1280)] * 3),
    ],
)
def test_times_and_sides_of_the_paper(name: str, model_times: list[float], sides: list[tuple[int, int]]) -> None:
    plan = load_recipe(name).build_plan()
    assert [step.model_time for step in plan.steps] == pytest.approx(model_times, abs=1.0)
    stages = [plan.stage_of(step) for step in plan.steps]
    assert [(stage.height, stage.width) for stage in stages] == sides


@pytest.mark.parametrize("split_of_six", ["3+3", "4+2", "2+2+2"])
def test_wans_recipes_are_split_as_they_are_called(split_of_six: str) -> None:
    name = f"wan21-14b-{split_of_six}"
    assert "+".join(map(str, split(name))) == split_of_six
    recipe, paper = load_recipe(name), load_recipe("wan21-14b")
    assert recipe.model_dump(exclude={"name", "plan"}) == paper.model_dump(exclude={"name", "plan"})
    assert recipe.build_plan().frames == 81 and recipe.train.gradient_checkpointing


def test_the_small_wan_has_the_plan_of_the_large_one() -> None:
    small, large = load_recipe("wan21-1.3b-3+3"), load_recipe("wan21-14b")
    assert small.model_dump(exclude={"name", "teacher"}) == large.model_dump(exclude={"name", "teacher"})
    assert "1.3B" in small.teacher


@pytest.mark.parametrize("threshold, expected", [(-6.0, [1, 3]), (-2.5, [2, 2]), (0.0, [3, 1])])
def test_splits_of_table_4(threshold: float, expected: list[int]) -> None:
    assert split("pixart", f"plan.thresholds=[{threshold}]") == expected


@pytest.mark.parametrize("expected", [[1, 1, 2], [1, 2, 1], [2, 1, 1]])
def test_the_names_of_the_three_stage_recipes_are_their_splits(expected: list[int]) -> None:
    assert split("sdxl-" + "+".join(map(str, expected))) == expected


def test_why_wan_has_a_threshold_of_its_own() -> None:
    assert split("wan21-14b") == [3, 3]
    assert split("wan21-14b", "plan.thresholds=[-2.5]") == [4, 2]


def test_the_moving_scenes_have_wans_settings() -> None:
    ours, wan = load_recipe("scenes-wan"), load_recipe("wan21-14b")
    assert (ours.noise, ours.plan.thresholds) == (wan.noise, wan.plan.thresholds) and split("scenes-wan") == [2, 2]
    assert ours.method.guidance == wan.method.guidance


def test_scenes_run_on_the_packaged_teacher() -> None:
    recipe = load_recipe("scenes")
    assert (recipe.teacher, recipe.data.prompts) == ("scenes", "scenes")
    assert split("scenes") == [2, 2]
    assert recipe.build_plan().warnings() == []


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
def test_merging_leaves_its_sources_alone_and_twice_is_once(under: dict[str, object], over: dict[str, object]) -> None:
    before = repr((under, over))
    layers = [Layer("under", under), Layer("over", over)]
    merged = merge(layers)
    assert merge([*layers, layers[-1]]) == merged
    for value in merged.values():
        if isinstance(value, dict):
            value["a"] = "changed"
    assert repr((under, over)) == before


@given(mappings, mappings)
def test_everything_the_last_layer_says_holds(under: dict[str, object], over: dict[str, object]) -> None:
    def holds(said: dict[str, object], merged: dict[str, object]) -> bool:
        return all(
            holds(value, merged[key])  # type: ignore[arg-type]
            if isinstance(value, dict)
            else merged[key] == value
            for key, value in said.items()
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


def test_text_that_looks_a_little_like_a_number_stays_text() -> None:
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
            "bad.yaml, line 3: the key name is there twice",
        ),
        (
            "extends: [sdxl]\n",
            "bad.yaml: extends should be the name or the path of one recipe, but is ['sdxl']",
        ),
        ("extends: bad.yaml\n", "recipes extend each other in a circle: bad.yaml extends bad.yaml"),
        ("a: \x07\n", "bad.yaml, line 1: this is not YAML: the character U+0007 cannot stand in it"),
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
        with pytest.raises(RMDError, match=r"there is no recipe file .*; check the path, or name one of pixart, "):
            read_layers(path)


def test_an_unknown_name_offers_the_nearest_and_lists_all() -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("sdlx")
    assert str(caught.value).startswith("there is no recipe 'sdlx' (did you mean 'sdxl'?); the recipes are ")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("name", ["", "zzz"])
def test_an_unknown_name_far_from_all_lists_them(name: str) -> None:
    with pytest.raises(RMDError, match=rf"^there is no recipe '{name}'; the recipes are pixart, pixart-lora, "):
        load_recipe(name)


@pytest.mark.parametrize("override", ["train.seed", "=1", "train..seed=1", ".=1"])
def test_an_override_without_key_or_value(override: str) -> None:
    with pytest.raises(RMDError, match="should look like key=value, for example"):
        load_recipe("scenes", [override])


def test_extends_is_for_files() -> None:
    with pytest.raises(RMDError, match=r"^extends can only stand in a recipe file"):
        load_recipe("scenes", ["extends=sdxl"])


TEXTS = ["/models/m #2", "my model: v1", "[x]", "{a", "~", "yes", "1e3", "null", "12", "it's", "'a' b'", "- x"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["teacher", "data.prompts", "data.column"])
def test_a_text_setting_is_taken_as_it_stands(key: str, text: str) -> None:
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
def test_quotes_around_a_text_setting_are_taken_off(written: str, text: str) -> None:
    assert load_recipe("scenes", [f"data.prompts={written}"]).data.prompts == text


def test_nothing_empties_a_text_setting(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "extends: scenes\ndata: {column: caption, cache: c}\n")
    data = load_recipe(path, ["data.column=", "data.cache=''"]).data
    assert (data.column, data.cache) == (None, "")
    with pytest.raises(RMDError, match=r"^override teacher=: teacher should be text, but is empty$"):
        load_recipe("scenes", ["teacher="])


def test_other_settings_are_yaml_as_before() -> None:
    recipe = load_recipe("scenes", ["plan.map=none # as in DMD2", "train.seed=0x10", "data.exclude=[a, 'b: c']"])
    assert (recipe.plan.map, recipe.train.seed, recipe.data.exclude) == ("none", 16, ("a", "b: c"))


@pytest.mark.parametrize("key", ["noise", "nonsense", "plan", "teacher.x", "noise.kind"])
def test_only_texts_are_texts(key: str) -> None:
    with pytest.raises(RMDError, match="this is not YAML: "):
        load_recipe("scenes", [f"{key}=a: b: c"])


@pytest.mark.parametrize(
    "text",
    ['name: "a\\0b"', 'teacher: "a\\nb"', 'data: {exclude: [ok, "\\ud800"]}', '"a\\x1b": 1', "name: \x7f"],
)
def test_texts_hold_no_control_characters(text: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe(write(tmp_path, "bad.yaml", f"extends: scenes\n{text}\n"))
    assert re.match(r"bad\.yaml.* (holds )?the character U\+[0-9A-F]{4},? (which no|cannot)", str(caught.value))


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b", "x" * 201])
def test_a_name_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(RMDError, match=r"name should be (a name without slashes|text of at most 200 characters)"):
        load_recipe("scenes", [f"name={name}"])


def test_a_chain_of_a_thousand_recipes(tmp_path: Path) -> None:
    for i in range(1000):
        write(tmp_path, f"r{i}.yaml", f"extends: r{i + 1}.yaml\n")
    with pytest.raises(RMDError, match=r"^r0\.yaml extends more than 19 recipes, one after another: use fewer$"):
        read_layers(str(tmp_path / "r0.yaml"))


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    pipe, large, endless = tmp_path / "pipe.yaml", tmp_path / "large.yaml", tmp_path / "endless.yaml"
    os.mkfifo(pipe)
    large.write_text("a: 1\n" * 300_000, encoding="utf-8")
    endless.symlink_to("/dev/zero")
    for path, sentence in (
        (pipe, "is no ordinary file"),
        (endless, "is no ordinary file"),
        (large, "is too large to be"),
    ):
        with pytest.raises(RMDError, match=sentence):
            read_layers(str(path))


@pytest.mark.parametrize("name", ["x" * 5000, "./" + "x" * 5000, "./a\0b", "~nobody-is-called-so/x.yaml", "\udce9/x"])
def test_a_name_that_no_recipe_can_have(name: str) -> None:
    with pytest.raises(RMDError) as caught:
        read_layers(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "override",
    ["x" * 100_000, "plan.steps=[" + "1, " * 30_000 + "]", "a" * 50_000 + "=1", "." * 50_000 + "=1", "a." * 50_000],
)
def test_a_long_override_makes_a_short_sentence(override: str) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", [override])
    assert len(str(caught.value)) < 600


BOUNDS = [
    ("plan.steps=1001", "plan.steps should be at most 1000, but is 1001"),
    ("plan.steps=" + "9" * 4000, "plan.steps should be at most 1000, but is a number of 13288 bits"),
    ("plan.sides=[1000000000]", "plan.sides[0] should be at most 65536 pixels, but is 1000000000"),
    ("plan.sides=[9x99999999]", "plan.sides[0] should be at most 65536 pixels, but is '9x99999999'"),
    ("plan.sides=['" + "9" * 5000 + "']", "plan.sides[0] should be a side in pixels (512), "),
    ("plan.thresholds=[" + "1, " * 10_000 + "]", "plan.thresholds should be a list of at most 64, but is [1, 1, "),
    ("noise.num_train_timesteps=1000000000", "noise.num_train_timesteps should be at most 100000, but is 1000000000"),
    ("method.guidance=1e308", "method.guidance should be at most 1000.0, but is 1e+308"),
    (
        "train.seed=18446744073709551616",
        "train.seed should be at most 9223372036854775807, but is 18446744073709551616",
    ),
    ("train.iterations=10000000000", "train.iterations should be at most 1000000000, but is 10000000000"),
    ("train.batch_size=1000000000", "train.batch_size should be at most 65536, but is 1000000000"),
    ("train.threads=1000000", "train.threads should be at most 4096, but is 1000000"),
    ("roles.rank=1000000000", "roles.rank should be at most 65536, but is 1000000000"),
    ("frames=1000000000", "frames should be at most 10000, but is 1000000000"),
    ("optim.student_lr=1e300", "optim.student_lr should be at most 1000000000000.0, but is 1e+300"),
    ("evaluation.samples=1000000000", "evaluation.samples should be at most 1000000, but is 1000000000"),
]


@pytest.mark.parametrize(("override", "sentence"), BOUNDS, ids=[override[:40] for override, _ in BOUNDS])
def test_what_is_listed_or_allocated_is_bounded(override: str, sentence: str) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", [override])
    assert sentence in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_only_counted_up_to_may_be_large() -> None:
    recipe = load_recipe("scenes", ["train.iterations=1000000000", "plan.steps=1000", "train.seed=9223372036854775807"])
    assert len(recipe.build_plan().steps) == 1000


def test_no_stage_without_a_step_lists_a_thousand_of_them() -> None:
    with pytest.raises(RMDError, match=r"\(the steps have .*, \.\.\. \(1000 in all\)\)") as caught:
        load_recipe("scenes", ["plan.steps=1000", "plan.thresholds=[500]"]).build_plan()
    assert len(str(caught.value)) < 400
