"""What a training run needs in memory, by arithmetic: weights, masters, gradients, optimiser, activations.

A trained number takes 16 bytes: two in half precision, four of its master, eight of AdamW, two of its gradient. A
frozen one takes two. Prompts are taken as encoded, and no VAE as loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmd.bench.architectures import Architecture, activation_bytes, adapter_parameters, parameters
from rmd.plan import Stage

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
    """The arithmetic of one way of training."""

    mode: str
    parts: tuple[Part, ...]

    def per_gpu(self, gpus: int) -> float:
        """Bytes on each of so many GPUs (fully sharded, one picture on each)."""
        return sum(part.bytes / (gpus if part.shared else 1) for part in self.parts)


def training_memory(
    architecture: Architecture, final: Stage, *, targets: tuple[str, ...], rank: int, averaged: bool
) -> list[Memory]:
    """LoRA on one shared base, and three networks in full; batch 1 at the final size, without checkpointing.

    Args:
        targets: endings of the names of the layers that adapters are put on.
        averaged: whether a moving average of the student is kept.
    """
    network = architecture.build()
    total, adapter = parameters(network), adapter_parameters(network, targets, rank)
    kept = activation_bytes(architecture, network, final.height, final.width)
    rest = (Part("activations, batch 1", kept, shared=False), Part("slack", SLACK, shared=False))

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
        Memory(f"lora, rank {rank}", (*lora, *average(adapter), *rest)),
        Memory("full", (*full, *average(total), *rest)),
    ]
