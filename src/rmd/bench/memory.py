"""Estimates the memory that training needs: weights, master copies, gradients, optimiser states and activations.

A trained parameter takes 16 bytes: two in half precision, four for its float32 master, eight for AdamW's moments and
two for its gradient. A frozen one takes two. Prompts count as encoded, and no VAE as loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import StepPlan
from rmd.models.base import AdaptedLayers, Architecture, Backbone
from rmd.models.registry import family_class
from rmd.models.resolve import teacher_source
from rmd.models.untrained import architecture_of, blank_pass, untrained_backbone
from rmd.recipes.schema import Recipe

TRAINED, FROZEN, AVERAGE = 16, 2, 4
"""Bytes of a trained parameter, of a frozen one, and of one in a moving average."""
SLACK = 2e9
"""Bytes for the allocator and the libraries."""


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass of one sample: in full, and with the blocks recomputed (`recompute`)."""

    whole: int
    recomputed: int
    """Activations outside the blocks, the inputs of all blocks, and the activations inside the largest block."""


@dataclass(frozen=True)
class Part:
    """One summand; if it is `shared`, several GPUs divide it among them."""

    name: str
    bytes: float
    shared: bool = True


@dataclass(frozen=True)
class Memory:
    """The estimate for one mode of training: its summands, and the activations of one sample on each GPU."""

    mode: str
    parts: tuple[Part, ...]
    activations: Activations

    def per_gpu(self, gpus: int, *, recompute: bool = False, samples: float = 1) -> float:
        """Return the bytes on each of `gpus` GPUs when all weights are sharded.

        Args:
            recompute: the recipe key `train.gradient_checkpointing`.
            samples: samples that each GPU computes at once; below 1 if several GPUs share the tokens of one.
        """
        kept = self.activations.recomputed if recompute else self.activations.whole
        return samples * kept + sum(part.bytes / (gpus if part.shared else 1) for part in self.parts)


def recipe_memory(recipe: Recipe, plan: StepPlan) -> list[Memory]:
    """Return the estimates of `training_memory` for a recipe's teacher and any plan.

    Raises:
        RMDError: the architecture of the teacher is unknown.
    """
    family = family_class(recipe.family)
    return training_memory(
        family,
        architecture_of(teacher_source(recipe.teacher), family),
        plan,
        rank=recipe.roles.rank,
        layers=recipe.roles.layers,
        averaged=recipe.optim.ema > 0,
    )


def training_memory(
    family: type[Backbone],
    architecture: Architecture,
    plan: StepPlan,
    *,
    rank: int,
    layers: AdaptedLayers = "all",
    averaged: bool,
) -> list[Memory]:
    """Return two estimates at batch 1 and the plan's final size: LoRA on one shared base, and three full networks.

    Args:
        layers: the recipe key `roles.layers`.
        averaged: whether a moving average of the student is kept.

    Raises:
        RMDError: the network cannot be built, or does not work at the plan's final size.
    """
    backbone = untrained_backbone(family, architecture)
    network = backbone.denoiser
    total, adapter = parameters(network), adapter_parameters(network, backbone.adapted(layers), rank)
    final = plan.stages[-1]
    activations = activation_bytes(backbone, architecture, final.height, final.width, plan.frames)
    slack = Part("margin", SLACK, shared=False)

    def average(numbers: int) -> tuple[Part, ...]:
        return (Part("moving average", AVERAGE * numbers),) if averaged else ()

    lora = (
        Part(f"frozen base: {total / 1e9:.3f} billion weights x {FROZEN} bytes", FROZEN * total),
        Part(f"two adapters: 2 x {adapter / 1e6:.1f} million weights x {TRAINED} bytes", 2 * TRAINED * adapter),
    )
    full = (
        Part(f"teacher: {total / 1e9:.3f} billion weights x {FROZEN} bytes", FROZEN * total),
        Part(f"student and fake score: 2 x {total / 1e9:.3f} billion weights x {TRAINED} bytes", 2 * TRAINED * total),
    )
    return [
        Memory(f"lora, rank {rank}", (*lora, *average(adapter), slack), activations),
        Memory("full", (*full, *average(total), slack), activations),
    ]


def parameters(network: nn.Module) -> int:
    """Return the number of parameters; tables of positions are buffers and do not count."""
    return sum(p.numel() for p in network.parameters())


def adapter_parameters(network: nn.Module, targets: tuple[str, ...], rank: int) -> int:
    """Return the number of parameters of one LoRA on the linear layers and convolutions with these name suffixes."""
    ends = tuple(f".{target}" for target in targets)
    layers = (m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name.endswith(ends))
    return sum(rank * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)


def activation_bytes(
    backbone: Backbone, architecture: Architecture, height: int, width: int, frames: int = 1
) -> Activations:
    """Measure the activations that one forward pass keeps for the backward pass, with flash attention.

    Args:
        backbone: a backbone on the meta device, as `untrained_backbone` makes it.

    Raises:
        RMDError: the network does not work at this size.
    """
    network = backbone.denoiser
    saved = _Saved(network)
    units = backbone.shard_units(network)
    handles = [unit.register_forward_pre_hook(saved.enter, with_kwargs=True) for unit in units]
    handles += [unit.register_forward_hook(saved.leave) for unit in units]
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
    with _size_errors(height, width), _flash_attention(), hooks:
        network.requires_grad_(True)
        output = blank_pass(backbone, architecture, height, width, frames)
        del output
    for handle in handles:
        handle.remove()
    return saved.activations()


@dataclass
class _Saved:
    """Collects the tensors that autograd saves, apart from the weights: outside the blocks, and inside each.

    Tensors are kept by the address of their storage. They are held, so that no address is used twice.
    """

    network: nn.Module
    outside: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    inside: list[dict[int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._weights = {p.untyped_storage()._cdata for p in self.network.parameters()}
        self._current = self.outside

    def _keep(self, where: dict[int, Tensor], tensor: Tensor) -> None:
        address = tensor.untyped_storage()._cdata
        if address not in self._weights:
            where.setdefault(address, tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves."""
        self._keep(self._current, tensor)
        return tensor

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a block: forward pre-hook."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self._keep(self.inputs, value)
        self.inside.append({})
        self._current = self.inside[-1]

    def leave(self, *_: Any) -> None:
        """End a block: forward hook."""
        self._current = self.outside

    def activations(self) -> Activations:
        """Add up what was saved."""
        largest = max((_size(part) for part in self.inside), default=0)
        return Activations(_size(self.outside, *self.inside), _size(self.outside, self.inputs) + largest)


def _size(*parts: dict[int, Tensor]) -> int:
    """Return the bytes of the storages in several collections, each storage counted once."""
    together = {address: tensor for part in parts for address, tensor in part.items()}
    return sum(tensor.untyped_storage().nbytes() for tensor in together.values())


@contextmanager
def _size_errors(height: int, width: int) -> Iterator[None]:
    """Raise RMDError in place of diffusers' exceptions if a network does not work at a picture size."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise RMDError(f"this network does not work at {height}x{width} pixels: {error}") from error


class _Flash(torch.autograd.Function):
    """Saves what flash attention keeps for its backward pass: its inputs, its output and one number per row.

    No backward is defined; used only to count saved activations.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty(*query.shape[:-1], value.shape[-1], device=query.device, dtype=query.dtype)
        rows = torch.empty(query.shape[:-1], device=query.device, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Count attention as flash attention; on the meta device torch uses the plain formula, which saves all scores."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]  # torch's own annotation
        return result

    usual = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual
