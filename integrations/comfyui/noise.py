"""Sources of noise. All of them draw on the CPU, so that every device gives the same picture. Needs PyTorch only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

SEEDS = 2**64


class SharedNoise:
    """ComfyUI's own noise: one generator for the batch.

    Its first draw is that of KSampler with the same seed; later draws follow on it.
    """

    def __init__(self, seed: int, samples: Sequence[int]) -> None:
        """Create the noise of a batch; `samples` are the places of its samples in a batch that was split."""
        self.generator = torch.Generator().manual_seed(seed)
        self.samples = list(samples)
        self.whole = self.samples == list(range(len(self.samples)))

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return noise of a shape (samples, ...)."""
        if self.whole:
            return torch.randn(tuple(shape), generator=self.generator)
        rows = [torch.randn((1, *shape[1:]), generator=self.generator) for _ in range(max(self.samples) + 1)]
        return torch.cat([rows[sample] for sample in self.samples])


class SampleNoise:
    """RMDPipeline's noise: one generator for each sample, the first with the seed, the next with the seed + 1, ..."""

    def __init__(self, seed: int, samples: Sequence[int]) -> None:
        """Create the noise of a batch; `samples` are added to the seed."""
        self.generators = [torch.Generator().manual_seed((seed + sample) % SEEDS) for sample in samples]

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return noise of a shape (samples, ...)."""
        return torch.cat([torch.randn((1, *shape[1:]), generator=each) for each in self.generators])


class KeyedNoise:
    """The noise of RMD's evaluations and panels, which depends on seed, sample and purpose, and on nothing else."""

    def __init__(self, seed: int, samples: Sequence[int]) -> None:
        """Create the noise of a batch; `samples` are the numbers of its samples."""
        self.seed, self.samples = seed, tuple(samples)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return noise of a shape (samples, ...); a purpose names one draw."""
        rows = []
        for sample in self.samples:
            key = json.dumps([self.seed, 0, sample, "normal", purpose])
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            rows.append(torch.randn(tuple(shape[1:]), generator=generator))
        return torch.stack(rows)


SOURCES = {"comfyui": SharedNoise, "rmd": SampleNoise, "rmd keyed": KeyedNoise}
"""The kinds of noise, by their names in the sampler."""
