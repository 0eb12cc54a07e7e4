"""The YAML of recipes: which values it gives, and what is refused at once, in one sentence that names the line."""

from __future__ import annotations

import time

import pytest

from rmd.common.errors import RMDError
from rmd.recipes.loader import MAX_BYTES, MAX_DEPTH, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("a: 1", {"a": 1}),
        ("a: 1e-5", {"a": 1e-5}),
        ("a: yes", {"a": True}),
        ("yes: a", {"yes": "a"}),  # a key is text
        ("5: a", {"5": "a"}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),  # a date is text
        ("a: 2001-99-99", {"a": "2001-99-99"}),
        ("x: &x [1, 2]\ny: *x", {"x": [1, 2], "y": [1, 2]}),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}),
        ("a: " + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2), None),
    ],
)
def test_values(text: str, value: object) -> None:
    parsed = parse(text, "r.yaml")
    assert value is None or parsed == value


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)  # nine to the twelfth texts, of a few hundred characters
MERGES = "\n".join(
    ["a0: &a0 {b: 1, c: 2}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], d{i}: 1}}" for i in range(1, 40)]
)
TOO_MANY = "there are more than 20000 values, which no recipe needs"
TOO_DEEP = "lists and groups are nested more than 50 deep"


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        (BOMB, 5, TOO_MANY),
        (MERGES, 11, TOO_MANY),
        ("a: [" + "1, " * 300_000 + "1]", 1, TOO_MANY),
        ("a: &a '" + "x" * 900_000 + "'\nb: [*a, *a, *a]", 2, TOO_MANY),
        ("[" * 500_000, 1, TOO_DEEP),
        ("\n".join(" " * i + "a:" for i in range(1000)), 50, TOO_DEEP),
        ("a: &e [*e]", 1, "an alias is inside the value that it stands for"),
        ("a: *x", 1, "this is not YAML: found undefined alias 'x'"),
        ("b: 1\na: " + "9" * 100_000, 2, "'9999"),
        ("a: !!int ''", 1, "'' cannot be read as a value"),
        ("a: !!bool maybe", 1, "'maybe' cannot be read as a value"),
        ("b: 1\na: !!python/object/apply:os.system [id]", 2, "the tag python/object/apply:os.system has no meaning"),
        ("a: !x 5", 1, "the tag !x has no meaning in a recipe: leave it out"),
        ("a: !!binary aGk=", 1, "the tag binary has no meaning in a recipe: leave it out"),
        ("!!map [1]", 1, "expected `key: value` lines here"),
        ("? [1, 2]\n: 3", 1, "a key should be a word, not a list or a group"),
        ("a: 1\nb: 2\na: 3", 3, "the key a appears twice"),
        ("a: \x00", 1, "this is not YAML: it must not contain the character U+0000"),
        ("a: 1\n\nb: \x1b[0m", 3, "this is not YAML: it must not contain the character U+001B"),
        ("a:\n\tb: 1", 2, "this is not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", 2, "this is not YAML: but found another document"),
        ("a: {b", 1, "this is not YAML: expected ',' or '}', but got '<stream end>'"),
    ],
)
def test_one_sentence_at_once(text: str, line: int, sentence: str) -> None:
    began = time.process_time()
    with pytest.raises(RMDError) as caught:
        parse(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith(f"r.yaml, line {line}: {sentence}")
    assert "\n" not in message and len(message) < 250
    assert time.process_time() - began < 5


def test_the_largest_file_is_read_in_seconds() -> None:
    began = time.process_time()
    assert parse(("# " + "x" * 98 + "\n") * (MAX_BYTES // 101) + "a: 1", "r.yaml") == {"a": 1}
    assert time.process_time() - began < 5
