"""What tells recipes and runs apart: hashes of their settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rmd.config import Recipe


def config_hash(recipe: Recipe) -> str:
    """SHA-256 over the recipe's canonical JSON, in hex: equal exactly for recipes that are equal."""
    return _sha256(recipe.model_dump(mode="json"))


def settings_hash(recipe: Recipe) -> str:
    """As `config_hash`, without what no iteration depends on: how long the run is, what is logged, who computes.

    Values that are the defaults do not enter, so that a key that a later version adds changes no earlier hash.
    """
    return _sha256(_settings(recipe))


def run_hash(recipe: Recipe) -> str:
    """As `settings_hash`, without where the teacher, the prompts and the images are and how the prompts are selected.

    Two recipes of one run hash are the same run, of which one may go on where the other stopped, if their teachers,
    prompts and images have the same contents (`rmd.train.identity`).
    """
    values = _settings(recipe)
    del values["teacher"]
    values.pop("variant", None)
    data = {key: value for key, value in values.pop("data").items() if key not in _CONTENTS}
    return _sha256(values | ({"data": data} if data else {}))


_CONTENTS = (
    "prompts", "column", "split", "journeydb", "shortest", "longest", "exclude", "images", "cache", "skip_invalid",
)  # fmt: skip
"""Settings of `data` that decide nothing but which prompts and images there are."""


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that an iteration depends on."""
    free = {
        "iterations", "log_every", "sample_every", "checkpoint_every", "keep_last", "keep_every", "threads",
        "recompute", "accumulate", "guard", "services",
    }  # fmt: skip
    excluded: dict[str, bool | set[str]] = {
        "name": True, "train": free, "parallel": True, "data": {"offload"}, "evaluation": True,
    }  # fmt: skip
    values = recipe.model_dump(mode="json", exclude=excluded, exclude_defaults=True)
    if recipe.optim.lr_decay:  # its beginning depends on the run's end
        values["iterations"] = recipe.train.iterations
    return values


def _sha256(values: dict[str, object]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
