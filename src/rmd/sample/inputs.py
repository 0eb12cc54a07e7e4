"""The arguments of a student's call: checks of what diffusers' pipelines leave unchecked, in one sentence each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rmd.common.errors import RMDError, integer, shown
from rmd.core.plan import StepPlan
from rmd.data.captions import check_prompts
from rmd.models.base import Backbone
from rmd.models.cond import Cond

OUTPUTS = ("pil", "np", "pt", "latent")
MAX_PICTURES = 4096
"""Largest number of pictures in one call, which are all in memory at the same time."""
_ANYHOW = {"use_resolution_binning": False, "clean_caption": False}
"""Arguments of the official pipelines that a student's call always has these values of."""


def check_steps(plan: StepPlan, steps: int | None) -> None:
    """Raise RMDError unless a number of steps is the plan's, or is left out."""
    if steps is not None and steps != len(plan.steps):
        raise RMDError(f"this student has {len(plan.steps)} steps, not {shown(steps)}: leave num_inference_steps out")


def check_options(options: Mapping[str, object], known: Iterable[str]) -> None:
    """Raise RMDError if arguments of the official pipeline have no meaning for a student.

    Args:
        options: further arguments of a call.
        known: names of the family's embeddings, which a call takes.
    """
    for name, value in options.items():
        if name not in known and (name not in _ANYHOW or value != _ANYHOW[name]):
            raise RMDError(f"a student takes no {name}: leave it out (embeddings of prompts are {', '.join(known)})")


def warn_of_guidance(**given: object) -> None:
    """Warn of arguments that control guidance, which changes nothing."""
    ignored = [name for name, value in given.items() if value is not None and value not in ("", [], 0.0, 1.0)]
    if ignored:
        warnings.warn(
            f"{' and '.join(ignored)} changed nothing: the teacher's guidance is distilled into the student, "
            "which runs without guidance",
            stacklevel=3,
        )


def encoded(
    backbone: Backbone, prompt: str | Sequence[str] | None, embeddings: Mapping[str, Tensor | None], each: int
) -> Cond:  # fmt: skip
    """Return the encoded prompts, or the given embeddings, repeated for `each` pictures per prompt.

    Args:
        backbone: encodes prompts.
        prompt: one or several prompts, or None.
        embeddings: the embeddings that were given, by diffusers' names; others are left out.
        each: number of pictures per prompt.

    Raises:
        RMDError: both or neither are given, one embedding is missing or has another length, or there are too many.
    """
    given = {
        name: value for name, value in embeddings.items() if name in backbone.cond_names and value is not None
    }  # fmt: skip
    if prompt is None:
        cond = _given(backbone, given)
        _check_count(len(cond), each)
    elif given:
        raise RMDError("give a prompt or its embeddings, not both")
    else:
        prompts = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
        check_prompts(prompts)
        _check_count(len(prompts), each)
        cond = backbone.encode(prompts)
    return cond.map(lambda tensor: tensor.repeat_interleave(each, dim=0))


def generators(given: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """Return one generator per sample: the given ones, the given one for all in turn, or a fresh one.

    Raises:
        RMDError: several are given, but not one per sample.
    """
    if given is None:
        fresh = torch.Generator()
        fresh.seed()
        return [fresh] * count
    if isinstance(given, torch.Generator):
        return [given] * count
    if len(given) != count:
        raise RMDError(f"{count} pictures need one generator or {count} of them, got {len(given)}")
    return list(given)


def _given(backbone: Backbone, embeddings: Mapping[str, Tensor]) -> Cond:
    """Return the embeddings under the backbone's names."""
    names = backbone.cond_names
    missing = [name for name in names if name not in embeddings]
    if missing:
        needed = f"all of {', '.join(names)}" if len(names) > 1 else missing[0]
        raise RMDError(f"give a prompt, or {needed}: {missing[0]} is missing")
    counts = {name: len(embeddings[name]) for name in names}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise RMDError(f"the embeddings belong to different numbers of prompts: {listed}")
    return Cond({ours: embeddings[name] for name, ours in names.items()})


def _check_count(prompts: int, each: int) -> None:
    if integer("num_images_per_prompt", each) < 1:
        raise RMDError(f"num_images_per_prompt must be at least 1, got {each}")
    if prompts * each > MAX_PICTURES:
        raise RMDError(
            f"{shown(prompts * each)} pictures are too many for one call: generate at most {MAX_PICTURES} at once"
        )
