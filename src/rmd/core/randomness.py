"""Random numbers that depend on what they are for, not on when they are drawn.

The usual generator hands out one number after another, so a draw depends on all draws before it: on the batch size, on
the number of devices, on whether a run was resumed. Here every draw has a key, (seed, step, sample, purpose), and its
generator is seeded with a hash of this key. The same key gives the same numbers on one device or eight, in any batch,
and after a resume. Draws are made on the CPU, so that all devices get the same numbers. A purpose names one draw:
asking for it twice gives the same numbers twice.

A torch generator on the CPU keeps 32 bits of its seed, so that among millions of draws a few pairs will be equal. The
keys of such a pair have nothing to do with each other, which makes this harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rmd.common.errors import RMDError, integer, shown

MAX_SEED = 2**64 - 1
"""Largest seed of a torch generator."""


class NoiseSource(Protocol):
    """The source from which samplers and losses draw noise; the first dimension of every shape is the batch."""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return noise ~ N(0, I) of a shape (B, ...)."""
        ...

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return uniform numbers in [0, 1) of a shape (B, ...), on the CPU, where schedules turn them into times."""
        ...


class CounterNoise:
    """Noise of each sample that depends on (seed, step, sample, purpose) and on nothing else."""

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        step: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Create the noise of one batch.

        Args:
            seed: seed of the run.
            samples: global indices of the batch's samples, unique over all ranks.
            step: training step.
            device: device of Gaussian noise; uniform numbers stay on the CPU.
            dtype: precision of the results. Draws are made in float32.
        """
        self.seed, self.step = seed, step
        self.samples = tuple(int(sample) for sample in samples)
        self.device, self.dtype = torch.device(device), dtype

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return noise ~ N(0, I); raise ValueError if shape[0] is not the number of samples."""
        return self._fill(torch.randn, "normal", shape, purpose).to(self.device, self.dtype)

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return uniform numbers in [0, 1) on the CPU; raise ValueError if shape[0] is not the number of samples."""
        return self._fill(torch.rand, "uniform", shape, purpose).to(self.dtype)

    def _fill(self, draw: Callable[..., Tensor], kind: str, shape: Sequence[int], purpose: str) -> Tensor:
        _check_batch(shape, len(self.samples))
        noise = torch.empty(tuple(shape), device="cpu", dtype=torch.float32)
        for row, sample in zip(noise, self.samples, strict=True):
            source = generator(self.seed, self.step, sample, kind, purpose)
            draw(row.shape, generator=source, out=row, device="cpu", dtype=torch.float32)
        return noise


class GeneratorNoise:
    """Noise drawn one after another from one torch generator per sample, as diffusers pipelines do it.

    Each draw is made on its generator's device and in the final dtype, so that the same generator gives the same
    initial noise here and in the official pipeline. The purpose of a draw is not used.
    """

    def __init__(
        self,
        generators: list[torch.Generator],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generators = generators
        self.device, self.dtype = torch.device(device), dtype

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return noise ~ N(0, I); raise ValueError if shape[0] is not the number of generators."""
        _check_batch(shape, len(self.generators))
        row = (1, *shape[1:])
        rows = [torch.randn(row, generator=g, device=g.device, dtype=self.dtype) for g in self.generators]
        return torch.cat([r.to(self.device) for r in rows])

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return uniform numbers in [0, 1) on the CPU; raise ValueError if shape[0] is not the number of generators."""
        _check_batch(shape, len(self.generators))
        row = (1, *shape[1:])
        rows = [torch.rand(row, generator=g, device=g.device, dtype=self.dtype) for g in self.generators]
        return torch.cat([r.cpu() for r in rows])


def generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator whose state is a function of (seed, *key); 1 and "1" are different keys."""
    # JSON is an unambiguous encoding of a list of integers and strings: ("a", "b") is not ("ab",).
    text = json.dumps([seed, *key])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def check_seeds(first: int, count: int = 1) -> None:
    """Raise RMDError unless the `count` seeds that start at `first` are valid for torch: 0 to `MAX_SEED`."""
    if not 0 <= integer("a seed", first) <= MAX_SEED + 1 - count:
        last = f" to {shown(first + count - 1)}" if count > 1 else ""
        raise RMDError(f"seeds are numbers from 0 to {MAX_SEED}, got {shown(first)}{last}")


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator with this seed, as users of diffusers create it; raise RMDError for an invalid seed."""
    check_seeds(seed)
    return torch.Generator().manual_seed(seed)


def choice_in_turn(n: int, *, seed: int, count: int, purpose: str) -> int:
    """Return one of 0, ..., n - 1 at random, such that every round of n choices contains each of them once.

    Args:
        n: number of alternatives.
        seed: seed of the run.
        count: number of choices made before this one.
        purpose: what is chosen; each purpose has its own rounds.

    Returns:
        The choice, the same on every rank.
    """
    round_, place = divmod(count, n)
    return int(torch.randperm(n, generator=generator(seed, round_, "round", purpose), device="cpu")[place])


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """Return a random permutation of 0, ..., n - 1 for an epoch; int64, (n,), the same on every rank."""
    return torch.randperm(n, generator=generator(seed, epoch, "permutation"), device="cpu")


def _check_batch(shape: Sequence[int], samples: int) -> None:
    if not shape or shape[0] != samples:
        raise ValueError(f"this source draws for {samples} samples, not for shape {tuple(shape)}")
