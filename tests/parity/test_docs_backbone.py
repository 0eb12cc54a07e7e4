"""The backbone in docs/backbones.md is found by its entry point, and gives the official pipeline's latents."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from families import tiny_sd
from helpers import PROMPTS

from rmd.common import plugins
from rmd.core.plan import build_plan
from rmd.core.randomness import CounterNoise
from rmd.models import registry
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.models.registry import MODELS, family_class, wrap

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's code as a module of an installed package, with the page's entry point."""
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    named = re.search(r'^(\w+) = "my_package\.sd_backbone:(\w+)"$', page, re.MULTILINE)
    assert code is not None and named is not None
    assert len(code[1].splitlines()) <= 36
    (tmp_path / "my_sd_backbone.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint(named[1], f"my_sd_backbone:{named[2]}", MODELS.group)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == MODELS.group else [])
    monkeypatch.setattr(registry, "MODELS", plugins.Registry(MODELS.group, MODELS.kind, MODELS._own))
    monkeypatch.delitem(sys.modules, "my_sd_backbone", raising=False)
    yield "my_sd_backbone"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pages_backbone_is_the_official_pipeline(guidance: float, module: str) -> None:
    backbone: Backbone = wrap(tiny_sd())
    assert backbone.family == "sd" and family_class("sd") is type(backbone)
    plan = build_plan(backbone.schedule, steps=4, sides=[(32, 24)], thresholds=[], multiple=backbone.size_multiple)
    noise = CounterNoise(0, range(4))
    with torch.no_grad():
        cond = backbone.encode(PROMPTS)
    latents = sample_latents(
        backbone, backbone.denoiser, plan, cond, noise, null=backbone.null(4) if guidance != 1.0 else None,
        guidance=guidance,
    )  # fmt: skip
    expected = backbone.pipe(
        prompt=PROMPTS, height=32, width=24, num_inference_steps=4, guidance_scale=guidance, output_type="latent",
        latents=noise.normal(backbone.latent_shape(4, 32, 24), "start"),
    ).images  # fmt: skip
    scale = float(expected.abs().max())
    torch.testing.assert_close(latents / scale, expected / scale, rtol=0, atol=1e-5)
