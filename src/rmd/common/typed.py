"""Strict pydantic models, and one-sentence explanations of invalid values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rmd.common.errors import did_you_mean, shown


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, values of another type, and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def current_version(cls) -> int | None:
        """Return the `version` that this class reads and writes, or None if the model has no such field."""
        field = cls.model_fields.get("version")
        return None if field is None else field.default


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's error types for an unknown key of a model and of a dataclass."""


def explain(error: ValidationError, kind: type) -> str:
    """Return one sentence on the first problem with the values of a model or dataclass, and the number of others."""
    problems = sorted_problems(error)
    first = problems[0]
    path = dotted(first["loc"])
    if first["type"] in UNKNOWN:
        return f"there is no key {path}{did_you_mean(path, known_keys(kind))}{and_more(problems)}"
    return f"{sentence(first, path)}{and_more(problems)}"


def sorted_problems(error: ValidationError) -> list[ErrorDetails]:
    """Return the problems, with unknown keys first: a misspelt key is often why another one is missing."""
    problems = error.errors(include_url=False)
    return sorted(problems, key=lambda problem: problem["type"] not in UNKNOWN)


def and_more(problems: Sequence[ErrorDetails]) -> str:
    """Return `" (and 2 more)"`, or nothing if there is only one problem."""
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""


def dotted(keys: Sequence[str | int]) -> str:
    """Return keys and list indices as people write them, `plan.sides[1]`, cut to 120 characters."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key[:100]}" for key in keys[:20]).removeprefix(".")
    return path if len(path) <= 120 else f"{path[:117]}..."


def sentence(problem: ErrorDetails, path: str) -> str:
    """Return a sentence that says what is wrong with the value at a path, and what it should be."""
    match problem["type"]:
        case "missing":
            return f"{path} is missing"
        case "json_invalid":
            return f"not valid JSON ({problem['ctx']['error']})"
        case "value_error":
            return f"{path} {problem['ctx']['error']}, but is {as_written(problem['input'])}".strip()
        case "conflict":
            return f"{path} {problem['msg']}"
        case _:
            return f"{path} should be {_expected(problem)}, but is {as_written(problem['input'])}".strip()


def as_written(value: object) -> str:
    """Return a value as YAML and JSON write it, cut to 60 characters; None becomes "empty"."""
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else shown(value)


def known_keys(model: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a model or dataclass and of those inside it."""
    for name, annotation in _fields(model).items():
        yield f"{prefix}{name}"
        for kind in _models(annotation):
            yield from known_keys(kind, f"{prefix}{name}.")


def _models(annotation: object) -> Iterator[type]:
    """Yield the models and dataclasses in an annotation, at any depth in unions and `Annotated`."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _fields(model: type) -> dict[str, object]:
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return get_type_hints(model)


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a group of keys",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "dataclass_type": "a group of keys",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def _expected(problem: ErrorDetails) -> str:
    context: Mapping[str, object] = problem.get("ctx", {})
    phrase = _EXPECTED.get(problem["type"])
    # RMD has no words of its own for this type of error, so pydantic's are used.
    return phrase.format(**context) if phrase else f"valid ({problem['msg']})"
