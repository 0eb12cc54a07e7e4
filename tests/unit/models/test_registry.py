"""Model families are found by name and by pipeline class; other packages and this process can add their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import LinearBackbone

from rmd.common import plugins
from rmd.common.errors import RMDError
from rmd.models import registry
from rmd.models.base import Backbone
from rmd.models.registry import MODELS, family_class, family_of, register, wrap


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points that tests add to; nothing that a test registers stays."""
    entries: list[EntryPoint] = []
    fresh = plugins.Registry[type[Backbone]](MODELS.group, MODELS.kind, MODELS._own)

    def listed(group: str) -> list[EntryPoint]:
        return [entry for entry in entries if entry.group == group]

    monkeypatch.setattr(plugins, "entry_points", listed)
    monkeypatch.setattr(registry, "entry_points", listed)
    monkeypatch.setattr(registry, "MODELS", fresh)
    return entries


class Flux:
    """Stands in for a pipeline of a class that no family is registered for."""

    config: ClassVar[Mapping[str, object]] = {}


def test_every_family_is_found_by_its_name_and_an_unknown_one_is_refused(installed: list[EntryPoint]) -> None:
    for name in MODELS.names():
        assert family_class(name).family == name
    with pytest.raises(RMDError, match=r"^unknown model family 'sdlx' \(did you mean 'sdxl'\?\)"):
        family_class("sdlx")


def test_a_class_of_this_process_is_registered_by_the_decorator(installed: list[EntryPoint]) -> None:
    for _ in range(2):  # a notebook's cell may run again

        @register
        class Mine(LinearBackbone):
            family = "mine"
            pipeline_classes = ("MyPipeline",)

        assert family_class("mine") is Mine
        assert family_of({"_class_name": "MyPipeline"}) is Mine


@pytest.mark.parametrize(
    ("name", "pipelines", "sentence"),
    [
        ("sdxl", ("MyPipeline",), "^the name 'sdxl' .* another model family: register yours"),
        ("mine", ("WanPipeline",), "^pipelines of the class WanPipeline belong to the family wan: leave it out$"),
    ],
)
def test_a_name_or_a_pipeline_of_another_family_is_refused(
    name: str, pipelines: tuple[str, ...], sentence: str, installed: list[EntryPoint]
) -> None:
    mine = type("Mine", (LinearBackbone,), {"family": name, "pipeline_classes": pipelines})
    with pytest.raises(RMDError, match=sentence):
        register(mine)


def test_a_pipeline_without_a_family_is_refused_with_those_that_have_one(installed: list[EntryPoint]) -> None:
    with pytest.raises(RMDError, match=r"^no backbone is registered for Flux: registered are FluxPipeline, PixArt.*"):
        wrap(Flux())


@pytest.mark.parametrize("value", ["json", "fractions:Fraction", "helpers:LinearBackbone"])
def test_an_entry_point_that_is_not_the_familys_class_is_refused(value: str, installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("other", value, MODELS.group))
    with pytest.raises(
        RMDError, match=r"^the entry point 'other' of rmd\.models must name a subclass of Backbone whose"
    ):
        family_class("other")


def test_a_broken_package_does_not_disturb_rmds_own_families(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("other", "no_such_module:Backbone", MODELS.group))
    assert family_of({"_class_name": "WanPipeline"}) is family_class("wan")


def test_families_that_share_a_class_tell_their_pipelines_apart(installed: list[EntryPoint]) -> None:
    def takes(tiled: bool) -> classmethod[Backbone, [Mapping[str, object]], bool]:
        return classmethod(lambda cls, index: index["_class_name"] == "Shared" and index.get("tiled", tiled) is tiled)

    for name, tiled in (("plain", False), ("tiled", True)):
        pipelines = {"family": name, "pipeline_classes": ("Shared",), "takes": takes(tiled)}
        register(type(name, (LinearBackbone,), pipelines))
    assert family_of({"_class_name": "Shared", "tiled": True}).family == "tiled"
    assert family_of({"_class_name": "Shared", "tiled": False}).family == "plain"
    with pytest.raises(RMDError, match=r"^the families plain and tiled both take pipelines of the class Shared: unins"):
        family_of({"_class_name": "Shared"})


def test_a_class_may_be_both_decorated_and_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[EntryPoint]
) -> None:
    (tmp_path / "their_family.py").write_text(
        "from helpers import LinearBackbone\nfrom rmd.models.registry import register\n\n\n"
        "@register\nclass Theirs(LinearBackbone):\n    family = 'theirs'\n    pipeline_classes = ('TheirPipeline',)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_family", raising=False)
    installed.append(EntryPoint("theirs", "their_family:Theirs", MODELS.group))
    assert family_class("theirs").__name__ == "Theirs"
    assert family_of({"_class_name": "TheirPipeline"}) is family_class("theirs")
