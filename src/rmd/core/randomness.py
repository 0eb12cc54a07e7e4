"""Every random draw of the project, keyed by what it is for instead of by when it happens.

A counter-based draw is a function of (seed, step, sample, purpose): it is the same on one device or eight,
whatever the batch is composed of, and after a resume. Draws are made on the CPU, so that every device gets
the same numbers. A purpose names one draw: asking twice for the same one gives the same numbers.

torch's CPU engine keeps 32 bits of a seed, so among millions of draws a few pairs will have equal streams;
their keys are unrelated, which leaves training and sampling unharmed.
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
    """Where samplers and losses get their noise; the first dimension of every shape is the batch."""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Unit Gaussian noise."""
        ...

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), on the CPU: they choose times, and schedules are looked up there."""
        ...


class CounterNoise:
    """A draw for each sample that depends on (seed, step, sample, purpose) and on nothing else."""

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        step: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take the global indices of the batch's samples (unique over ranks) and the training step."""
        self.seed, self.step = seed, step
        self.samples = tuple(int(sample) for sample in samples)
        self.device, self.dtype = torch.device(device), dtype

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Unit Gaussian noise of `shape`; shape[0] must be the number of samples (ValueError)."""
        return self._fill(torch.randn, "normal", shape, purpose).to(self.device, self.dtype)

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform numbers in [0, 1) of `shape`, on the CPU; shape[0] must be the number of samples (ValueError)."""
        return self._fill(torch.rand, "uniform", shape, purpose).to(self.dtype)

    def _fill(self, draw: Callable[..., Tensor], kind: str, shape: Sequence[int], purpose: str) -> Tensor:
        _check_batch(shape, len(self.samples))
        found = torch.empty(tuple(shape), device="cpu", dtype=torch.float32)
        for row, sample in zip(found, self.samples, strict=True):
            source = generator(self.seed, self.step, sample, kind, purpose)
            draw(row.shape, generator=source, out=row, device="cpu", dtype=torch.float32)
        return found


class GeneratorNoise:
    """Sequential draws from one torch generator a sample, as diffusers pipelines make them.

    Each draw is made on its generator's device in the wanted dtype, so that the same generator gives the
    same start noise here and in the official pipeline. `purpose` is not used.
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
        """Unit Gaussian noise of `shape`; shape[0] must be the number of generators (ValueError)."""
        _check_batch(shape, len(self.generators))
        row = (1, *shape[1:])
        rows = [torch.randn(row, generator=g, device=g.device, dtype=self.dtype) for g in self.generators]
        return torch.cat([r.to(self.device) for r in rows])

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform numbers in [0, 1) of `shape`, on the CPU; shape[0] must be the number of generators (ValueError)."""
        _check_batch(shape, len(self.generators))
        row = (1, *shape[1:])
        rows = [torch.rand(row, generator=g, device=g.device, dtype=self.dtype) for g in self.generators]
        return torch.cat([r.cpu() for r in rows])


def generator(seed: int, *key: int | str) -> torch.Generator:
    """A CPU generator whose state is a function of (seed, *key); 1 and "1" are different keys."""
    # JSON is an unambiguous encoding of a list of integers and strings: ("a", "b") is not ("ab",).
    text = json.dumps([seed, *key])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def check_seeds(first: int, count: int = 1) -> None:
    """Raise RMDError unless `count` seeds starting at `first` are valid for torch, 0 to `MAX_SEED`."""
    if not 0 <= integer("a seed", first) <= MAX_SEED + 1 - count:
        last = f" to {shown(first + count - 1)}" if count > 1 else ""
        raise RMDError(f"seeds are numbers from 0 to {MAX_SEED}, got {shown(first)}{last}")


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator with a seed, as users of diffusers make it; raise RMDError for an invalid seed."""
    check_seeds(seed)
    return torch.Generator().manual_seed(seed)


def choice_in_turn(n: int, *, seed: int, count: int, purpose: str) -> int:
    """One of 0..n-1, uniformly, but in shuffled rounds: each once in every n choices; the same on every rank."""
    round_, place = divmod(count, n)
    return int(torch.randperm(n, generator=generator(seed, round_, "round", purpose), device="cpu")[place])


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation of 0..n-1 (int64), another one each epoch; the same on every rank."""
    return torch.randperm(n, generator=generator(seed, epoch, "permutation"), device="cpu")


def _check_batch(shape: Sequence[int], samples: int) -> None:
    if not shape or shape[0] != samples:
        raise ValueError(f"this source draws for {samples} samples, not for shape {tuple(shape)}")
