"""The scheduler with a device that can be held, that fails, and that runs out of memory."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest
import torch
from PIL import Image

from rmd.sample.samplers import Media
from rmd.serve.batching import Shape
from rmd.serve.engine import AbandonedError, AfterStep, Served
from rmd.serve.limits import Limits
from rmd.serve.metrics import Metrics
from rmd.serve.problems import Problem
from rmd.serve.scheduler import Scheduler

SHAPE = Shape("toy", 1, 1)


class Device:
    """Draws one pixel of the seed's colour; holds, fails or lacks memory when told to."""

    def __init__(self, *, room: int = 100) -> None:
        self.students: dict[str, Served] = {}
        self.room, self.batches = room, list[list[int]]()
        self.free, self.started = threading.Event(), threading.Event()
        self.free.set()

    def sample(self, shape: Shape, prompts: Sequence[str], seeds: Sequence[int], after_step: AfterStep) -> list[Media]:
        self.batches.append(list(seeds))
        self.started.set()
        self.free.wait(30)
        if not after_step(0.5):
            raise AbandonedError
        if len(seeds) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "fail" in prompts:
            raise ValueError("the device is broken")
        return [Image.new("RGB", (1, 1), (seed, 0, 0)) for seed in seeds]


def run(
    work: Callable[[Scheduler, Device], Awaitable[None]], device: Device | None = None, **limits: object
) -> Metrics:
    """Run a scheduler of a device as long as a coroutine, and return its metrics."""
    chosen, metrics = device or Device(), Metrics()

    async def all_of_it() -> None:
        settings = Limits(**{"max_n": 1, "max_wait": 0.0, **limits})
        scheduler = Scheduler(chosen, settings, metrics)
        task = asyncio.create_task(scheduler.run())
        await asyncio.wait_for(work(scheduler, chosen), 30)
        task.cancel()
        chosen.free.set()
        await asyncio.to_thread(scheduler.close)

    asyncio.run(all_of_it())
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def make(scheduler: Scheduler, *seeds: int, prompt: str = "a", seconds: float = 30.0) -> list[int]:
    """Return the colours of the pictures of some seeds."""
    pictures = await scheduler.result(scheduler.submit(SHAPE, prompt, seeds), seconds)
    return [picture.getpixel((0, 0))[0] for picture in pictures]


async def held(device: Device, scheduler: Scheduler, seed: int = 99) -> asyncio.Task[list[int]]:
    """Start a batch on a device that does not end it until it is freed."""
    device.free.clear()
    task = asyncio.create_task(make(scheduler, seed))
    await asyncio.to_thread(device.started.wait, 30)
    return task


def test_requests_that_wait_together_are_made_together() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        first = await held(device, scheduler)
        rest = [asyncio.create_task(make(scheduler, seed, seed + 1)) for seed in (1, 3, 5)]
        await asyncio.sleep(0)
        device.free.set()
        assert [await task for task in rest] == [[1, 2], [3, 4], [5, 6]]
        assert await first == [99] and device.batches == [[99], [1, 2, 3, 4], [5, 6]]

    metrics = run(work)
    assert value(metrics, "rmd_batch_size_count") == 3 and value(metrics, "rmd_samples_total", model="toy") == 7


def test_a_batch_that_fails_answers_its_requests_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        with pytest.raises(Problem, match=r"the server's log says why") as caught:
            await make(scheduler, 1, 2, prompt="fail")
        assert caught.value.status == 500 and scheduler.failures == 1
        assert await make(scheduler, 3) == [3] and scheduler.failures == 0

    metrics = run(work)
    assert value(metrics, "rmd_failed_batches_total", reason="error") == 1
    assert "a batch of 2 failed: ValueError: the device is broken" in caplog.text


def test_a_batch_too_large_for_the_memory_is_split_once() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        assert await make(scheduler, 1, 2, 3) == [1, 2, 3]
        assert device.batches == [[1, 2, 3], [1, 2], [3]]
        device.batches.clear()
        device.room = 1
        both = await asyncio.gather(make(scheduler, 1, 2), make(scheduler, 3, 4), return_exceptions=True)
        assert [answer.status for answer in both if isinstance(answer, Problem)] == [500, 500]
        assert device.batches == [[1, 2, 3, 4], [1, 2], [3, 4]]
        assert await make(scheduler, 5) == [5]

    metrics = run(work, Device(room=2))
    assert value(metrics, "rmd_failed_batches_total", reason="out_of_memory") == 1 + 3


def test_a_fixed_batch_is_filled_and_not_split() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        assert await make(scheduler, 1, 2) == [1, 2]
        assert device.batches == [[1, 2, 2, 2]]
        device.room = 3
        with pytest.raises(Problem):
            await make(scheduler, 3)
        assert device.batches[1:] == [[3, 3, 3, 3]]

    run(work, fixed_batch=True)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        first = await held(device, scheduler)
        waiting = asyncio.create_task(make(scheduler, 1, 2))
        await asyncio.sleep(0)
        with pytest.raises(Problem, match=r"the queue is full: 2 pictures or videos are waiting") as caught:
            await make(scheduler, 3)
        assert caught.value.status == 429 and caught.value.response().headers["retry-after"].isdigit()
        device.free.set()
        assert await waiting == [1, 2] and await first == [99]
        assert await make(scheduler, 3) == [3]

    run(work, max_queue=2)


def test_a_request_that_takes_too_long_is_given_up() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        first = await held(device, scheduler)
        with pytest.raises(Problem, match=r"took longer than 0.01 s") as caught:
            await make(scheduler, 1, seconds=0.01)
        assert caught.value.status == 504
        device.free.set()
        assert await first == [99] and await make(scheduler, 2) == [2]
        assert device.batches == [[99], [2]]

    assert value(run(work), "rmd_dropped_requests_total", reason="timeout") == 1


def test_what_nobody_waits_for_is_not_made_and_a_batch_under_way_ends_early() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        first = await held(device, scheduler)
        second = asyncio.create_task(make(scheduler, 1))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        device.free.set()
        assert await make(scheduler, 2) == [2]
        assert device.batches == [[99], [2]]

    assert value(run(work), "rmd_failed_batches_total", reason="abandoned") == 1


def test_a_server_about_to_end_finishes_what_it_accepted() -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        first = await held(device, scheduler)
        waiting = asyncio.create_task(make(scheduler, 1))
        await asyncio.sleep(0)
        scheduler.draining = True
        with pytest.raises(Problem, match=r"about to end") as caught:
            await make(scheduler, 2)
        assert caught.value.status == 503 and not scheduler.idle
        device.free.set()
        assert (await first, await waiting) == ([99], [1])
        await asyncio.sleep(0)
        assert scheduler.idle

    run(work)


def test_nothing_is_logged_for_what_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def work(scheduler: Scheduler, device: Device) -> None:
        first = await held(device, scheduler)
        first.cancel()
        device.free.set()
        assert await make(scheduler, 1) == [1]

    with caplog.at_level(logging.INFO):
        run(work)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("rmd")] == []
