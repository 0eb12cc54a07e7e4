"""The queue: batches have one shape and a largest size, the oldest comes first, and nothing waits for ever."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.serve.batching import Batcher, Item, QueueFull, Shape

SMALL, LARGE = Shape("a", 32, 32), Shape("a", 64, 64)


def item(arrived: float = 0.0, shape: Shape = SMALL) -> Item:
    return Item(shape, "a red ball", 0, arrived, Future[object]())


def batcher(max_batch: int = 3, max_wait: float = 1.0, max_queue: int = 8) -> Batcher:
    return Batcher(max_batch=max_batch, max_wait=max_wait, max_queue=max_queue)


def test_a_full_batch_does_not_wait() -> None:
    queue, items = batcher(), [item() for _ in range(4)]
    queue.add(items)
    assert queue.take(0.0) == items[:3]
    assert queue.take(0.5) == [] and queue.wait(0.5) == 0.5
    assert queue.take(1.0) == items[3:] and queue.wait(1.0) is None and len(queue) == 0


def test_shapes_are_not_mixed_and_the_oldest_comes_first() -> None:
    queue = batcher()
    old, young, others = item(0.0, LARGE), item(0.5, LARGE), [item(0.1), item(0.2)]
    queue.add([old, *others, young])
    assert queue.take(1.1) == [old, young]
    assert queue.take(1.1) == others


def test_a_full_batch_passes_one_that_still_waits_for_others() -> None:
    queue, alone, full = batcher(), item(0.0, LARGE), [item(0.1) for _ in range(3)]
    queue.add([alone, *full])
    assert queue.take(0.5) == full
    assert queue.take(1.0) == [alone]


def test_a_student_of_another_name_is_another_shape() -> None:
    queue, items = batcher(), [item(), item(shape=Shape("b", 32, 32))]
    queue.add(items)
    assert [queue.take(1.0), queue.take(1.0)] == [items[:1], items[1:]]


def test_a_request_is_accepted_as_a_whole_or_not_at_all() -> None:
    queue = batcher(max_queue=4)
    queue.add([item() for _ in range(3)])
    with pytest.raises(QueueFull):
        queue.add([item(), item()])
    assert len(queue) == 3
    queue.add([item(), item()], forced=True)
    assert len(queue) == 5


def test_what_nobody_waits_for_leaves_the_queue() -> None:
    queue, items = batcher(max_queue=3), [item(), item(), item()]
    queue.add(items)
    items[0].reply.cancel()
    assert len(queue) == 2
    queue.add([last := item()])
    assert queue.take(0.0) == [*items[1:], last]


@given(st.lists(st.tuples(st.sampled_from([SMALL, LARGE]), st.floats(0, 5)), max_size=30), st.integers(1, 4))
def test_every_item_comes_out_once_and_in_order(arrivals: list[tuple[Shape, float]], max_batch: int) -> None:
    queue = batcher(max_batch, max_wait=0.5, max_queue=30)
    items = [item(now, shape) for shape, now in sorted(arrivals, key=lambda each: each[1])]
    queue.add(items)
    out, now = [], 0.0
    while (wait := queue.wait(now)) is not None:
        batch = queue.take(now)
        assert len(batch) <= max_batch and len({each.shape for each in batch}) <= 1
        out += batch
        now += 0.0 if batch else wait + 1e-9
    for shape in (SMALL, LARGE):
        assert [each for each in out if each.shape == shape] == [each for each in items if each.shape == shape]
