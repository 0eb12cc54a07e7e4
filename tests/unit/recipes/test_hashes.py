"""Hashes of settings: what they depend on, and that stored ones stay valid."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rmd.recipes.hashes import config_hash, run_hash, settings_hash
from rmd.recipes.methods import DMD2Config, RMDConfig, TDMConfig
from rmd.recipes.schema import Recipe, load_recipe, to_yaml


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
    names: list[str] = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        names += leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [f"{prefix}{name}"]
    return names


UNIFORM = ["plan.steps=4", "plan.thresholds=[-2.5]", "method.matching=teacher"]
"""The paper's times, stages and matching: what the recipes `scenes` and `sdxl` say in another way, or otherwise."""
CHANGES = {
    "name": "other", "family": "other", "teacher": "other", "variant": "fp16", "frames": "2",
    "noise.beta_schedule": "linear", "noise.beta_start": "0.001", "noise.beta_end": "0.1",
    "noise.num_train_timesteps": "500", "noise.rescale_betas_zero_snr": "false",
    "plan.steps": "5", "plan.sides": "[16, 64]", "plan.thresholds": "[-3.0]", "plan.map": "vp",
    "plan.grid_end": "0.01", "plan.multiple": "2", "plan.shift": "2.0",
    "crossing.upsample": "nearest", "crossing.rule": "plain", "crossing.beta": "0.1",
    "conditioning.original": "stage", "conditioning.target": "final", "conditioning.pos_rescale": True,
    "conditioning.embedded_guidance": "5.0",
    "crossing.within": "fresh", "crossing.train_rule": "plain", "crossing.train_beta": "0.1",
    "plan.match_side": "[96, 96]", "data.images": "folder",
    "method.name": "tdm", "method.guidance": "4.0", "method.metric": "l2", "method.weight": "none",
    "method.tau": "above", "method.tau_noise": "fresh", "method.fake_weight": "snr",
    "method.snr_cap": "4.0", "method.fake_updates": "2", "method.warmup_steps": "7", "method.stage_draws": "[1, 2]",
    "method.weight_floor": "0.2", "method.tau_offset": "[0.25]", "method.tau_spacing": "grid",
    "method.tau_shift": "2.0",
    "method.stage_weights": "[1, 2]", "method.matching": "own", "method.own_share": "0.25",
    "method.guidance_tau": "below", "method.stage_guidance": "[1.5, 3.0]",
    "plan.times": "[1000, 900, 750, 375]", "plan.split": "[2, 2]", "plan.cross_at": "{sigma: [0.8]}",
    "method.order": "fake_first", "optim.clipped": "student",
    "crossing.eta": "0.5", "crossing.taps": "[0.25, 0.75, 0.75, 0.25]",
    "roles.mode": "lora", "roles.rank": "3", "roles.alpha": "3.0", "roles.layers": "transformers",
    "optim.student_lr": "0.5", "optim.fake_lr": "0.5", "optim.betas": "[0.1, 0.2]",
    "optim.weight_decay": "0.5", "optim.clip_norm": "0.5", "optim.ema": "0.5",
    "optim.lr_warmup": "20", "optim.lr_decay": "20",
    "train.iterations": "7", "train.batch_size": "7", "train.seed": "7", "train.log_every": "7",
    "train.sample_every": "7", "train.checkpoint_every": "7", "train.keep_last": "7", "train.threads": "7",
    "train.dtype": "bfloat16", "train.gradient_checkpointing": "true", "train.gradient_accumulation_steps": "7",
    "train.keep_every": "7",
    "train.guard": "false", "train.loggers": "[wandb]",
    "parallel.dp_replicate": "2", "parallel.context_parallel": "2", "data.options": "{n: 7}",
    "data.prompts": "other", "data.column": "words",
    "data.split": "test", "data.journeydb": "true", "data.skip_invalid": "true",
    "data.min_chars": "7", "data.max_chars": "7",
    "data.exclude": "[bench.json]", "data.cache": "folder", "data.prompt_cache_mb": "7", "data.offload": "true",
    "evaluation.n": "7", "evaluation.every": "7", "evaluation.samples": "7", "evaluation.metrics": "[clip]",
    "evaluation.prompts": "other", "evaluation.weights": "folder",
}  # fmt: skip
"""An override of the recipe of `scenes_with` for every key."""


def scenes_with(*overrides: str) -> Recipe:
    """Return recipe `scenes` at uniform times, with overrides."""
    return load_recipe("scenes", [*UNIFORM, *overrides])


def change(key: str) -> list[str]:
    """Return overrides that change a key, with what the changed one needs beside it."""
    return [*(["plan.split=[2, 2]"] if key == "plan.cross_at" else []), f"{key}={CHANGES[key]}"]


CHANGES_OF_DMD2 = {"method.adversarial": "0.5", "method.adversarial_fake": "0.5"}


def test_every_key_changes_the_hash() -> None:
    recipe = scenes_with()
    assert set(CHANGES) | {"version", "noise.kind"} == set(leaves(recipe))
    hashes = {config_hash(scenes_with(*change(key))) for key in CHANGES}
    assert len(hashes | {config_hash(recipe)}) == len(CHANGES) + 1


def test_every_key_of_every_method_changes_the_hash_of_its_runs() -> None:
    for name, config in {"tdm": TDMConfig, "dmd2": DMD2Config, "rmd": RMDConfig}.items():
        keys = {key for key in {**CHANGES, **CHANGES_OF_DMD2} if key.removeprefix("method.") in config.model_fields}
        keys = {key for key in keys if key.startswith("method.") and key != "method.name"}
        assert {f"method.{key}" for key in config.model_fields} == keys | {"method.name"}
        changes = {**CHANGES, **CHANGES_OF_DMD2}
        recipes = [scenes_with(f"method.name={name}", f"{key}={changes[key]}") for key in sorted(keys)]
        recipes.append(scenes_with(f"method.name={name}"))
        assert len({run_hash(recipe) for recipe in recipes}) == len({settings_hash(r) for r in recipes}) == len(recipes)


def test_methods_with_equal_settings_have_different_hashes() -> None:
    recipes = [scenes_with(f"method.name={name}") for name in ("rmd", "tdm", "dmd2")]
    assert len({run_hash(recipe) for recipe in recipes}) == len({settings_hash(recipe) for recipe in recipes}) == 3


@given(st.lists(st.sampled_from(sorted(CHANGES)), unique=True), st.sampled_from(["scenes", "sdxl"]), st.sampled_from(
    ["rmd", "tdm", "dmd2"]
))  # fmt: skip
def test_what_is_written_reads_back(keys: list[str], name: str, method: str) -> None:
    changes = [text for key in keys if key != "method.name" for text in change(key)]
    recipe = load_recipe(name, [*UNIFORM, *changes, f"method.name={method}"])
    text = to_yaml(recipe)
    again = scenes_with(*[f"{group}={value}" for group, value in flow_groups(text).items()])
    assert again == recipe
    assert to_yaml(again) == text


def flow_groups(text: str) -> dict[str, str]:
    """Return each top-level key of block YAML with its value on one line, as in an override."""
    import yaml

    return {
        key: ""
        if value is None
        else yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        for key, value in yaml.safe_load(text).items()
    }


def test_length_logging_and_machines_do_not_change_the_hash_of_settings() -> None:
    recipe = scenes_with()
    free = {key for key in CHANGES if settings_hash(scenes_with(*change(key))) == settings_hash(recipe)}
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
    judged = {f"evaluation.{key}" for key in ("n", "every", "samples", "metrics", "prompts", "weights")}
    assert free == {"name", *judged, "data.offload", *places, *(f"train.{key}" for key in every)}


def test_locations_do_not_change_the_hash_of_a_run_but_settings_do() -> None:
    recipe = scenes_with()
    changed = {key: scenes_with(*change(key)) for key in CHANGES}
    same = {key for key, other in changed.items() if run_hash(other) == run_hash(recipe)}
    contents = {"prompts", "column", "split", "journeydb", "min_chars", "max_chars", "exclude", "images", "cache"}
    contents |= {"skip_invalid", "options"}
    unsettled = {key for key, other in changed.items() if settings_hash(other) == settings_hash(recipe)}
    assert same - unsettled == {"teacher", "variant", *(f"data.{key}" for key in contents)}
    others = [run_hash(other) for key, other in changed.items() if key not in same]
    assert len(set(others)) == len(others)


def test_the_hash_of_settings_is_that_of_stored_comparisons() -> None:
    """The files of comparisons are named by it: if it changed, all of them would be computed again."""
    recipe = scenes_with("method.warmup_steps=30")
    assert settings_hash(recipe) == "4b386efd4cc89e0ffb125691d172d456382a285178a37c8f64a0de4c6c03063a"


def test_every_other_key_makes_a_different_run() -> None:
    others = [settings_hash(scenes_with(*change(key))) for key in CHANGES]
    same = settings_hash(scenes_with())
    assert len({other for other in others if other != same}) == sum(other != same for other in others)


def test_a_decay_of_the_learning_rates_makes_the_length_part_of_the_hash() -> None:
    falling, longer = (
        load_recipe("scenes", ["optim.lr_decay=50", f"train.iterations={iterations}"]) for iterations in (150, 200)
    )
    assert run_hash(falling) != run_hash(longer) and settings_hash(falling) != settings_hash(longer)


DEFAULTS = {
    "frames": 1,
    "noise": {"shift": 1.0, "num_train_timesteps": 1000},
    "plan": {"thresholds": [], "map": "raise", "grid_end": 0.0, "multiple": 8, "shift": None, "match_side": None,
             "times": [], "split": [], "cross_at": None},
    "crossing": {
        "upsample": "bilinear", "rule": "plain", "beta": 1.0, "within": "predicted", "train_rule": None,
        "train_beta": None, "eta": 1.0, "taps": [],
    },
    "conditioning": {"original": "final", "target": "stage", "pos_rescale": False},
    "method": {
        "name": "rmd", "metric": "pseudo_huber", "weight": "sample", "tau": "segment", "tau_noise": "mixed",
        "fake_weight": "snr", "snr_cap": 5.0, "fake_updates": 1, "warmup_steps": 0, "stage_draws": [],
        "weight_floor": 1e-5, "tau_offset": [], "tau_spacing": "time", "tau_shift": 1.0,
        "stage_weights": [], "matching": "teacher", "own_share": 0.5, "order": "student_first", "guidance_tau": "same",
        "stage_guidance": [],
    },
    "roles": {"mode": "lora", "rank": 64, "alpha": 64.0},
    "optim": {
        "lr_warmup": 0, "lr_decay": 0, "betas": [0.9, 0.999], "weight_decay": 0.01, "clip_norm": 1.0, "ema": 0.0,
        "clipped": "both",
    },
    "train": {"seed": 0, "dtype": "float32"},
    "data": {
        "column": None, "split": "train", "skip_invalid": False, "journeydb": False, "min_chars": 1, "max_chars": None,
        "exclude": [], "images": None, "cache": None, "prompt_cache_mb": 0,
    },
}  # fmt: skip
"""Defaults, which hashes leave out: if one changed, an earlier run would be taken for one with the new value."""
_MATCHING = {
    "metric": "pseudo_huber", "weight": "sample", "weight_floor": 1e-5, "tau": "segment", "tau_offset": (),
    "tau_spacing": "time", "tau_shift": 1.0, "fake_weight": "snr", "snr_cap": 5.0, "fake_updates": 1,
    "order": "student_first",
}  # fmt: skip
METHOD_DEFAULTS = {
    "tdm": _MATCHING,
    "dmd2": {**_MATCHING, "adversarial": 0.0, "adversarial_fake": 1.0},
}  # fmt: skip


def test_defaults_that_hashes_leave_out_do_not_change() -> None:
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
    for name, defaults in METHOD_DEFAULTS.items():
        config = {"tdm": TDMConfig, "dmd2": DMD2Config}[name]
        assert config(name=name, guidance=3.0) == config(name=name, guidance=3.0, **defaults)
        assert set(config.model_fields) == {"name", "guidance", *defaults}
    vp = load_recipe("scenes").noise.model_copy(
        update={"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}
    )
    assert vp.model_dump(exclude_defaults=True) == {"kind": "vp", "rescale_betas_zero_snr": True}
