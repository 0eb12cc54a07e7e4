"""Timing of the sampler: it counts evaluations, and its parts add up."""

from __future__ import annotations

import pytest
import torch
from families import TINY, frames_of
from helpers import PROMPTS, tiny_sdxl
from torch import nn

from rmd.core.plan import build_plan
from rmd.sample.timing import Stopwatch, time_sampling


def test_stopwatch_changes_nothing_and_counts_rows() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(5, 3)
    expected = layer(x)
    with Stopwatch(layer) as watch:
        assert torch.equal(layer(x), expected)
        layer(x[:2])
    layer(x)  # outside the block: not counted
    assert watch.evaluations == 7
    assert len(watch.calls) == 2
    assert watch.seconds == sum(watch.calls) > 0


def test_timing_counts_calls_and_orders_stages() -> None:
    backbone = tiny_sdxl()
    plan = build_plan(backbone.schedule, steps=4, sides=[(16, 16), (32, 32)], thresholds=[-2.5])
    ticks: list[int] = []
    timing = time_sampling(
        "cascade", backbone, backbone.denoiser, plan, PROMPTS, repeats=2, progress=lambda: ticks.append(1)
    )
    assert timing.calls == 4
    assert timing.batch == len(PROMPTS)
    assert len(timing.by_stage) == 2
    assert len(ticks) == 3  # a warm-up and two repeats
    assert timing.loop > timing.network > 0
    assert timing.overhead == timing.loop / timing.network - 1


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family_can_be_timed(family: str) -> None:
    backbone = TINY[family]()
    plan = build_plan(
        backbone.schedule, steps=2, sides=[(16, 16), (32, 32)], thresholds=[-2.5], frames=frames_of(backbone)
    )
    timing = time_sampling("cascade", backbone, backbone.denoiser, plan, PROMPTS[:2], repeats=1)
    assert timing.calls == 2 and timing.network > 0 and timing.decode > 0


def test_guidance_doubles_the_batch_not_the_calls() -> None:
    backbone = tiny_sdxl()
    plan = build_plan(backbone.schedule, steps=2, sides=[(16, 16)], thresholds=[])
    timing = time_sampling("teacher", backbone, backbone.denoiser, plan, PROMPTS, repeats=1, guidance=2.0)
    assert timing.calls == 2
