"""The processes of a run, one a device: who takes which samples, how weights are spread, what all must agree on.

`torchrun` (or `accelerate launch`) starts them and tells each its place in environment variables. Weights, masters and
optimiser states are spread by FSDP2; a process alone runs the same code with nothing to spread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rmd.common.errors import RMDError
from rmd.recipes.schema import ParallelConfig

TIMEOUT = timedelta(minutes=30)
"""How long processes wait for each other; a checkpoint of a large model may take its time."""

T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """A process's place among those of the run; without arguments, a process alone.

    weights: (replicas, shards), or None for a process alone. tokens: (samples, ring, ulysses), or None; the last are
    those that share a sample's tokens, and diffusers wants the one before. storage: the group in which checkpoints are
    agreed on, in a thread beside the training.
    """

    rank: int = 0
    world: int = 1
    weights: DeviceMesh | None = None
    tokens: DeviceMesh | None = None
    storage: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this process prints and writes what needs writing once."""
        return self.rank == 0

    @property
    def context_parallel(self) -> int:
        """Processes that share the tokens of the same samples."""
        return 1 if self.tokens is None else self.tokens["ulysses"].size()

    @property
    def parts(self) -> int:
        """Into how many parts a batch is divided."""
        return self.world // self.context_parallel

    @property
    def part(self) -> int:
        """Which part of a batch is this process's."""
        return self.rank // self.context_parallel

    def share(self, items: Sequence[T], micro_batches: int = 1) -> list[Sequence[T]]:
        """This process's part of a batch, as `micro_batches` micro-batches.

        Raises:
            RMDError: the batch does not divide.
        """
        pieces = self.parts * micro_batches
        if len(items) % pieces:
            raise RMDError(
                f"a batch of {len(items)} does not divide into {self.parts} processes with {micro_batches} "
                f"micro-batches each: set train.batch_size to a multiple of {pieces}"
            )
        size = len(items) // pieces
        first = self.part * micro_batches
        return [items[piece * size : (piece + 1) * size] for piece in range(first, first + micro_batches)]

    def spread(self, network: nn.Module, units: Iterable[nn.Module], *, half: bool = False) -> None:
        """Spread a network's parameters over the processes; its blocks are gathered one at a time.

        Args:
            units: the blocks, as a backbone's `shard_units` finds them.
            half: trainable parameters become float32, spread and reduced so, and compute in bfloat16; those of the
                modules that diffusers keeps in float32 compute in float32.
        """
        if self.weights is None:
            return
        # without cast_forward_inputs=False, timesteps would be rounded to bfloat16: 857 to 856
        plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        policy = plain
        if half:
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
            for parameter in network.parameters():
                parameter.data = parameter.data.float()
            for module in _kept_whole(network):
                fully_shard(module, mesh=self.weights, mp_policy=plain, reshard_after_forward=True)
        # reshard: by default, the outermost weights would stay gathered, and not see what is written into their parts
        for module in [*units, network]:
            fully_shard(module, mesh=self.weights, mp_policy=policy, reshard_after_forward=True)

    def synchronise(self, network: nn.Module, wanted: bool) -> None:
        """Whether the next backward passes through a network end with the gradients' mean over the processes."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(wanted)

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients of spread parameters to a norm of at most `limit`; the norm before, on every process.

        Each process scales its own parts: torch's `clip_grad_norm_` would take every gradient through DTensor.
        """
        parts = [own(parameter.grad) for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(parts)
        if self.weights is not None:
            squared = norm.double().square()  # of float32, the square of a large norm would be infinite
            dist.all_reduce(squared, group=self.weights.get_group("shards"))
            norm = squared.sqrt().to(norm.dtype)
        torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1))
        return norm

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any process."""
        found = self._reduced([float(flag) for flag in flags], dist.ReduceOp.MAX)
        return tuple(value > 0 for value in found)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Every value's mean over the processes."""
        return dict(zip(values, self._reduced(list(values.values()), dist.ReduceOp.SUM, 1 / self.world), strict=True))

    def from_main(self, value: T) -> T:
        """What the main process gives, on every process."""
        if self.weights is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def on_main(self, work: Callable[[], object]) -> None:
        """Do something in the first process, while the others wait; RMDError on all of them where it raises one."""
        failure = None
        if self.main:
            try:
                work()
            except RMDError as error:
                failure = str(error)
        failure = self.from_main(failure)
        if failure is not None:
            raise RMDError(failure)

    def _reduced(self, values: list[float], how: dist.ReduceOp.RedOpType, scale: float = 1.0) -> list[float]:
        if self.weights is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how)
        return [float(value) for value in scale * tensor]


@contextmanager
def processes(config: ParallelConfig, device: torch.device) -> Iterator[Parallel]:
    """The place of this process among those that torchrun started, or alone, for the time of the block.

    Raises:
        RMDError: as many processes do not divide into the recipe's groups.
    """
    groups = config.dp_replicate * config.context_parallel
    if "WORLD_SIZE" not in os.environ:
        if groups > 1:
            raise RMDError(
                f"parallel.dp_replicate and parallel.context_parallel ask for {groups} processes: "
                "start them with torchrun --nproc-per-node N -m rmd train"
            )
        yield Parallel()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield place(config, device)
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process's own among those of its machine; a CPU is shared."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(found)
    return found


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread, gathered on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be spread; it shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place(config: ParallelConfig, device: torch.device) -> Parallel:
    """This process's place when the processes are connected; RMDError when they do not divide into the groups."""
    world, groups = dist.get_world_size(), config.dp_replicate * config.context_parallel
    if world % groups:
        raise RMDError(
            f"{world} processes do not divide into {config.dp_replicate} replicas of {config.context_parallel} that "
            "share a sample: change parallel.dp_replicate, parallel.context_parallel or the number of processes"
        )
    weights = init_device_mesh(
        device.type, (config.dp_replicate, world // config.dp_replicate), mesh_dim_names=("replicas", "shards")
    )
    tokens = None
    if config.context_parallel > 1:
        shape = (world // config.context_parallel, 1, config.context_parallel)
        tokens = init_device_mesh(device.type, shape, mesh_dim_names=("samples", "ring", "ulysses"))
    storage = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return Parallel(dist.get_rank(), world, weights, tokens, storage)


def _kept_whole(network: nn.Module) -> list[nn.Module]:
    """Modules that diffusers loads in float32 whatever the rest is in; none lies in another."""
    names = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and name.rsplit(".", 1)[-1] in names and any(True for _ in module.parameters()):
            found[name] = module
    return list(found.values())
