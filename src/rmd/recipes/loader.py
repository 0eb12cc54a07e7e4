"""Reads the YAML of recipes within limits: no text can run code, or take minutes to read."""

from __future__ import annotations

import re
from collections.abc import Hashable

import yaml

from rmd.common.errors import RMDError, shown

MAX_BYTES = 2**20
"""Largest size of a recipe file in bytes, about a thousand times that of the longest packaged recipe."""
MAX_SIZE = 20_000
"""Largest number of values in a text; each use of an alias counts again, and long texts count as several values."""
MAX_DEPTH = 50
"""Deepest nesting of lists and groups."""
_TAG = "tag:yaml.org,2002:"
_NEITHER_TEXT_NOR_NUMBER = ("timestamp", "binary", "omap", "pairs", "set")


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not allowed in a recipe."""


class _Loader(yaml.SafeLoader):
    """Reads dates as text and 1e-5 as a number; refuses duplicate keys, and texts beyond the limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._size, self._depth = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse a text that is too large or too deeply nested while it is read, before anything is built from it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # it is not in PyYAML's stubs
        mark, before = event.start_mark, self._size
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"lists and groups are nested more than {MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise _error("an alias is inside the value that it stands for", mark)
            self._size += self._sizes[id(node)]
        else:
            self._size += 1 + (len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0)
            self._sizes[id(node)] = self._size - before
        if self._size > MAX_SIZE:
            raise _error(f"there are more than {MAX_SIZE} values, which no recipe needs", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """Add the position to the error for a number that Python cannot read, such as one of thousands of digits."""
        try:
            value: object = super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, KeyError, IndexError) as error:
            raise _error(f"{shown(node.value)} cannot be read as a value", node.start_mark) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Build a mapping as the base class does, but require that keys are text and unique."""
        if not isinstance(node, yaml.MappingNode):
            raise _error("expected `key: value` lines here", node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key should be a word, not a list or a group", key.start_mark)
            if key.value in seen:
                raise _error(f"the key {_cut(key.value)} appears twice", key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _unknown_tag(loader: _Loader, node: yaml.Node) -> object:
    raise _error(
        f"the tag {_cut(str(node.tag).removeprefix(_TAG))} has no meaning in a recipe: leave it out", node.start_mark
    )


# YAML 1.1 reads 1e-5 as a string because it has no dot.
_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
for _name in _NEITHER_TEXT_NOR_NUMBER:
    _Loader.add_constructor(f"{_TAG}{_name}", _unknown_tag)
_Loader.add_constructor(None, _unknown_tag)


def parse(text: str, label: str) -> object:
    """Return the value of a YAML text: None, text, a number, a boolean, or a list or group of these.

    Args:
        label: the name of the text in errors.

    Raises:
        RMDError: the text is not YAML, holds something else, or is larger or deeper than any recipe; the message names
            the line.
    """
    try:
        value: object = yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        what = "" if isinstance(error, _Refused) else "this is not YAML: "
        raise RMDError(f"{label}{where}: {what}{_cut(error.problem or error.context or '')}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise RMDError(f"{label}, line {line}: this is not YAML: it must not contain the character {code}") from error
    return value


def _error(problem: str, mark: yaml.Mark) -> _Refused:
    return _Refused(None, None, problem, mark)


def _cut(text: str) -> str:
    """Return the beginning of a text on one line, for an error message."""
    text = " ".join(text[:200].split())
    return text if len(text) <= 120 else f"{text[:117]}..."
