"""Prompt sources. Training needs nothing else: prompts in, student out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmd.errors import RMDError
from rmd.randomness import generator, permutation

SCENES = "scenes"
_SCENE_PROMPTS = 8192


@dataclass(frozen=True)
class Prompts:
    """A list of prompts and the order a seed puts them in: position p is a pure function of (seed, p)."""

    texts: Sequence[str]
    seed: int

    def batch(self, iteration: int, batch_size: int) -> tuple[list[str], list[int]]:
        """Prompts of an iteration and the global numbers of their samples, which key their noise."""
        samples = range(iteration * batch_size, (iteration + 1) * batch_size)
        orders = {p // len(self.texts): None for p in samples}
        order = {epoch: permutation(len(self.texts), seed=self.seed, epoch=epoch).tolist() for epoch in orders}
        return [self.texts[order[p // len(self.texts)][p % len(self.texts)]] for p in samples], list(samples)


def load_prompts(source: str, *, seed: int) -> Prompts:
    """Prompts of a text file, one a line, or of the scenes' grammar for the source `scenes`.

    Raises:
        RMDError: the file is missing, empty or not UTF-8.
    """
    if source == SCENES:
        return Prompts(scene_captions(_SCENE_PROMPTS, seed=seed, training=True), seed)
    return Prompts(read_lines(Path(source)), seed)


def scene_captions(count: int, *, seed: int, training: bool) -> list[str]:
    """Captions of the scenes' grammar; `training` leaves out the held-out combinations."""
    from rmd.scenes.grammar import caption, draw_attributes

    found = []
    for index in range(count):
        g = generator(seed, "prompt", index)
        found.append(caption(draw_attributes(g, training=training), flipped=index % 2 == 1))
    return found


def read_lines(path: Path) -> list[str]:
    """Non-empty stripped lines of a UTF-8 text file, each prompt once, in order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RMDError(f"there is no prompt file {path}: give a text file with one prompt a line") from None
    except UnicodeDecodeError as error:
        raise RMDError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8 text") from error
    except OSError as error:
        raise RMDError(f"cannot read the prompt file {path}: {error.strerror}") from error
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise RMDError(f"the prompt file {path} has no prompts: write one a line")
    return lines
