"""Times the sampler: seconds in the network by stage, and what the cascade loop adds around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from rmd.core.fit import Side, split_thresholds
from rmd.core.plan import StepPlan, build_plan
from rmd.core.randomness import CounterNoise
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents


class Stopwatch:
    """Counts evaluations of networks (rows of a batch), and the seconds of each call, within its `with` block."""

    def __init__(self, *networks: nn.Module) -> None:
        self.calls, self.evaluations = list[float](), 0
        self._networks, self._began, self._device = networks, 0.0, torch.device("cpu")

    @property
    def seconds(self) -> float:
        return sum(self.calls)

    def __enter__(self) -> Stopwatch:
        self._hooks = [
            hook
            for network in self._networks
            for hook in (
                network.register_forward_pre_hook(self._start, with_kwargs=True),
                network.register_forward_hook(self._stop),
            )
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # the noisy latents come first, by position or by name
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self.evaluations += x.shape[0]
        self._device = x.device
        wait_for(x.device)
        self._began = time.perf_counter()

    def _stop(self, *_: object) -> None:
        wait_for(self._device)
        self.calls.append(time.perf_counter() - self._began)


@dataclass(frozen=True)
class Timing:
    """One way of sampling a batch: medians over the repeats, in seconds for the whole batch."""

    name: str
    batch: int
    network: float
    by_stage: tuple[float, ...]
    """Seconds of one network call at each stage."""
    loop: float
    decode: float
    calls: int

    @property
    def overhead(self) -> float:
        """Seconds of the loop outside the network over those inside it."""
        return self.loop / self.network - 1


def time_sampling(
    name: str, backbone: Backbone, module: nn.Module, plan: StepPlan, prompts: Sequence[str], *, repeats: int,
    guidance: float = 1.0, progress: Callable[[], None] | None = None,
) -> Timing:  # fmt: skip
    """Sample one batch `repeats` times after a warm-up and take medians."""
    cond = backbone.encode(list(prompts))
    null = backbone.null(len(prompts)) if guidance != 1.0 else None
    runs = []
    for repeat in range(repeats + 1):
        noise = CounterNoise(0, range(len(prompts)), step=repeat, device=backbone.device)
        with Stopwatch(module) as watch:
            began = time.perf_counter()
            latents = sample_latents(backbone, module, plan, cond, noise, null=null, guidance=guidance)
            wait_for(latents.device)
            loop = time.perf_counter() - began
        began = time.perf_counter()
        with torch.no_grad():
            backbone.decode(latents)
        wait_for(latents.device)
        runs.append((watch, loop, time.perf_counter() - began))
        if progress is not None:
            progress()
    runs = runs[1:]
    by_stage = [
        median(watch.calls[step.index - 1] for watch, *_ in runs for step in plan.steps if step.stage == stage.index)
        for stage in plan.stages
    ]
    # the overhead is a small difference of large numbers: take both from the same run, the median one
    watch, loop, _ = sorted(runs, key=lambda run: run[1] / run[0].seconds)[len(runs) // 2]
    decode = median(seconds for *_, seconds in runs)
    return Timing(name, len(prompts), watch.seconds, tuple(by_stage), loop, decode, len(watch.calls))


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what was asked of it, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


TIMED, REPEATS = 64, 5
"""Samples of the batch by which plans are timed, and how often."""


def side_seconds(
    backbone: Backbone, sides: Sequence[Side], prompts: Sequence[str], *, repeats: int, frames: int = 1,
    network: nn.Module | None = None, progress: Callable[[], None] | None = None,
) -> dict[Side, float]:  # fmt: skip
    """Seconds a picture of one network call without guidance at each side, the median of `repeats`.

    The sides take turns, so that a machine that slows down or hurries does so for all of them.

    Args:
        network: the backbone's denoiser, by default.
    """
    network = backbone.denoiser if network is None else network
    thresholds = split_thresholds(backbone.schedule, (1,) * len(sides))
    plan = build_plan(backbone.schedule, steps=len(sides), sides=sides, thresholds=thresholds, frames=frames)
    timing = time_sampling("", backbone, network, plan, prompts, repeats=repeats, progress=progress)
    return {side: seconds / len(prompts) for side, seconds in zip(sides, timing.by_stage, strict=True)}


def plan_seconds(
    backbone: Backbone, plans: Sequence[StepPlan], prompts: Sequence[str], *, network: nn.Module | None = None
) -> list[float]:
    """Denoiser seconds a picture of the sampling by each plan, without guidance.

    One call is timed at every side that the plans use, and these take turns: what was measured while each was sampled
    is of another moment, or of a machine that did other things as well.

    Args:
        plans: of one backbone, with equally many frames.
        prompts: the first `TIMED` are used.
        network: the backbone's denoiser, by default.
    """
    used = [[(stage.height, stage.width) for stage in map(plan.stage_of, plan.steps)] for plan in plans]
    sides = sorted({side for its in used for side in its})
    call = side_seconds(backbone, sides, prompts[:TIMED], repeats=REPEATS, frames=plans[0].frames, network=network)
    return [sum(call[side] for side in its) for its in used]
