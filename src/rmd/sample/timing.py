"""Timing of the sampler: seconds in the network per stage, and the overhead of the loop around it.

Nearly all time of a diffusion sampler is spent in the denoiser, and the cost of one call grows with the resolution.
This module measures calls where they happen, by hooks on the network, and derives from them what a plan costs.
"""

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

TIMED, REPEATS = 64, 5
"""Batch size and number of repeats when plans are timed."""


class Stopwatch:
    """Counts evaluations of networks and measures the seconds of each call, inside its `with` block.

    Attributes:
        calls: seconds of each call, in order.
        evaluations: number of evaluations: the batch sizes of all calls, added up.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.calls, self.evaluations = list[float](), 0
        self._networks, self._began, self._device = networks, 0.0, torch.device("cpu")

    @property
    def seconds(self) -> float:
        """Seconds of all calls together."""
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
        # The first tensor, positional or by name, is the noisy latents.
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
    """The time that a way of sampling takes: medians over the repeats, in seconds for a whole batch.

    Attributes:
        name: name of the way of sampling.
        batch: number of samples in the batch.
        network: seconds in the network.
        by_stage: seconds of one network call at each stage.
        loop: seconds of the sampling loop, including the network.
        decode: seconds in the VAE.
        calls: number of network calls.
    """

    name: str
    batch: int
    network: float
    by_stage: tuple[float, ...]
    loop: float
    decode: float
    calls: int

    @property
    def overhead(self) -> float:
        """Seconds of the loop outside the network, divided by those inside it."""
        return self.loop / self.network - 1


def time_sampling(
    name: str, backbone: Backbone, module: nn.Module, plan: StepPlan, prompts: Sequence[str], *, repeats: int,
    guidance: float = 1.0, progress: Callable[[], None] | None = None,
) -> Timing:  # fmt: skip
    """Sample one batch `repeats` times after a warm-up, and return the medians.

    Args:
        name: name of the result.
        backbone: encodes the prompts and decodes the latents.
        module: the denoiser to time.
        plan: the plan to sample with.
        prompts: one prompt per sample of the batch.
        repeats: number of timed runs.
        guidance: guidance scale; 1 means one network evaluation per sample and step instead of two.
        progress: called after the warm-up and after each repeat.
    """
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
    # The overhead is a small difference between large numbers, so both come from the same run: the median one.
    watch, loop, _ = sorted(runs, key=lambda run: run[1] / run[0].seconds)[len(runs) // 2]
    decode = median(seconds for *_, seconds in runs)
    return Timing(name, len(prompts), watch.seconds, tuple(by_stage), loop, decode, len(watch.calls))


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all queued work, so that a clock can be read; do nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def side_seconds(
    backbone: Backbone, sides: Sequence[Side], prompts: Sequence[str], *, repeats: int, frames: int = 1,
    network: nn.Module | None = None, progress: Callable[[], None] | None = None,
) -> dict[Side, float]:  # fmt: skip
    """Return the seconds per picture of one network call without guidance at each resolution.

    The resolutions are measured in turn within every repeat, so that a change of the machine's speed affects all of
    them.

    Args:
        backbone: encodes the prompts and decodes the latents.
        sides: (height, width) of each resolution in pixels, increasing.
        prompts: one prompt per sample of the batch.
        repeats: number of timed runs, of which the median is taken.
        frames: number of frames of a video; 1 for pictures.
        network: the network to time; the backbone's denoiser by default.
        progress: called after the warm-up and after each repeat.
    """
    network = backbone.denoiser if network is None else network
    thresholds = split_thresholds(backbone.schedule.for_size(*sides[-1], frames), (1,) * len(sides))
    plan = build_plan(backbone.schedule, steps=len(sides), sides=sides, thresholds=thresholds, frames=frames)
    timing = time_sampling("", backbone, network, plan, prompts, repeats=repeats, progress=progress)
    return {side: seconds / len(prompts) for side, seconds in zip(sides, timing.by_stage, strict=True)}


def plan_seconds(
    backbone: Backbone, plans: Sequence[StepPlan], prompts: Sequence[str], *, network: nn.Module | None = None
) -> list[float]:
    """Return the denoiser seconds per picture of sampling with each plan, without guidance.

    They are sums of the seconds of single calls, which are measured in turn at every resolution that the plans use.
    Times recorded while each plan was sampled would come from different moments, when the machine may have been more or
    less busy.

    Args:
        backbone: encodes the prompts and decodes the latents.
        plans: plans of this backbone, all with the same number of frames.
        prompts: prompts of the batch; the first `TIMED` are used.
        network: the network to time; the backbone's denoiser by default.
    """
    sides_of = [[(stage.height, stage.width) for stage in map(plan.stage_of, plan.steps)] for plan in plans]
    sides = sorted({side for steps in sides_of for side in steps})
    call = side_seconds(backbone, sides, prompts[:TIMED], repeats=REPEATS, frames=plans[0].frames, network=network)
    return [sum(call[side] for side in steps) for steps in sides_of]
