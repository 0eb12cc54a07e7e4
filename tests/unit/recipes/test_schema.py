"""Types of a recipe: what is accepted, the sentence for what is not, hashing and writing back."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rmd.common.errors import RMDError
from rmd.core import plan
from rmd.recipes import schema as config
from rmd.recipes.hashes import config_hash, run_hash, settings_hash
from rmd.recipes.schema import Recipe, load_recipe, parse_side, to_yaml


@pytest.mark.parametrize(
    ("value", "side"),
    [
        (512, (512, 512)),
        ("512", (512, 512)),
        ([480, 832], (480, 832)),
        ((480, 832), (480, 832)),
        ("480x832", (480, 832)),
        (" 480 X 832 ", (480, 832)),
    ],
)
def test_a_side_is_written_in_several_ways(value: object, side: tuple[int, int]) -> None:
    assert parse_side(value) == side


@pytest.mark.parametrize("value", [0, -8, True, 1.5, "0x5", "4x", "x", "", [1], [1, 2, 3], [1, 0], [1, "2"], None])
def test_what_is_not_a_side(value: object) -> None:
    with pytest.raises(ValueError, match=r"^should be a side in pixels"):
        parse_side(value)


# An override of the scenes recipe, and what follows `override ...: `.
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
    ("noise.kind=fow", "noise.kind should be vp or flow, but is 'fow'"),
    ("noise=5", "noise should be `teacher` or a group of keys, but is 5"),
    ("noise=techer", "noise should be `teacher` or a group of keys, but is 'techer'"),
    ("noise.kind=5", "noise.kind should be vp or flow, but is 5"),
    ("noise.kind=teacher", "noise.kind should be vp or flow, but is 'teacher'"),
    ("plan.steps=abc", "plan.steps should be a whole number, but is 'abc'"),
    ("plan.steps='4'", "plan.steps should be a whole number, but is '4'"),
    ("plan.steps=4.0", "plan.steps should be a whole number, but is 4.0"),
    ("plan.steps=true", "plan.steps should be a whole number, but is true"),
    ("plan.steps=", "plan.steps should be a whole number, but is empty"),
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
        load_recipe("scenes", [override])
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


def test_the_file_at_fault_is_named(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("extends: scenes\nplan: {steps: many}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nname: child\n")
    with pytest.raises(RMDError, match=r"^parent\.yaml: plan\.steps should be a whole number, but is 'many'$"):
        load_recipe(str(tmp_path / "child.yaml"))


def test_a_missing_key_is_asked_of_the_recipe_itself(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("extends: base\nfamily: x\nteacher: x\nplan: {steps: 1, sides: [8]}\n")
    path = str(tmp_path / "bare.yaml")
    with pytest.raises(RMDError, match=r"^bare\.yaml: method\.guidance is missing$"):
        load_recipe(path)
    with pytest.raises(RMDError, match=r"^override noise={}: noise\.kind is missing; it is vp or flow$"):
        load_recipe(path, ["noise={}", "method.guidance=1"])


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("scenes")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.seed = 1


def test_the_choices_are_those_of_the_plan() -> None:
    assert get_args(config.TimeMap) == get_args(plan.TimeMap)
    assert get_args(config.Upsample) == get_args(plan.Upsample)
    assert get_args(config.NoiseRule) == get_args(plan.NoiseRule)


def test_training_crosses_as_sampling_does_unless_told_otherwise() -> None:
    same = load_recipe("scenes", ["crossing={rule: corrected, beta: 0.7, train_beta: null}"]).build_plan()
    assert same.training_crossing == same.crossing == plan.Crossing("bilinear", "corrected", 0.7)
    other = load_recipe("scenes", ["crossing={upsample: nearest, train_rule: plain, train_beta: 0}"]).build_plan()
    assert other.crossing == plan.Crossing("nearest", "block", 0.2)
    assert other.training_crossing == plan.Crossing("nearest", "plain", 0.0)


def test_the_plan_takes_every_key() -> None:
    keys = "plan={steps: 3, sides: [8x16, 16x32], thresholds: [-2.0], map: none, grid_end: 0.1, multiple: 8}"
    built = load_recipe("sd35", [keys]).build_plan()
    assert [(stage.height, stage.width) for stage in built.stages] == [(8, 16), (16, 32)]
    # 1, 0.7 and 0.4 through a flow shift of 3
    assert [step.teacher_time for step in built.steps] == pytest.approx([1000, 875, 2000 / 3])
    assert [step.model_time for step in built.steps] == [step.teacher_time for step in built.steps]
    assert (built.thresholds, built.time_map) == ((-2.0,), "none")
    with pytest.raises(RMDError, match="not divisible by 16"):
        load_recipe("sd35", [keys, "plan.multiple=16"]).build_plan()


def test_the_vp_schedule_is_the_one_described() -> None:
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    schedule = load_recipe("pixart").noise.schedule()
    assert schedule.kind == "vp"
    assert float(schedule.alpha(500.0)) == pytest.approx(float((1 - betas)[:500].prod().sqrt()), abs=1e-6)


def test_the_scenes_schedule_ends_in_pure_noise() -> None:
    assert float(load_recipe("scenes").noise.schedule().alpha(1000.0)) == pytest.approx(0, abs=1e-6)


def test_the_flow_schedule_is_shifted() -> None:
    schedule = load_recipe("wan21-14b").noise.schedule()
    assert schedule.kind == "flow"
    assert schedule.grid(2) == pytest.approx((1000, 1000 * 5 * 0.5 / (1 + 4 * 0.5)))


def test_the_hash_sees_values_and_not_how_they_were_written(tmp_path: Path) -> None:
    recipe = load_recipe("scenes")
    path = tmp_path / "scenes.yaml"
    path.write_text(to_yaml(recipe))
    assert config_hash(load_recipe(str(path))) == config_hash(recipe)
    assert config_hash(load_recipe("scenes", ["plan.sides=[[32, 32], 64x64]"])) == config_hash(recipe)
    assert len(config_hash(recipe)) == 64


def test_the_hash_is_the_same_in_another_process(run_python) -> None:  # type: ignore[no-untyped-def]
    code = "from rmd.recipes.schema import *; from rmd.recipes.hashes import *; print(config_hash(load_recipe('sdxl')))"
    assert run_python("-c", code).stdout.strip() == config_hash(load_recipe("sdxl"))


def leaves(model: BaseModel, prefix: str = "") -> list[str]:
    found = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [f"{prefix}{name}"]
    return found


CHANGES = {
    "name": "other", "family": "other", "teacher": "other", "variant": "fp16", "frames": "2",
    "noise.beta_schedule": "linear", "noise.beta_start": "0.001", "noise.beta_end": "0.1",
    "noise.num_train_timesteps": "500", "noise.rescale_betas_zero_snr": "false",
    "plan.steps": "5", "plan.sides": "[16, 64]", "plan.thresholds": "[-3.0]", "plan.map": "vp",
    "plan.grid_end": "0.01", "plan.multiple": "2", "plan.shift": "2.0",
    "crossing.upsample": "nearest", "crossing.rule": "plain", "crossing.beta": "0.1",
    "conditioning.original": "stage", "conditioning.target": "final", "conditioning.pos_rescale": True,
    "crossing.within": "fresh", "crossing.train_rule": "plain", "crossing.train_beta": "0.1",
    "method.scored": "[96, 96]", "method.adversarial": "0.5", "method.adversarial_fake": "0.5", "data.images": "folder",
    "method.name": "tdm", "method.guidance": "4.0", "method.metric": "l2", "method.weight": "none",
    "method.tau": "above", "method.tau_noise": "fresh", "method.fake_weight": "snr",
    "method.snr_cap": "4.0", "method.fake_updates": "2", "method.warmup_steps": "7", "method.stage_draws": "[1, 2]",
    "roles.mode": "lora", "roles.rank": "3", "roles.alpha": "3.0", "roles.layers": "transformers",
    "optim.student_lr": "0.5", "optim.fake_lr": "0.5", "optim.betas": "[0.1, 0.2]",
    "optim.weight_decay": "0.5", "optim.clip_norm": "0.5", "optim.ema": "0.5",
    "optim.lr_warmup": "20", "optim.lr_decay": "20",
    "train.iterations": "7", "train.batch_size": "7", "train.seed": "7", "train.log_every": "7",
    "train.sample_every": "7", "train.checkpoint_every": "7", "train.keep_last": "7", "train.threads": "7",
    "train.dtype": "bfloat16", "train.gradient_checkpointing": "true", "train.gradient_accumulation_steps": "7",
    "train.keep_every": "7",
    "train.guard": "false", "train.loggers": "[wandb]",
    "parallel.dp_replicate": "2", "parallel.context_parallel": "2", "data.prompts": "other", "data.options": "{n: 7}",
    "data.column": "words",
    "data.split": "test", "data.journeydb": "true", "data.skip_invalid": "true",
    "data.min_chars": "7", "data.max_chars": "7",
    "data.exclude": "[bench.json]", "data.cache": "folder", "data.prompt_cache_mb": "7", "data.offload": "true",
    "evaluation.n": "7", "evaluation.every": "7", "evaluation.samples": "7",
}  # fmt: skip


def test_every_key_changes_the_hash() -> None:
    recipe = load_recipe("scenes")
    assert set(CHANGES) | {"version", "noise.kind"} == set(leaves(recipe))
    hashes = {config_hash(load_recipe("scenes", [f"{key}={value}"])) for key, value in CHANGES.items()}
    assert len(hashes | {config_hash(recipe)}) == len(CHANGES) + 1


@given(st.lists(st.sampled_from(sorted(CHANGES)), unique=True), st.sampled_from(["scenes", "sdxl"]))
def test_what_is_written_reads_back(keys: list[str], name: str) -> None:
    recipe = load_recipe(name, [f"{key}={CHANGES[key]}" for key in keys])
    text = to_yaml(recipe)
    again = load_recipe("scenes", [f"{group}={value}" for group, value in flow_groups(text).items()])
    assert again == recipe
    assert to_yaml(again) == text


def flow_groups(text: str) -> dict[str, str]:
    """Each top-level key of block YAML with its value on one line, as an override takes it."""
    import yaml

    return {
        key: ""
        if value is None
        else yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        for key, value in yaml.safe_load(text).items()
    }


def test_lists_are_written_on_one_line() -> None:
    assert "  sides: [[32, 32], [64, 64]]\n" in to_yaml(load_recipe("scenes"))


def test_reading_a_recipe_does_not_import_torch(run_python) -> None:  # type: ignore[no-untyped-def]
    code = "import sys; from rmd.recipes.schema import load_recipe; load_recipe('sdxl'); print('torch' in sys.modules)"
    assert run_python("-c", code).stdout.strip() == "False"


def test_every_field_of_a_recipe_has_a_place_in_the_schema() -> None:
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "logSNR thresholds" in schema["$defs"]["PlanConfig"]["properties"]["thresholds"]["description"]


def test_a_longer_run_that_logs_otherwise_is_the_same_run() -> None:
    recipe = load_recipe("scenes")
    free = {
        key
        for key, value in CHANGES.items()
        if settings_hash(load_recipe("scenes", [f"{key}={value}"])) == settings_hash(recipe)
    }
    every = {
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep_last",
        "iterations",
        "threads",
        "gradient_checkpointing",
    }
    every |= {"keep_every", "gradient_accumulation_steps", "guard", "loggers"}
    places = {"parallel.dp_replicate", "parallel.context_parallel"}
    judged = {f"evaluation.{key}" for key in ("n", "every", "samples")}
    assert free == {"name", *judged, "data.offload", *places, *(f"train.{key}" for key in every)}


def test_where_things_are_does_not_tell_runs_apart_but_their_settings() -> None:
    recipe = load_recipe("scenes")
    changed = {key: load_recipe("scenes", [f"{key}={value}"]) for key, value in CHANGES.items()}
    same = {key for key, other in changed.items() if run_hash(other) == run_hash(recipe)}
    contents = {"prompts", "column", "split", "journeydb", "min_chars", "max_chars", "exclude", "images", "cache"}
    contents |= {"skip_invalid", "options"}
    unsettled = {key for key, other in changed.items() if settings_hash(other) == settings_hash(recipe)}
    assert same - unsettled == {"teacher", "variant", *(f"data.{key}" for key in contents)}
    others = [run_hash(other) for key, other in changed.items() if key not in same]
    assert len(set(others)) == len(others)


def test_the_hash_of_settings_is_that_of_stored_comparisons() -> None:
    """Cells of comparisons are kept by it: a change of it would compute all of them anew."""
    assert settings_hash(load_recipe("scenes")) == "4b386efd4cc89e0ffb125691d172d456382a285178a37c8f64a0de4c6c03063a"


def test_every_other_key_makes_another_run() -> None:
    others = [settings_hash(load_recipe("scenes", [f"{key}={value}"])) for key, value in CHANGES.items()]
    same = settings_hash(load_recipe("scenes"))
    assert len({found for found in others if found != same}) == sum(found != same for found in others)


def test_how_long_a_run_is_belongs_to_it_when_its_learning_rates_fall_at_its_end() -> None:
    falling, longer = (
        load_recipe("scenes", ["optim.lr_decay=50", f"train.iterations={iterations}"]) for iterations in (150, 200)
    )
    assert run_hash(falling) != run_hash(longer) and settings_hash(falling) != settings_hash(longer)


def test_a_recipe_of_a_later_version_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(load_recipe("scenes")).replace("version: 1", "version: 2") + "unheard: 1\n")
    with pytest.raises(
        RMDError, match=r"recipe\.yaml.*: version should be 1, but is 2: update RMD to read this recipe$"
    ):
        load_recipe(str(path))


DEFAULTS = {
    "frames": 1,
    "noise": {"shift": 1.0, "num_train_timesteps": 1000},
    "plan": {"thresholds": [], "map": "raise", "grid_end": 0.0, "multiple": 8, "shift": None},
    "crossing": {
        "upsample": "bilinear", "rule": "plain", "beta": 1.0, "within": "predicted", "train_rule": None,
        "train_beta": None,
    },
    "conditioning": {"original": "final", "target": "stage", "pos_rescale": False},
    "method": {
        "name": "rmd", "metric": "pseudo_huber", "weight": "sample", "tau": "segment", "tau_noise": "mixed",
        "fake_weight": "snr", "snr_cap": 5.0, "fake_updates": 1, "warmup_steps": 0, "stage_draws": [],
        "adversarial": 0.0, "adversarial_fake": 1.0, "scored": None,
    },
    "roles": {"mode": "lora", "rank": 64, "alpha": 64.0},
    "optim": {
        "lr_warmup": 0, "lr_decay": 0, "betas": [0.9, 0.999], "weight_decay": 0.01, "clip_norm": 1.0, "ema": 0.0,
    },
    "train": {"seed": 0, "dtype": "float32"},
    "data": {
        "column": None, "split": "train", "skip_invalid": False, "journeydb": False, "min_chars": 1, "max_chars": None,
        "exclude": [], "images": None, "cache": None, "prompt_cache_mb": 0,
    },
}  # fmt: skip
"""That the hashes of runs rest on: with another value, a run of before would look like one of after."""


def test_defaults_that_hashes_leave_out_stay_what_they_are() -> None:
    least = {
        "name": "n", "family": "f", "teacher": "t", "noise": {"kind": "flow"}, "plan": {"steps": 1, "sides": [64]},
        "method": {"guidance": 3.0}, "optim": {"student_lr": 0.1, "fake_lr": 0.1},
        "train": {"iterations": 1, "batch_size": 1}, "data": {"prompts": "p"},
    }  # fmt: skip
    written = Recipe.model_validate(least)
    spelt_out = Recipe.model_validate(
        {**least, **{k: {**least[k], **v} if isinstance(least.get(k), dict) else v for k, v in DEFAULTS.items()}}
    )
    assert spelt_out == written
    assert run_hash(spelt_out) == run_hash(written) and settings_hash(spelt_out) == settings_hash(written)
    vp = load_recipe("scenes").noise.model_copy(
        update={"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}
    )
    assert vp.model_dump(exclude_defaults=True) == {"kind": "vp", "rescale_betas_zero_snr": True}
