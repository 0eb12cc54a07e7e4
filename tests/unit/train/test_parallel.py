"""The division of a batch, and a process that is alone; tests/distributed has two processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import TINY, tiny_wan
from helpers import cascade
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.recipes.groups import ParallelConfig
from rmd.train.parallel import Parallel, full, local, local_device, place, processes

CPU = torch.device("cpu")


@given(world=st.integers(1, 8), gradient_accumulation_steps=st.integers(1, 4), size=st.integers(1, 5))
def test_shares_are_the_batch_in_its_order(world: int, gradient_accumulation_steps: int, size: int) -> None:
    batch = list(range(world * gradient_accumulation_steps * size))
    parts = [Parallel(rank, world).micro_batches(batch, gradient_accumulation_steps) for rank in range(world)]
    assert all(len(part) == gradient_accumulation_steps and {len(piece) for piece in part} == {size} for part in parts)
    assert [item for part in parts for piece in part for item in piece] == batch


def test_a_batch_that_does_not_divide_is_told() -> None:
    with pytest.raises(RMDError, match=r"^a batch of 6 cannot be divided into 2 processes with 2 micro-batches each: "):
        Parallel(0, 2).micro_batches(range(6), 2)


def test_processes_that_do_not_divide_into_groups_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(RMDError, match=r"^2 processes cannot be divided into 3 replicas of 1 that share a sample: "):
        place(ParallelConfig(dp_replicate=3), CPU)


def test_a_process_alone_agrees_with_itself() -> None:
    alone = Parallel()
    assert alone.main and alone.cp == alone.dp == 1 and alone.dp_rank == 0
    assert alone.any(True, False) == (True, False)
    assert alone.mean({"a": 1.5}) == {"a": 1.5}
    assert alone.from_main("x") == alone.result_from_main(lambda: "x") == "x"
    network = torch.nn.Linear(2, 2)
    alone.shard(network, [])
    alone.set_gradient_sync(network, wanted=False)
    assert type(network) is torch.nn.Linear
    assert full(network.weight) is network.weight and local(network.weight) is network.weight


@given(limit=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
def test_a_process_alone_clips_as_torch_does(limit: float, scale: float) -> None:
    ours, theirs = (torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    for network in (ours, theirs):
        network.weight.grad = scale * torch.arange(6.0).view(2, 3)  # and none for the bias
    assert torch.equal(
        Parallel().clip(ours.parameters(), limit), torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    )
    assert ours.weight.grad is not None and theirs.weight.grad is not None
    assert torch.equal(ours.weight.grad, theirs.weight.grad) and ours.bias.grad is None


def test_what_fails_in_the_first_process_is_told() -> None:
    def fail() -> None:
        raise RMDError("the disk is full")

    with pytest.raises(RMDError, match=r"^the disk is full$"):
        Parallel().on_main(fail)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with processes(ParallelConfig(), CPU) as parallel:
        assert parallel == Parallel()
    with (
        pytest.raises(RMDError, match=r"ask for 6 processes: start them with torchrun"),
        processes(ParallelConfig(dp_replicate=2, context_parallel=3), CPU),
    ):
        pass
    assert local_device(CPU) == CPU


class Processes:
    """A mesh of `count` processes that share a sample."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, name: str) -> Processes:
        return self

    def size(self) -> int:
        return self.count


def mesh_of(count: int) -> Any:
    return Processes(count)


@pytest.mark.parametrize("family", sorted(TINY.keys() - {"wan"}))
def test_families_that_cannot_share_a_sample_say_so(family: str) -> None:
    backbone = TINY[family]()
    with pytest.raises(
        RMDError, match=rf"^the {family} network cannot divide a sample between GPUs: set parallel.context_parallel"
    ):
        backbone.share_tokens(backbone.denoiser, mesh_of(2), cascade(backbone))


def test_what_does_not_divide_among_those_who_share_a_sample_is_told() -> None:
    backbone = tiny_wan()
    plan = cascade(backbone, frames=5)
    with pytest.raises(
        RMDError, match=r"^2 attention heads cannot be divided among 3 processes: change parallel.context_parallel$"
    ):
        backbone.share_tokens(backbone.denoiser, mesh_of(3), plan)
    odd = cascade(backbone, sides=(20, 32), frames=5)  # 3 x 5 x 5 tokens
    with pytest.raises(RMDError, match=r"^the 75 tokens of a sample of 20x20 cannot be divided among 2 processes"):
        backbone.share_tokens(backbone.denoiser, mesh_of(2), odd)
