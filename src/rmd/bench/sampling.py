"""Times the sampler: seconds in the network by stage, and what the cascade loop adds around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from rmd.backbones.base import Backbone
from rmd.generate import sample_latents
from rmd.plan import StepPlan
from rmd.randomness import CounterNoise


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
