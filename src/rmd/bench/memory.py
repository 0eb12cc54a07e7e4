"""What a training run needs in memory, by arithmetic: weights, masters, gradients, optimiser, activations.

A trained number takes 16 bytes: two in half precision, four of its master, eight of AdamW, two of its gradient. A
frozen one takes two. Prompts are taken as encoded, and no VAE as loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmd.core.plan import StepPlan
from rmd.models.architectures import (
    Activations,
    Architecture,
    activation_bytes,
    adapter_parameters,
    architecture_of,
    parameters,
)
from rmd.models.base import AdaptedLayers, Backbone
from rmd.models.registry import family_class
from rmd.models.teacher import teacher_source
from rmd.recipes.schema import Recipe

TRAINED, FROZEN, AVERAGE = 16, 2, 4
"""Bytes of a number that is trained, frozen, or averaged."""
SLACK = 2e9
"""Bytes for the allocator and the libraries."""


@dataclass(frozen=True)
class Part:
    """A line of the arithmetic; `shared` is what several GPUs divide among them."""

    name: str
    bytes: float
    shared: bool = True


@dataclass(frozen=True)
class Memory:
    """The arithmetic of one way of training: its parts, and the activations of one sample on each GPU."""

    mode: str
    parts: tuple[Part, ...]
    activations: Activations

    def per_gpu(self, gpus: int, *, recompute: bool = False, samples: float = 1) -> float:
        """Bytes on each of so many GPUs, fully sharded.

        Args:
            recompute: as in `train.gradient_checkpointing`.
            samples: that each computes at once; a part of one where several share its tokens.
        """
        kept = self.activations.recomputed if recompute else self.activations.whole
        return samples * kept + sum(part.bytes / (gpus if part.shared else 1) for part in self.parts)


def recipe_memory(recipe: Recipe, plan: StepPlan) -> list[Memory]:
    """`training_memory` of a recipe's teacher, by a plan that need not be its own.

    Raises:
        RMDError: the architecture of the teacher is not known.
    """
    return training_memory(
        architecture_of(teacher_source(recipe.teacher), recipe.family),
        plan,
        family=family_class(recipe.family),
        rank=recipe.roles.rank,
        layers=recipe.roles.layers,
        averaged=recipe.optim.ema > 0,
    )


def training_memory(
    architecture: Architecture,
    plan: StepPlan,
    *,
    family: type[Backbone],
    rank: int,
    layers: AdaptedLayers = "all",
    averaged: bool,
) -> list[Memory]:
    """LoRA on one shared base, and three networks in full; batch 1 at the plan's final size.

    Args:
        family: says which layers there are for adapters, and what the blocks are.
        layers: of these, as `roles.layers`.
        averaged: whether a moving average of the student is kept.
    """
    network = architecture.build()
    total, adapter = parameters(network), adapter_parameters(network, family.adapted(layers), rank)
    final = plan.stages[-1]
    units = family.shard_units(network)
    activations = activation_bytes(architecture, network, units, final.height, final.width, plan.frames)
    slack = Part("slack", SLACK, shared=False)

    def average(numbers: int) -> tuple[Part, ...]:
        return (Part("moving average", AVERAGE * numbers),) if averaged else ()

    lora = (
        Part(f"frozen base, {total / 1e9:.3f} B numbers x {FROZEN}", FROZEN * total),
        Part(f"adapters student and fake, 2 x {adapter / 1e6:.1f} M numbers x {TRAINED}", 2 * TRAINED * adapter),
    )
    full = (
        Part(f"teacher, {total / 1e9:.3f} B numbers x {FROZEN}", FROZEN * total),
        Part(f"student and fake, 2 x {total / 1e9:.3f} B numbers x {TRAINED}", 2 * TRAINED * total),
    )
    return [
        Memory(f"lora, rank {rank}", (*lora, *average(adapter), slack), activations),
        Memory("full", (*full, *average(total), slack), activations),
    ]
