"""The queue of a server: samples wait until a batch of one shape is full, or until they have waited long enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Reply(Protocol):
    """The part of a future that the queue needs."""

    def done(self) -> bool:
        """Return whether nobody waits any more: the sample is there, or its request was cancelled."""


@dataclass(frozen=True)
class Shape:
    """The properties that all samples of one batch have in common.

    Attributes:
        student: name of the student.
        height, width: final size in pixels.
        frames: number of frames; 1 for a picture.
    """

    student: str
    height: int
    width: int
    frames: int = 1


@dataclass(eq=False)
class Item:
    """One sample that somebody waits for.

    Attributes:
        shape: its student and size.
        prompt, seed: what determines the sample.
        arrived: time at which it was put into the queue, in seconds.
        reply: the future that receives the sample.
        progress: finished share of its steps, from 0 to 1, or None while it is in the queue.
    """

    shape: Shape
    prompt: str
    seed: int
    arrived: float
    reply: Any
    progress: float | None = None


class QueueFull(Exception):
    """The queue has no room for the samples of a request."""


class Batcher:
    """Collects items into batches of one shape.

    It knows no clock, threads or network: times are given, and it belongs to whoever calls it. Items whose reply is
    done are forgotten.

    Args:
        max_batch: largest number of items in a batch.
        max_wait: seconds that an item waits for others of its shape, counted from its arrival.
        max_queue: largest number of items in the queue.
    """

    def __init__(self, *, max_batch: int, max_wait: float, max_queue: int) -> None:
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._living())

    def add(self, items: Sequence[Item], *, forced: bool = False) -> None:
        """Put items at the end of the queue: all of them or none.

        Args:
            items: the items, in the order of their arrival.
            forced: whether to add them to a full queue, too.

        Raises:
            QueueFull: there is no room for all of them.
        """
        if not forced and len(self) + len(items) > self.max_queue:
            raise QueueFull
        self._items.extend(items)

    def take(self, now: float) -> list[Item]:
        """Remove and return the next batch; nothing if no batch is full and no item has waited long enough.

        The batch with the oldest item comes first, so that no shape waits for ever.
        """
        groups = self._groups()
        ready = (
            group for group in groups if len(group) >= self.max_batch or now >= group[0].arrived + self.max_wait
        )  # fmt: skip
        batch = next(ready, [])[: self.max_batch]
        taken = set(map(id, batch))
        self._items = [item for item in self._items if id(item) not in taken]
        return batch

    def wait(self, now: float) -> float | None:
        """Return the seconds after which a batch is ready if no item is added; None: the queue is empty."""
        items = self._living()
        return max(0.0, items[0].arrived + self.max_wait - now) if items else None

    def _living(self) -> list[Item]:
        self._items = [item for item in self._items if not item.reply.done()]
        return self._items

    def _groups(self) -> list[list[Item]]:
        """Return the items of each shape, the shape with the oldest item first."""
        groups: dict[Shape, list[Item]] = {}
        for item in self._living():
            groups.setdefault(item.shape, []).append(item)
        return list(groups.values())
