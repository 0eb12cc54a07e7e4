"""The registry of metrics: every metric is explained, others may be added, and unknown ones are only shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rmd.common.errors import RMDError
from rmd.evaluation.metrics import METRICS, Metric, metric, metrics_in, metrics_of, part
from rmd.worlds.base import Assessment, Features, Measured
from rmd.worlds.registry import WORLDS, all_worlds


def count(assessment: Assessment) -> Measured:
    """Measure the number of samples."""
    return Measured(value=float(assessment.count))


def test_every_metric_of_a_world_is_explained() -> None:
    worlds = tuple(all_worlds())
    for world in worlds:
        for each in map(METRICS.get, world.metrics):
            assert METRICS.get(each.name) is each
            assert each.title and each.heading and each.note and each.legend
    for name in METRICS.names():
        assert any(name in world.metrics for world in worlds)


def test_a_metric_says_to_which_worlds_it_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_loaded", dict(METRICS._loaded))
    stills, clips = WORLDS.get("scenes"), WORLDS.get("moving-scenes")
    ours = Metric("count", "count", compute=count)
    METRICS.register("count", ours)
    assert metrics_of(stills) == stills.metrics
    METRICS.register("count of clips", replace(ours, name="count of clips", applies=lambda world: world.moving))
    assert metrics_of(stills) == stills.metrics and metrics_of(clips) == (*clips.metrics, "count of clips")
    with pytest.raises(RMDError, match=r"^the name 'attributes' belongs to another metric"):
        METRICS.register("attributes", ours)


def test_rows_show_what_any_of_them_has_in_order() -> None:
    names = [each.name for each in metrics_in([["attributes", "diversity"], ["attributes", "speed"], ["of_tomorrow"]])]
    assert names == ["attributes", "diversity", "speed", "of_tomorrow"]
    assert metric("of_tomorrow").title == "of tomorrow" and metric("attributes").by_sample
    assert part("shape_a").title == "shape a" and part("shape_a").shown == "percent"


def test_rows_of_one_sample_are_not_compared_with_each_other() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        samples, renders = torch.randn(24, 5), torch.randn(60, 5)
    single = Assessment(24, 1, torch.ones(24), {}, Features(samples, renders, renders), 1.0)
    # Every sample twice in a row, once as two samples of one prompt and once as two frames of one sample.
    doubled = samples.repeat_interleave(2, dim=0)
    prompts = Assessment(48, 2, torch.ones(48), {}, Features(doubled, renders, renders), 1.0)
    frames = Assessment(24, 1, torch.ones(24), {}, Features(doubled, renders.repeat_interleave(2, 0), renders, 2), 1.0)
    expected = METRICS.get("kernel_distance").compute(single).value
    assert METRICS.get("kernel_distance").compute(prompts).value == pytest.approx(expected)
    close = METRICS.get("kernel_distance").compute(frames).value
    assert close == pytest.approx(expected, rel=0.2, abs=20)
    assert METRICS.get("diversity").compute(prompts).value == 0.0
