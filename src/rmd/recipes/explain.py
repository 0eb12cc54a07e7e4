"""Turns validation errors of a recipe into one sentence that names the key, the file and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rmd.common.errors import RMDError, shown
from rmd.common.typed import and_more, as_written, dotted, known_keys, sentence, sorted_problems
from rmd.recipes.layers import Layer, merge, origin
from rmd.recipes.methods import DEFAULT, method_config

RENAMED = {
    "train.recompute": "train.gradient_checkpointing",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.services": "train.loggers",
    "parallel.replicas": "parallel.dp_replicate",
    "parallel.context": "parallel.context_parallel",
    "data.remember": "data.prompt_cache_mb",
    "data.shortest": "data.min_chars",
    "data.longest": "data.max_chars",
    "method.scored": "plan.match_side",
}
"""Keys of earlier versions, and their present names."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, including line breaks, and bytes of a command line that are not UTF-8."""


def check_texts(value: object, where: str, path: str = "") -> None:
    """Raise RMDError if a text holds a character that no setting may have, such as a control character."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_texts(key, where, path)
            check_texts(inner, where, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            check_texts(inner, where, path)
    elif isinstance(value, str) and (match := _UNPRINTABLE.search(value)):
        code = f"U+{ord(match[0]):04X}"
        raise RMDError(
            f"{where}: {path or 'a key'} holds the character {code}, which no setting can have: leave it out"
        )


class Explainer:
    """Explains what is wrong with the values of a recipe's layers.

    Args:
        model: the recipe's model.
        layers: the layers that were merged and validated.
    """

    def __init__(self, model: type[BaseModel], layers: Sequence[Layer]) -> None:
        self.layers = layers
        method = merge(layers).get("method")
        name = method.get("name", DEFAULT) if isinstance(method, dict) else DEFAULT
        self.method = name if isinstance(name, str) else DEFAULT
        config = method_config(self.method)
        own = [] if config is None else list(known_keys(config, "method."))
        everything = list(known_keys(model))
        self.known = {*everything, *own}
        self.offered = ["extends", *(key for key in everything if not key.startswith("method.")), *own]

    def sentence(self, error: ValidationError) -> str:
        """Return one sentence for the first problem, and the number of further ones."""
        problems = sorted_problems(error)
        for problem in problems:
            if problem["loc"] == ("version",) and isinstance(problem["input"], int) and problem["input"] > 1:
                where = origin(self.layers, ["version"])
                return f"{where}: version should be 1, but is {shown(problem['input'])}: update RMD to read this recipe"
        first = problems[0]
        keys = _keys(first)
        where = origin(self.layers, [key for key in keys if isinstance(key, str)])
        return f"{where}: {self._problem(first, keys)}{and_more(problems)}"

    def _problem(self, problem: ErrorDetails, keys: Sequence[str | int]) -> str:
        path = dotted(keys)
        match problem["type"]:
            case "literal_error" if (path, problem["input"]) == ("method.name", "stagewise"):
                return "method.name=stagewise is now rmd with method.matching=own: use these"
            case "extra_forbidden" if path in RENAMED:
                return f"{path} is now called {RENAMED[path]}: use the new name"
            case "extra_forbidden" if path in self.known and keys[0] == "method":
                return f"{path} does not go with method {self.method}"
            case "extra_forbidden" if path in self.known:
                return f"{path} does not go with noise of kind {problem['loc'][1]}"
            case "extra_forbidden":
                return f"there is no key {path}; {self._hint(path)}"
            case "union_tag_not_found" if isinstance(problem["input"], dict) and "kind" not in problem["input"]:
                return f"{path}.kind is missing; it is vp or flow"
            case "union_tag_not_found" | "union_tag_invalid" if isinstance(problem["input"], dict):
                return f"{path}.kind should be vp or flow, but is {as_written(problem['input']['kind'])}"
            case "union_tag_not_found" | "union_tag_invalid":
                return f"{path} should be `teacher` or a group of keys, but is {as_written(problem['input'])}"
            case _:
                return sentence(problem, path)

    def _hint(self, path: str) -> str:
        """Return what an unknown dotted key most likely means: a misspelt key, or a right one in the wrong group."""
        group, _, name = path[:200].rpartition(".")

        def similarity(known: str) -> float:
            known_group, _, known_name = known.rpartition(".")
            ratio = difflib.SequenceMatcher(None, name.lower(), known_name.lower()).ratio()
            if len(name) > 1 and name.lower() in known_name:  # lr for student_lr
                ratio = max(ratio, 0.7)
            return ratio if known_group == group else 0.9 * ratio

        best = max(self.offered, key=similarity)
        if similarity(best) >= 0.6:
            return f"did you mean {best}?"
        siblings = dict.fromkeys(key.rpartition(".")[2] for key in self.offered if key.rpartition(".")[0] == group)
        return f"{group or 'a recipe'} has {', '.join(siblings)}"


def _keys(problem: ErrorDetails) -> list[str | int]:
    """Return the keys that lead to a problem, without the kind of noise, which pydantic adds and nobody writes."""
    keys = list(problem["loc"])
    return keys[:1] + keys[2:] if keys[0] == "noise" else keys
