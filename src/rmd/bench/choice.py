"""Chooses how a teacher is trained on a card: the roles, the samples at once, and what stays off the GPU.

The estimate of memory decides (`rmd.bench.memory`). What was tried, and why it was passed over, is returned with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rmd.bench.cards import smallest_card
from rmd.bench.memory import ENCODERS, ENCODING, SLACK, Memory, Part, held_parts, meta_networks, recipe_memory
from rmd.common.errors import RMDError
from rmd.recipes.schema import Recipe

Mode = Literal["lora", "full"]
Encoders = Literal["gpu", "offload", "cache"]


@dataclass(frozen=True)
class Choice:
    """Settings with which a run fits a card."""

    recipe: Recipe
    """The recipe with these settings, but for the cache, which does not exist yet."""
    encoders: Encoders
    """The place of the text encoders: on the GPU, on it only while they encode, or not needed because of a cache."""
    needed: Memory
    passed_over: tuple[str, ...]
    """Sentences about what did not fit."""


def choose(recipes: list[Recipe], room: float, say: Callable[[str], None]) -> Choice:
    """Return the first way of training that fits.

    The recipes are tried in turn, each first as it is and then with gradient checkpointing. Whatever fits with one
    sample at once gets as many as fit.

    Args:
        recipes: one recipe for every mode of the roles that may be chosen, with its noise spelt out.
        room: usable bytes of the card.
        say: told what is being tried, since each estimate takes some seconds.

    Raises:
        RMDError: nothing fits; the message names the smallest card on which something would.
    """
    passed: list[str] = []
    totals: list[float] = []
    too_large: list[tuple[float, Recipe]] = []
    for recipe in recipes:
        held = SLACK + sum(part.bytes for part in held_parts(meta_networks(recipe), 1))
        if held > room:
            passed.append(f"{recipe.roles.mode}: weights and optimisers alone take {held / 1e9:.1f} GB")
            too_large.append((held, recipe))
            continue
        for recompute in (False, True):
            single = _changed(recipe, 1, recompute)
            what = recipe.roles.mode + (" with gradient checkpointing" if recompute else "")
            say(f"Counting the memory of {what} ...")
            needed = recipe_memory(single)
            encoders = _place_of_encoders(needed, room)
            if encoders is not None:
                return _with_more_samples(single, needed, encoders, room, tuple(passed))
            smallest = _without_encoders(needed)
            passed.append(f"{what}: one sample takes {smallest / 1e9:.1f} GB, without text encoders")
            totals.append(smallest)
    if not totals:
        _, recipe = min(too_large, key=lambda each: each[0])
        say("Counting the memory of the smallest way of training ...")
        totals.append(_without_encoders(recipe_memory(_changed(recipe, 1, True))))
    raise RMDError(_too_small(room, passed, min(totals)))


def _too_small(room: float, passed: list[str], least: float) -> str:
    """Return the sentence for a card on which nothing fits."""
    card = smallest_card(least)
    tried = f"this teacher does not fit into {room / 1e9:.1f} usable GB ({'; '.join(passed)})"
    if card is None:
        return f"{tried}, nor into any single card: train on several GPUs, or give smaller --sides"
    return f"{tried}; the smallest card that it fits has {card} GB: give --gpu {card}, or smaller --sides"


def _changed(recipe: Recipe, samples: int, recompute: bool) -> Recipe:
    """Return a recipe that computes so many samples at once on one card."""
    train = recipe.train.model_copy(
        update={
            "gradient_accumulation_steps": recipe.train.batch_size // samples,
            "gradient_checkpointing": recompute,
        }
    )
    return recipe.model_copy(update={"train": train})


def _place_of_encoders(needed: Memory, room: float) -> Encoders | None:
    """Return the place of the text encoders with which a run fits; None if it does not even fit without them."""
    if needed.total <= room:
        return "gpu"
    if _without_encoders(needed) > room:
        return None
    held = SLACK + sum(part.bytes for part in needed.parts)  # while the encoders are on the GPU, nothing else happens
    return "offload" if held <= room else "cache"


def _without_encoders(needed: Memory) -> float:
    return needed.total - sum(part.bytes for part in needed.parts if part.name == ENCODERS)


def _with_more_samples(
    single: Recipe, needed: Memory, encoders: Encoders, room: float, passed: tuple[str, ...]
) -> Choice:
    """Return a choice with as many samples at once as fit.

    An update of n samples needs at most n times what one needs, because weights and gradients do not grow.
    """
    data = single.data.model_copy(update={"offload": encoders != "gpu"})
    one = single.model_copy(update={"data": data})
    needed = _relocated(needed, encoders)
    updates = max(phase.bytes for phase in needed.phases if phase.name.startswith("update"))
    free = room - SLACK - sum(part.bytes for part in needed.parts)
    batch = one.train.batch_size
    samples = max((n for n in range(1, batch + 1) if batch % n == 0 and n * updates <= free), default=1)
    if samples == 1:
        return Choice(one, encoders, needed, passed)
    more = _changed(one, samples, one.train.gradient_checkpointing)
    on_gpu = more.model_copy(update={"data": single.data})
    return Choice(more, encoders, _relocated(recipe_memory(on_gpu), encoders), passed)


def _relocated(needed: Memory, encoders: Encoders) -> Memory:
    """Return an estimate, whose text encoders are on the GPU all the time, with the encoders in another place."""
    if encoders == "gpu":
        return needed
    (own,) = (part for part in needed.parts if part.name == ENCODERS)
    parts = tuple(part for part in needed.parts if part is not own)
    moments = (Part(ENCODING, own.bytes),) if encoders == "offload" else ()
    return replace(needed, parts=parts, phases=(*needed.phases, *moments))
