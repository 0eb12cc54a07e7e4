"""The backbone in docs/backbones.md is found by its entry point, and gives the official pipeline's latents."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from families import tiny_auraflow
from one_stage import official, ours

from rmd.common import plugins
from rmd.models import registry
from rmd.models.base import Backbone
from rmd.models.registry import MODELS, family_class, wrap

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's code as a module of an installed package, with the page's entry point."""
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    named = re.search(r'^(\w+) = "my_package\.auraflow:(\w+)"$', page, re.MULTILINE)
    assert code is not None and named is not None
    assert len(code[1].splitlines()) <= 36
    (tmp_path / "my_auraflow.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint(named[1], f"my_auraflow:{named[2]}", MODELS.group)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == MODELS.group else [])
    monkeypatch.setattr(registry, "MODELS", plugins.Registry(MODELS.group, MODELS.kind, MODELS._own))
    monkeypatch.delitem(sys.modules, "my_auraflow", raising=False)
    yield "my_auraflow"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pages_backbone_is_the_official_pipeline(guidance: float, module: str) -> None:
    backbone: Backbone = wrap(tiny_auraflow())
    assert backbone.family == "auraflow" and family_class("auraflow") is type(backbone)
    expected, latents = official(backbone, (32, 24), guidance), ours(backbone, (32, 24), guidance)
    scale = float(expected.abs().max())
    torch.testing.assert_close(latents / scale, expected / scale, rtol=0, atol=1e-5)
