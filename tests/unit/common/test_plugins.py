"""Registries: names, conflicts, and packages that cannot be imported."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rmd.common import plugins
from rmd.common.errors import RMDError
from rmd.common.plugins import Registry


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Return a list of entry points, to which a test adds those of its packages."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: [each for each in points if each.group == group])
    return points


def registry() -> Registry[type]:
    return Registry("rmd.test", "thing", {"own": "pathlib:Path"})


def test_entries_are_found_by_name(installed: list[EntryPoint]) -> None:
    installed += [EntryPoint("theirs", "fractions:Fraction", "rmd.test"), EntryPoint("x", "a:b", "rmd.other")]
    things = registry()
    things.register("mine", int)
    assert things.names() == ("own", "mine", "theirs")
    assert things.get("own") is Path
    assert things.get("mine") is int
    assert things.get("theirs").__name__ == "Fraction"


def test_nothing_is_imported_before_it_is_asked_for(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("broken", "no_such_module:Thing", "rmd.test"))
    things = registry()
    assert things.get("own") is Path
    with pytest.raises(
        RMDError, match=r"the thing .broken. of the package .* cannot be imported \(ModuleNotFoundError"
    ):
        things.get("broken")


def test_an_unknown_name_is_refused_with_the_known_ones(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("theirs", "fractions:Fraction", "rmd.test"))
    with pytest.raises(RMDError, match=r"own.*theirs"):
        registry().get("owm")


@pytest.mark.parametrize("name", ["own", "mine"])
def test_a_name_that_is_taken_is_refused(name: str, installed: list[EntryPoint]) -> None:
    things = registry()
    things.register("mine", int)
    with pytest.raises(RMDError, match="belongs to another thing"):
        things.register(name, float)
    things.register("mine", int)  # the same entry again is not a conflict


def test_a_class_that_is_defined_again_replaces_the_earlier_one(installed: list[EntryPoint]) -> None:
    """A notebook's cell with the decorator may run twice."""

    def defined(name: str) -> type:
        return type(name, (), {"__module__": "__main__", "__qualname__": name})

    things, (first, second) = registry(), (defined("Mine"), defined("Mine"))
    things.register("mine", first)
    things.register("mine", second)
    assert things.get("mine") is second is not first
    with pytest.raises(RMDError, match="belongs to another thing"):
        things.register("mine", defined("Other"))


def test_packages_that_use_one_name_are_refused(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("own", "fractions:Fraction", "rmd.test"))
    with pytest.raises(RMDError, match="belongs to RMD itself"):
        registry().names()
    installed[:] = [EntryPoint("x", "fractions:Fraction", "rmd.test"), EntryPoint("x", "decimal:Decimal", "rmd.test")]
    with pytest.raises(RMDError, match="belongs to the package"):
        registry().names()
    installed[:] = [EntryPoint("x", "fractions:Fraction", "rmd.test")] * 2  # one package on two entries of the path
    assert registry().names() == ("own", "x")
