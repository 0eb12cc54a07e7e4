"""Rehearses a run: does once everything that the run would do, and leaves nothing behind.

`rmd train --dry-run` rehearses, so that a run does not fail in its second hour on what the first minute could show.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rmd.common.errors import RMDError, shown
from rmd.data.cache import PromptCache
from rmd.methods import Rollout
from rmd.models.base import Backbone
from rmd.models.student import load_student, save_student
from rmd.models.teacher import DTYPES
from rmd.train.loop import PANEL_PROMPTS, Trainer
from rmd.train.panels import sample_panel, score_panel

MOST_RELOADED = 16e9
"""Largest weights, in bytes, for which the student is written and reloaded; larger ones take too long and too much
memory."""
_AT_ONCE = 1000
"""Number of prompts that are tokenized together."""


def check_place(folder: Path) -> Path:
    """Check that a run's folder could be created and written to; nothing is created.

    Returns:
        The folder itself, or the part of its path that exists.

    Raises:
        RMDError: it could not.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise RMDError(f"cannot write to {folder}: {place} is a file; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RMDError(f"cannot write to {folder}: you may not write to {place}; choose another --out")
    return place


def check_disk(trainer: Trainer) -> str:
    """Return a line about the disk space that checkpoints and student need, and what is free.

    Raises:
        RMDError: there is no room even for the first checkpoint and the student.
    """
    trained = {role: sum(p.numel() for p in trainer.roles.trainable(role)) for role in ("student", "fake")}
    # Weights and AdamW's two moments, all in float32, and the student's moving average.
    checkpoint = 4 * (3 * sum(trained.values()) + (trained["student"] if trainer.trained.average else 0))
    student = 4 * trained["student"] if trainer.recipe.roles.mode == "lora" else _bytes(trainer.backbone)
    kept = trainer.recipe.train.keep_last
    free = shutil.disk_usage(check_place(trainer.folder)).free
    if checkpoint + student > free:
        raise RMDError(
            f"a checkpoint takes about {_size(checkpoint)} and the student {_size(student)}, and {_size(free)} are "
            f"free where {trainer.folder} is: make room, or choose another --out"
        )
    return (
        f"disk: about {_size(checkpoint)} for a checkpoint, of which {kept} are kept, and {_size(student)} for the "
        f"student; {_size(free)} are free"
    )


def check_prompts(trainer: Trainer) -> str:
    """Tokenize every prompt, or find it in the cache of encoded prompts, and encode the longest one.

    Raises:
        RMDError: a prompt cannot be tokenized, has a token that the text encoder does not know, is not in the cache, or
            is not encoded to finite numbers.
    """
    texts = trainer.prompts.texts
    if isinstance(trainer.encoder, PromptCache):
        absent = next((text for text in texts if text not in trainer.encoder), None)
        if absent is not None:
            trainer.encoder.encode([absent])  # raises the error about it
        said = f"{len(texts)} prompts found in the cache {trainer.recipe.data.cache}"
    else:
        said = f"{len(texts)} prompts tokenized" + _cut_line(trainer, texts)
    longest = max(texts, key=len)
    with torch.no_grad():
        for cond in trainer.encoded([longest], 0):
            if not all(bool(tensor.isfinite().all()) for tensor in cond.tensors.values()):
                raise RMDError(
                    f"the text encoders give numbers that are not finite for {shown(longest)}: set train.dtype to "
                    "bfloat16 or float32"
                )
    return said


def check_pictures(trainer: Trainer, rollout: Rollout) -> None:
    """Sample, decode and score as a run does at `train.sample_every`, and ask the judge if there is one.

    Raises:
        RMDError: the VAE gives numbers that are not finite.
    """
    with torch.no_grad():
        pixels = trainer.backbone.decode(rollout.y[:1])
        if not bool(pixels.isfinite().all()):
            raise RMDError("the VAE decodes the student's samples to numbers that are not finite: save it in float32")
        with trainer.averaged_student() as student:
            cond = trainer.encoder.encode(trainer.prompts.batch(0, PANEL_PROMPTS)[0]).to(trainer.device)
            sample_panel(trainer.backbone, student, trainer.plan, cond, seed=trainer.recipe.train.seed)
            if trainer.judge is not None:
                trainer.judge(student)
    score_panel(trainer.backbone, rollout)
    trainer.held_out()


def check_student(trainer: Trainer) -> str:
    """Write the student that a run would end with into a temporary folder, and load it again.

    Raises:
        RMDError: it cannot be written, or differs after loading.
    """
    state = trainer.gathered_student()
    if _bytes(trainer.backbone) > MOST_RELOADED:
        return f"the student was not written and loaded again ({_size(_bytes(trainer.backbone))} of weights)"
    trainer.parallel.on_main(lambda: _save_and_load(trainer, state))
    return "the student was written and loaded again"


def _save_and_load(trainer: Trainer, state: dict[str, torch.Tensor]) -> None:
    with TemporaryDirectory() as folder:
        path = save_student(trainer.backbone, state, trainer.recipe, Path(folder) / "student")
        recipe = trainer.recipe
        loaded = load_student(path, dtype=DTYPES[recipe.train.dtype], variant=recipe.variant)
    if loaded.plan != trainer.plan:
        raise RMDError(f"the plan of {trainer.recipe.name} is another one when it is read from a student")


def _cut_line(trainer: Trainer, texts: Sequence[str]) -> str:
    """Return how many prompts are longer than a text encoder reads: `, 3 of them cut at 77 tokens by tokenizer`."""
    said = ""
    for name, tokenizer, encoder in _readers(trainer.backbone):
        options = trainer.backbone.official_options(trainer.recipe.frames)
        most = int(min(tokenizer.model_max_length, options.get("max_sequence_length", math.inf)))
        known = int(encoder.get_input_embeddings().num_embeddings)
        cut = 0
        for start in range(0, len(texts), _AT_ONCE):
            part = list(texts[start : start + _AT_ONCE])
            for text, ids in zip(part, _tokens(name, tokenizer, part), strict=True):
                cut += len(ids) > most
                if max(ids[:most], default=0) >= known:
                    raise RMDError(
                        f"{name} makes token {max(ids[:most])} of {shown(text)}, and its text encoder knows {known} "
                        "tokens: the two belong to different models"
                    )
        if cut:
            said += f", {cut} of them cut at {most} tokens by {name}"
    return said


def _tokens(name: str, tokenizer: Any, texts: list[str]) -> list[list[int]]:
    try:
        found: list[list[int]] = tokenizer(texts, verbose=False).input_ids
    except (TypeError, ValueError) as error:  # UnicodeError is a ValueError
        for text in texts:
            try:
                tokenizer([text], verbose=False)
            except (TypeError, ValueError):
                raise RMDError(f"{name} cannot read the prompt {shown(text)}: {error}") from error
        raise
    return found


def _readers(backbone: Backbone) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of every tokenizer of a pipeline, the tokenizer, and the text encoder that reads its tokens."""
    parts = backbone.pipe.components
    for name in sorted(parts):
        encoder = parts.get(name.replace("tokenizer", "text_encoder"))
        if name.startswith("tokenizer") and parts[name] is not None and encoder is not None:
            yield name, parts[name], encoder


def _bytes(backbone: Backbone) -> int:
    """Return the size in bytes of the weights of a pipeline's parts."""
    parts = [part for part in backbone.pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
