"""An encoder of prompts that takes no time, and caches of what it gives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import LinearBackbone

from rmd.data.cache import build_cache
from rmd.models import Cond

PROMPTS = [f"{'a small ' * (i % 5)}ball number {i}" for i in range(40)]


class Encoding(LinearBackbone):
    """Encodes a prompt as its letters, in sequences of different lengths, and as a vector."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause
        self.pipe.components = {}

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        return []

    def encode(self, prompts: Sequence[str]) -> Cond:
        time.sleep(self.pause)
        letters = torch.zeros(len(prompts), 64, 3)
        for row, prompt in zip(letters, prompts, strict=True):
            row[: len(prompt)] = torch.tensor([[ord(c), 1.0, 0.5] for c in prompt]).reshape(-1, 3)
        return Cond({"letters": letters, "length": letters.sum(1)})

    def null(self, count: int) -> Cond:
        return self.encode([""] * count)


def build(folder: Path, *, pause: float = 0.0, prompts: Sequence[str] = PROMPTS, **options: Any) -> bool:
    return build_cache(Encoding(pause), prompts, folder, shard_prompts=3, batch_size=2, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
