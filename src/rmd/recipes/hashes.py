"""Hashes of settings, by which recipes and runs are identified."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rmd.recipes.methods import DEFAULT
from rmd.recipes.schema import Recipe


def config_hash(recipe: Recipe) -> str:
    """Return the SHA-256 of the recipe's canonical JSON, in hex: two hashes are equal exactly if the recipes are."""
    return _sha256(recipe.model_dump(mode="json"))


def settings_hash(recipe: Recipe) -> str:
    """Return the hash of the settings that iterations depend on: not the run's length, its logging, or its machines.

    Default values are left out of the hash, so a key that a later version adds changes no earlier hash.
    """
    return _sha256(_settings(recipe))


def run_hash(recipe: Recipe) -> str:
    """Return `settings_hash` without the locations of teacher, prompts and images, and the selection of prompts.

    Two recipes with equal run hashes are the same run, and one may continue where the other stopped, if their teachers,
    prompts and images have the same contents (`rmd.train.identity`).
    """
    values = _settings(recipe)
    del values["teacher"]
    values.pop("variant", None)
    data = {key: value for key, value in values.pop("data").items() if key not in _CONTENTS}
    return _sha256(values | ({"data": data} if data else {}))


_CONTENTS = (
    "prompts", "options", "column", "split", "journeydb", "min_chars", "max_chars", "exclude", "images", "cache",
    "skip_invalid",
)  # fmt: skip
"""Settings of `data` that only decide which prompts and images there are."""


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that an iteration depends on."""
    without_effect = {
        "iterations", "log_every", "sample_every", "checkpoint_every", "keep_last", "keep_every", "threads",
        "gradient_checkpointing", "gradient_accumulation_steps", "guard", "loggers",
    }  # fmt: skip
    excluded: dict[str, bool | set[str]] = {
        "name": True, "train": without_effect, "parallel": True, "data": {"offload"}, "evaluation": True,
    }  # fmt: skip
    values = recipe.model_dump(mode="json", exclude=excluded, exclude_defaults=True)
    if recipe.method.name != DEFAULT:  # which may be the default of that method's settings
        values["method"]["name"] = recipe.method.name
    if recipe.optim.lr_decay:  # the start of the decay depends on the length of the run
        values["iterations"] = recipe.train.iterations
    return values


def _sha256(values: dict[str, object]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
