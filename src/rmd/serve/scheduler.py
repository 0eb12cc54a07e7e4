"""Brings requests and batches together: the event loop keeps the queue, and one thread owns the pipeline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from rmd.common.memory import is_out_of_memory
from rmd.sample.samplers import Media
from rmd.serve.batching import Batcher, Item, QueueFull, Shape
from rmd.serve.engine import AbandonedError, AfterStep, Served
from rmd.serve.limits import Limits
from rmd.serve.metrics import Metrics
from rmd.serve.problems import Problem

LOG = logging.getLogger(__name__)
_LONGEST_RETRY = 60.0
_WEIGHT = 0.3
"""Weight of the last batch in the average of the seconds that a batch takes."""


class Maker(Protocol):
    """Makes samples; only one thread at a time calls it."""

    @property
    def students(self) -> Mapping[str, Served]:
        """The students by name."""

    def sample(self, shape: Shape, prompts: Sequence[str], seeds: Sequence[int], after_step: AfterStep) -> list[Media]:
        """Return one sample for each prompt and seed."""
        ...


class Scheduler:
    """Accepts samples, makes them in batches, and hands them back. All but the making happens on the event loop.

    Attributes:
        draining: whether new samples are refused, because the server is about to end.
        failures: number of batches that have failed since one succeeded.
    """

    def __init__(self, maker: Maker, limits: Limits, metrics: Metrics) -> None:
        self.maker, self.limits, self.metrics = maker, limits, metrics
        self.draining, self.failures = False, 0
        self._batcher = Batcher(
            max_batch=limits.max_batch, max_wait=limits.max_wait, max_queue=limits.max_queue
        )  # fmt: skip
        self._device = ThreadPoolExecutor(1, thread_name_prefix="rmd-device")
        self._wake = asyncio.Event()
        self._busy: Sequence[Item] = ()
        self._average = 1.0
        metrics.queue.set_function(lambda: len(self._batcher))

    def submit(
        self, shape: Shape, prompt: str, seeds: Sequence[int], *, forced: bool = False
    ) -> list[Item]:  # fmt: skip
        """Put the samples of a request into the queue.

        Args:
            shape, prompt: those of all its samples.
            seeds: one for each sample.
            forced: whether to accept it even if the queue is full.

        Raises:
            Problem: 429 if the queue is full, 503 if the server is about to end.
        """
        if self.draining:
            raise Problem(503, "this server is about to end: send the request again", "shutting_down", retry_after=1)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        items = [Item(shape, prompt, seed, now, loop.create_future()) for seed in seeds]
        try:
            self._batcher.add(items, forced=forced)
        except QueueFull:
            raise Problem(
                429, f"the queue is full: {len(self._batcher)} pictures or videos are waiting", "queue_full",
                retry_after=self._until_empty(),
            ) from None  # fmt: skip
        self._wake.set()
        return items

    async def result(self, items: Sequence[Item], seconds: float) -> list[Media]:
        """Wait for samples. If the wait is cancelled, those that are not made yet never will be.

        Raises:
            Problem: 504 if they are not there after `seconds`, 500 if their batch failed.
        """
        replies = [item.reply for item in items]
        try:
            done, _ = await asyncio.wait(replies, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for reply in done:
                reply.result()  # raises the problem of a batch that failed
            if len(done) < len(replies):
                self.metrics.dropped.labels("timeout").inc()
                raise Problem(504, f"the request took longer than {seconds:g} s", "timeout")
            return [reply.result() for reply in replies]
        finally:
            for reply in replies:
                if not reply.cancel() and not reply.cancelled():
                    reply.exception()  # or else asyncio would log one that nobody has asked for
            self._wake.set()

    async def run(self) -> None:
        """Make batches until this is cancelled."""
        while True:
            self._wake.clear()
            batch = self._batcher.take(time.monotonic())
            if batch:
                await self._serve(batch)
                continue
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._batcher.wait(time.monotonic()))

    @property
    def idle(self) -> bool:
        """True if nothing waits and nothing is being made."""
        return not self._busy and not len(self._batcher)

    def close(self) -> None:
        """End the device's thread once its batch is done."""
        self._device.shutdown()

    async def _serve(self, batch: Sequence[Item]) -> None:
        """Make a batch; once more in two halves if it was too large for the device."""
        now = time.monotonic()
        for item in batch:
            item.progress = 0.0
            self.metrics.waited.observe(now - item.arrived)
        self._busy = batch
        error = await self._attempt(batch)
        splits = len(batch) > 1 and not self.limits.fixed_batch
        if error is not None and is_out_of_memory(error) and splits:
            LOG.warning("a batch of %d is too large for the device's memory, and is made in halves", len(batch))
            self.metrics.failures.labels("out_of_memory").inc()
            middle = (len(batch) + 1) // 2
            for half in (batch[:middle], batch[middle:]):
                if any(not item.reply.done() for item in half):
                    self._fail(half, await self._attempt(half))
        else:
            self._fail(batch, error)
        self._busy = ()

    async def _attempt(self, batch: Sequence[Item]) -> BaseException | None:
        """Make a batch on the device, hand its samples back, and return the error that prevented it."""
        texts, seeds = self._filled([item.prompt for item in batch], [item.seed for item in batch])
        began, shape = time.monotonic(), batch[0].shape
        made = asyncio.get_running_loop().run_in_executor(
            self._device, self.maker.sample, shape, texts, seeds, _watch(batch)
        )
        await asyncio.wait([made])
        seconds = time.monotonic() - began
        self.metrics.device.inc(seconds)
        self.metrics.batches.observe(len(batch))
        self._average += _WEIGHT * (seconds - self._average)
        error = made.exception()
        if error is None:
            self.failures = 0
            self.metrics.samples.labels(shape.student).inc(len(batch))
            for item, media in zip(batch, made.result(), strict=False):  # without those that fill the batch
                if not item.reply.done():
                    item.reply.set_result(media)
        return error

    def _fail(self, batch: Sequence[Item], error: BaseException | None) -> None:
        """Tell those who wait for a batch that it failed, if it did."""
        if error is None:
            return
        if isinstance(error, AbandonedError):
            self.metrics.failures.labels("abandoned").inc()
        else:
            self.failures += 1
            self.metrics.failures.labels("out_of_memory" if is_out_of_memory(error) else "error").inc()
            LOG.error("a batch of %d failed: %s: %s", len(batch), type(error).__name__, error, exc_info=error)
        for item in batch:
            if not item.reply.done():
                item.reply.set_exception(
                    Problem(500, "the model failed to make this sample; the server's log says why", "server_error")
                )

    def _filled(self, prompts: list[str], seeds: list[int]) -> tuple[list[str], list[int]]:
        """Return prompts and seeds, with the last ones repeated up to a whole batch if all are to have one shape."""
        missing = self.limits.max_batch - len(seeds) if self.limits.fixed_batch else 0
        return prompts + prompts[-1:] * missing, seeds + seeds[-1:] * missing

    def _until_empty(self) -> float:
        """Return an estimate of the seconds after which the queue has been worked off."""
        batches = -(-len(self._batcher) // self.limits.max_batch) + bool(self._busy)
        return min(_LONGEST_RETRY, batches * self._average)


def _watch(batch: Sequence[Item]) -> Callable[[float], bool]:
    """Return a function that the device's thread calls after each step: it notes the progress of a batch."""

    def after_step(share: float) -> bool:
        for item in batch:
            item.progress = share
        return any(not item.reply.done() for item in batch)

    return after_step
