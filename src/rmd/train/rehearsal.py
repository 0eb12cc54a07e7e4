"""Rehearses a run: does everything once that the run would do, and leaves nothing behind.

`rmd train --dry-run` does this, so that a run does not fail in its second hour on something that its first minute
could have shown.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rmd.common.errors import RMDError, shown
from rmd.common.files import check_place as check_place
from rmd.data.cache import PromptCache
from rmd.methods import Rollout
from rmd.models.base import Backbone
from rmd.models.student import load_student, save_student
from rmd.models.teacher import DTYPES
from rmd.train.panels import sample_panel, score_panel
from rmd.train.run import Run

MOST_RELOADED = 16e9
"""Largest weights, in bytes, for which the student is written and reloaded; larger ones take too long and too much
memory."""
_AT_ONCE = 1000
"""Number of prompts that are tokenized together."""


def check_disk(run: Run) -> str:
    """Return a line about the disk space that checkpoints and the student need, and about the free space.

    Raises:
        RMDError: there is no room even for the first checkpoint and the student.
    """
    trained = {role: sum(p.numel() for p in run.roles.trainable(role)) for role in ("student", "fake")}
    # Weights and AdamW's two moments, all in float32, and the student's moving average.
    checkpoint = 4 * (3 * sum(trained.values()) + (trained["student"] if run.trained.average else 0))
    student = 4 * trained["student"] if run.recipe.roles.mode == "lora" else _bytes(run.backbone)
    kept = run.recipe.train.keep_last
    free = shutil.disk_usage(check_place(run.folder)).free
    if checkpoint + student > free:
        raise RMDError(
            f"a checkpoint takes about {_size(checkpoint)} and the student {_size(student)}, but only {_size(free)} "
            f"are free where {run.folder} is: free some space, or choose another --out"
        )
    return (
        f"disk: about {_size(checkpoint)} per checkpoint, of which {kept} are kept, and {_size(student)} for the "
        f"student; {_size(free)} are free"
    )


def check_prompts(run: Run) -> str:
    """Tokenize every prompt, or find it in the cache of encoded prompts, and encode the longest one.

    Returns:
        What was done, as part of a line: `120 prompts tokenized, 3 of them cut at 77 tokens by tokenizer`.

    Raises:
        RMDError: a prompt cannot be tokenized, has a token that the text encoder does not know, is not in the cache, or
            is not encoded to finite numbers.
    """
    texts = run.prompts.texts
    if isinstance(run.encoder, PromptCache):
        absent = next((text for text in texts if text not in run.encoder), None)
        if absent is not None:
            run.encoder.encode([absent])  # raises the error about it
        summary = f"{len(texts)} prompts found in the cache {run.recipe.data.cache}"
    else:
        summary = f"{len(texts)} prompts tokenized" + _truncated_line(run, texts)
    longest = max(texts, key=len)
    with torch.no_grad():
        for cond in run.encoded([longest]):
            if not all(bool(tensor.isfinite().all()) for tensor in cond.tensors.values()):
                raise RMDError(
                    f"the text encoders return values that are not finite for {shown(longest)}: set train.dtype to "
                    "bfloat16 or float32"
                )
    return summary


def check_pictures(run: Run, rollout: Rollout) -> None:
    """Do what a run does every `train.sample_every` iterations, and call the judge if there is one.

    Raises:
        RMDError: the VAE gives numbers that are not finite.
    """
    with torch.no_grad():
        pixels = run.backbone.decode(rollout.y[:1])
        if not bool(pixels.isfinite().all()):
            raise RMDError(
                "the VAE decodes the student's samples to values that are not finite: save the VAE in float32"
            )
        with run.averaged_student() as student:
            cond = run.encoder.encode(run.panel_prompts()).to(run.device)
            seed = run.recipe.train.seed
            sample_panel(run.backbone, student, run.plan, cond, seed=seed, at_once=run.at_once)
            if run.judge is not None:
                run.judge(student)
    score_panel(run.backbone, rollout)
    run.held_out()


def check_student(run: Run) -> str:
    """Write the student that a run would end with into a temporary folder, and load it again.

    Returns:
        What was done, as a clause.

    Raises:
        RMDError: it cannot be written, or differs after loading.
    """
    state = run.gathered_student()
    if _bytes(run.backbone) > MOST_RELOADED:
        return f"the student was not written and loaded again ({_size(_bytes(run.backbone))} of weights)"
    run.parallel.on_main(lambda: _save_and_load(run, state))
    return "the student was written and loaded again"


def _save_and_load(run: Run, state: dict[str, torch.Tensor]) -> None:
    recipe = run.recipe
    with TemporaryDirectory() as folder:
        path = save_student(run.backbone, state, recipe, Path(folder) / "student")
        loaded = load_student(path, dtype=DTYPES[recipe.train.dtype], variant=recipe.variant)
    if loaded.plan != run.plan:
        raise RMDError(f"the plan of {recipe.name} changes when it is saved with a student and loaded again")


def _truncated_line(run: Run, texts: Sequence[str]) -> str:
    """Return how many prompts are longer than a text encoder reads: `, 3 of them cut at 77 tokens by tokenizer`.

    Raises:
        RMDError: a tokenizer cannot read a prompt, or makes a token of it that its text encoder does not know.
    """
    line = ""
    for name, tokenizer, encoder in _tokenizers(run.backbone):
        options = run.backbone.official_options(run.recipe.frames)
        limit = int(min(tokenizer.model_max_length, options.get("max_sequence_length", math.inf)))
        known = int(encoder.get_input_embeddings().num_embeddings)
        truncated = 0
        for start in range(0, len(texts), _AT_ONCE):
            part = list(texts[start : start + _AT_ONCE])
            for text, ids in zip(part, _tokens(name, tokenizer, part), strict=True):
                truncated += len(ids) > limit
                if max(ids[:limit], default=0) >= known:
                    raise RMDError(
                        f"{name} turns {shown(text)} into token {max(ids[:limit])}, but its text encoder knows {known} "
                        "tokens: the two belong to different models"
                    )
        if truncated:
            line += f", {truncated} of them cut at {limit} tokens by {name}"
    return line


def _tokens(name: str, tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokenize texts; raise RMDError, which names the first text that cannot be tokenized."""
    try:
        ids: list[list[int]] = tokenizer(texts, verbose=False).input_ids
    except (TypeError, ValueError) as error:  # UnicodeError is a ValueError
        for text in texts:
            try:
                tokenizer([text], verbose=False)
            except (TypeError, ValueError):
                raise RMDError(f"{name} cannot read the prompt {shown(text)}: {error}") from error
        raise
    return ids


def _tokenizers(backbone: Backbone) -> Iterator[tuple[str, Any, Any]]:
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
