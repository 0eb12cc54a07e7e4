"""The processes of a run, one per device: which samples each takes, how weights are sharded, what all must agree on.

`torchrun` (or `accelerate launch`) starts the processes and tells each its place in environment variables. FSDP2 shards
weights, float32 masters and optimiser states; a single process runs the same code without sharding anything. Names are
those of torchtitan: dp_replicate, dp_shard, cp.
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
from rmd.recipes.groups import ParallelConfig

TIMEOUT = timedelta(minutes=30)
"""Timeout of the processes waiting for each other; writing the checkpoint of a large model can take minutes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """The place of this process among those of the run. Without arguments, the run has a single process."""

    rank: int = 0
    world: int = 1
    dp_mesh: DeviceMesh | None = None
    """Mesh (dp_replicate, dp_shard) of all processes; None in a run of a single process."""
    cp_mesh: DeviceMesh | None = None
    """Mesh (dp, ring, ulysses), or None without context parallelism. The processes along `ulysses` share the tokens of
    the same samples; `ring` has size 1, and diffusers asks for it."""
    storage: dist.ProcessGroup | None = None
    """Group of all processes in which they agree on checkpoints, in a thread beside the training."""

    @property
    def main(self) -> bool:
        """True in the first process, which prints and writes what only one process may."""
        return self.rank == 0

    @property
    def cp(self) -> int:
        """Context parallelism: the number of processes that share the tokens of the same samples."""
        return 1 if self.cp_mesh is None else self.cp_mesh["ulysses"].size()

    @property
    def dp(self) -> int:
        """Data parallelism: the number of parts into which a batch is divided."""
        return self.world // self.cp

    @property
    def dp_rank(self) -> int:
        """Index of the part of a batch that this process computes."""
        return self.rank // self.cp

    def micro_batches(self, batch: Sequence[T], count: int = 1) -> list[Sequence[T]]:
        """Return this process's part of a batch, divided into `count` micro-batches.

        Raises:
            RMDError: the batch cannot be divided evenly.
        """
        pieces = self.dp * count
        if len(batch) % pieces:
            raise RMDError(
                f"a batch of {len(batch)} cannot be divided into {self.dp} processes with {count} "
                f"micro-batches each: set train.batch_size to a multiple of {pieces}"
            )
        size = len(batch) // pieces
        first = self.dp_rank * count
        return [batch[piece * size : (piece + 1) * size] for piece in range(first, first + count)]

    def shard(self, network: nn.Module, units: Iterable[nn.Module], *, half: bool = False) -> None:
        """Shard a network's parameters over the processes; its blocks are gathered one at a time.

        Args:
            network: the network; nothing happens in a run of a single process.
            units: its blocks, as `Backbone.shard_units` returns them.
            half: keep the parameters in float32 (sharded and reduced in it) and compute in bfloat16, except for
                modules that diffusers keeps in float32.
        """
        if self.dp_mesh is None:
            return
        # Without cast_forward_inputs=False, timesteps would be rounded to bfloat16: 857 would become 856.
        plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        policy = plain
        if half:
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
            for parameter in network.parameters():
                parameter.data = parameter.data.float()
            for module in _kept_in_float32(network):
                fully_shard(module, mesh=self.dp_mesh, mp_policy=plain, reshard_after_forward=True)
        # By default FSDP keeps the outermost weights gathered, and these would miss what is written into the shards.
        for module in [*units, network]:
            fully_shard(module, mesh=self.dp_mesh, mp_policy=policy, reshard_after_forward=True)

    def set_gradient_sync(self, network: nn.Module, wanted: bool) -> None:
        """Choose whether the next backward pass through a network averages its gradients over the processes."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(wanted)

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients of sharded parameters to a norm of at most `limit`.

        Each process scales its own shards: torch's `clip_grad_norm_` would send every gradient through DTensor.

        Returns:
            The norm before clipping, a scalar on the parameters' device, the same on every process.
        """
        shards = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(shards)
        if self.dp_mesh is not None:
            squared = norm.double().square()  # in float32, the square of a large norm would be infinite
            dist.all_reduce(squared, group=self.dp_mesh.get_group("dp_shard"))
            norm = squared.sqrt().to(norm.dtype)
        torch._foreach_mul_(shards, (limit / (norm + 1e-6)).clamp(max=1))
        return norm

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is set on any process."""
        maxima = self._all_reduce([float(flag) for flag in flags], dist.ReduceOp.MAX)
        return tuple(value > 0 for value in maxima)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of every value over the processes."""
        means = self._all_reduce(list(values.values()), dist.ReduceOp.SUM, 1 / self.world)
        return dict(zip(values, means, strict=True))

    def from_main(self, value: T) -> T:
        """Return the first process's value on every process."""
        if self.dp_mesh is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def on_main(self, work: Callable[[], object]) -> None:
        """Call a function in the first process while the others wait; if it raises RMDError, raise it on all."""
        failure = None
        if self.main:
            try:
                work()
            except RMDError as error:
                failure = str(error)
        failure = self.from_main(failure)
        if failure is not None:
            raise RMDError(failure)

    def result_from_main(self, work: Callable[[], T]) -> T:
        """Call a function in the first process and return its result on all; if it raises RMDError, raise it on all."""
        results: list[T] = []
        self.on_main(lambda: results.append(work()))
        return self.from_main(results)[0]

    def _all_reduce(self, values: list[float], op: dist.ReduceOp.RedOpType, scale: float = 1.0) -> list[float]:
        if self.dp_mesh is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op)
        return [float(value) for value in scale * tensor]


@contextmanager
def processes(config: ParallelConfig, device: torch.device) -> Iterator[Parallel]:
    """Connect the processes that torchrun started for the duration of the block, and yield the place of this one.

    Without torchrun, the run has a single process.

    Raises:
        RMDError: the processes cannot be divided into the recipe's groups.
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
    """Return the GPU of this process on its machine, and make it torch's current one; a CPU is returned as it is."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(gpu)
    return gpu


def full(tensor: Tensor) -> Tensor:
    """Return the full tensor on every process; a tensor that is not sharded is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, which shares its memory; without sharding, the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place(config: ParallelConfig, device: torch.device) -> Parallel:
    """Return the place of this process once all are connected.

    Raises:
        RMDError: the processes cannot be divided into the recipe's groups.
    """
    world, groups = dist.get_world_size(), config.dp_replicate * config.context_parallel
    if world % groups:
        raise RMDError(
            f"{world} processes cannot be divided into {config.dp_replicate} replicas of {config.context_parallel} "
            "that share a sample: change parallel.dp_replicate, parallel.context_parallel or the number of processes"
        )
    dp_mesh = init_device_mesh(
        device.type, (config.dp_replicate, world // config.dp_replicate), mesh_dim_names=("dp_replicate", "dp_shard")
    )
    cp_mesh = None
    if config.context_parallel > 1:
        shape = (world // config.context_parallel, 1, config.context_parallel)
        cp_mesh = init_device_mesh(device.type, shape, mesh_dim_names=("dp", "ring", "ulysses"))
    storage = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return Parallel(dist.get_rank(), world, dp_mesh, cp_mesh, storage)


def _kept_in_float32(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules that diffusers loads in float32 whatever the dtype of the rest."""
    names = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    kept: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in kept)
        if not inside and name.rsplit(".", 1)[-1] in names and any(True for _ in module.parameters()):
            kept[name] = module
    return list(kept.values())
