"""The first recipe for a teacher: what its configurations say, on top of the packaged recipe that comes closest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rmd.bench.choice import Choice, Mode, choose
from rmd.bench.memory import recipe_memory
from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, replacing
from rmd.models.describe import TeacherFacts, describe, known_facts
from rmd.models.resolve import is_packaged
from rmd.recipes.catalog import closest_recipe
from rmd.recipes.layers import recipe_names
from rmd.recipes.schema import Recipe, load_recipe


@dataclass(frozen=True)
class Wishes:
    """Settings that the user asks for; None leaves the choice."""

    prompts: str | None = None
    mode: Mode | None = None
    batch: int | None = None
    sides: str | None = None
    """Sizes of the stages, separated by commas."""
    guidance: float | None = None


@dataclass(frozen=True)
class FirstRecipe:
    """A teacher, and the settings that do not depend on the card."""

    name: str
    """The teacher, as it was named."""
    facts: TeacherFacts
    settings: dict[Mode, tuple[Recipe, tuple[str, ...]]]
    """For every mode, the packaged recipe to begin with, and what is changed in it."""
    why: dict[str, str]
    """For some keys, the reason for their value."""

    @property
    def small(self) -> bool:
        """True for a packaged teacher, which needs no particular card."""
        return is_packaged(self.name)

    def fitted(self, room: float | None, say: Callable[[str], None]) -> Choice:
        """Return the settings that fit a card with `room` usable bytes; None: those of the packaged recipe.

        Raises:
            RMDError: a setting is wrong, or nothing fits.
        """
        recipes = [load_recipe(start.name, changes) for start, changes in self.settings.values()]
        if room is None:
            return Choice(recipes[0], "gpu", recipe_memory(recipes[0]), ())
        return choose(recipes, room, say)


def first_recipe(teacher: str, wishes: Wishes) -> FirstRecipe:
    """Read a teacher's configurations, and decide on whatever does not depend on the card.

    Raises:
        RMDError: the teacher cannot be read, is of no known family, or no recipe of its family is packaged.
    """
    known = _recipe_of_published(teacher)
    facts = describe(teacher) if known is None else known_facts(known)
    usual = closest_recipe(facts.family.family, teacher)
    if usual is None:
        raise RMDError(
            f"there is no packaged recipe of the family {facts.family.family} to begin with: write one of your own, "
            "which extends base"
        )
    why: dict[str, str] = {}
    changes = [f"teacher={teacher}", *_noise(facts), *_sides(facts, usual, wishes, why)]
    changes += _guidance(facts, usual, wishes, why)
    if wishes.batch is not None:
        changes.append(f"train.batch_size={wishes.batch}")
        why["train.batch_size"] = "as you asked"
    if wishes.prompts is not None:
        changes.append(f"data.prompts={wishes.prompts}")
    modes: list[Mode] = [usual.roles.mode, "lora" if usual.roles.mode == "full" else "full"]
    if is_packaged(teacher):
        modes = modes[:1]
    found = {mode: closest_recipe(facts.family.family, teacher, mode) for mode in modes if wishes.mode in (None, mode)}
    settings = {mode: (start, tuple(changes)) for mode, start in found.items() if start is not None}
    if not settings:
        raise RMDError(f"there is no packaged recipe for {teacher} with roles.mode={wishes.mode}: leave out --mode")
    return FirstRecipe(teacher, facts, settings, why)


def _recipe_of_published(teacher: str) -> Recipe | None:
    """Return a packaged recipe of a published teacher that is not a folder here, whose facts RMD knows."""
    if is_packaged(teacher) or Path(teacher).exists():
        return None
    start = next((each for each in map(load_recipe, recipe_names()) if each.teacher == teacher), None)
    return None if start is None else closest_recipe(start.family, teacher)


def _noise(facts: TeacherFacts) -> list[str]:
    """Return the override that spells out a teacher's schedule."""
    return [f"noise={yaml.safe_dump(facts.noise.model_dump(), default_flow_style=True, width=10_000).strip()}"]


def _sides(facts: TeacherFacts, usual: Recipe, wishes: Wishes, why: dict[str, str]) -> list[str]:
    """Return the overrides that set the sizes of the stages."""
    multiple = f"plan.multiple={facts.multiple}"
    if wishes.sides is not None:
        why["plan.sides"] = "as you asked"
        return [f"plan.sides=[{wishes.sides}]", multiple]
    if facts.side is None or is_packaged(facts.name):
        why["plan.sides"] = f"as in recipe {usual.name}"
        return [multiple]
    final = facts.side // facts.multiple * facts.multiple
    half = max(round(final / 2 / facts.multiple), 1) * facts.multiple
    why["plan.sides"] = f"the teacher was made for {facts.side} pixels; half of it comes first"
    return [f"plan.sides=[{half}, {final}]", multiple]


def _guidance(facts: TeacherFacts, usual: Recipe, wishes: Wishes, why: dict[str, str]) -> list[str]:
    """Return the override that sets the guidance scale."""
    if wishes.guidance is not None:
        why["method.guidance"] = "as you asked"
        return [f"method.guidance={wishes.guidance}"]
    if facts.guidance is None or usual.teacher == facts.name:
        why["method.guidance"] = f"as in recipe {usual.name}"
        return []
    why["method.guidance"] = f"the default of {facts.pipeline}; recipe {usual.name} has {usual.method.guidance:g}"
    return [f"method.guidance={facts.guidance}"]


def reasons(first: FirstRecipe, choice: Choice, room: float | None) -> list[tuple[str, str, str]]:
    """Return the settings that were decided on, each with its value and the reason for it."""
    recipe, facts = choice.recipe, first.facts
    start, _ = first.settings[recipe.roles.mode]
    seen = f"the pipeline is a {facts.pipeline}" if facts.pipeline else "known by its name; nothing was read"
    predicts = f"as in recipe {start.name}"
    if facts.prediction is not None:
        predicts = f"read from its scheduler; the network predicts {facts.prediction}"
    batch = first.why.get("train.batch_size", f"as in recipe {start.name}")
    rates = f"{recipe.optim.student_lr:g}, {recipe.optim.fake_lr:g}"
    rows = [
        ("family", recipe.family, seen),
        ("noise", facts.noise.kind, predicts),
        ("plan.sides", ", ".join(_size(side) for side in recipe.plan.sides), first.why["plan.sides"]),
        ("method.guidance", f"{recipe.method.guidance:g}", first.why["method.guidance"]),
        ("roles.mode", recipe.roles.mode, "; ".join(choice.passed_over) or f"as in recipe {start.name}"),
        ("optim learning rates", rates, f"as in recipe {start.name}, whose file says where they come from"),
        ("train.iterations", str(recipe.train.iterations), f"as in recipe {start.name} (docs/full-size.md)"),
        ("train.batch_size", str(recipe.train.batch_size), batch),
    ]
    if room is None:
        return rows
    train = recipe.train
    return [*rows, *_fitting(choice, train.gradient_accumulation_steps, train.gradient_checkpointing)]


def _fitting(choice: Choice, pieces: int, recompute: bool) -> list[tuple[str, str, str]]:
    """Return the settings that make a run fit its card."""
    place = {
        "gpu": ("false", "the text encoders fit beside everything else"),
        "offload": ("true", "the text encoders fit only while nothing else is computed"),
        "cache": ("true", "the text encoders do not fit beside the weights: encode the prompts first"),
    }
    at_once = f"{choice.needed.samples:g} of {choice.recipe.train.batch_size} samples fit at once"
    why = "one sample does not fit otherwise" if recompute else "activations fit, and this is quicker"
    return [
        ("train.gradient_accumulation_steps", str(pieces), at_once),
        ("train.gradient_checkpointing", str(recompute).lower(), why),
        ("data.offload", *place[choice.encoders]),
        ("optimiser", "AdamW", "fused on a GPU; its moments are float32, and there is no 8-bit form"),
    ]


def _size(side: tuple[int, int]) -> str:
    height, width = side
    return str(height) if height == width else f"{height}x{width}"


def write_recipe(path: Path, first: FirstRecipe, choice: Choice, card: str, room: float | None = None) -> None:
    """Write the recipe with comments, and check that it reads back as what was chosen.

    Raises:
        RMDError: the file cannot be written.
    """
    start, _ = first.settings[choice.recipe.roles.mode]
    text = recipe_text(path.stem, start, choice.recipe, reasons(first, choice, room), card)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            read = load_recipe(str(temporary.absolute()))
            if read.model_dump(exclude={"name"}) != choice.recipe.model_dump(exclude={"name"}):
                raise AssertionError(f"{path} would not say what was chosen")


def recipe_text(
    name: str, start: Recipe, recipe: Recipe, rows: list[tuple[str, str, str]], card: str
) -> str:  # fmt: skip
    """Return the YAML of a recipe that extends a packaged one, with the reason for each setting beside it."""
    why = {key: reason for key, _, reason in rows}
    train = recipe.train
    sides = [side[0] if side[0] == side[1] else _size(side) for side in recipe.plan.sides]
    groups: list[tuple[str, Any]] = [
        ("noise", None if isinstance(recipe.noise, str) else recipe.noise.model_dump()),
        ("plan", {"sides": sides, "multiple": recipe.plan.multiple}),
        ("method", {"guidance": recipe.method.guidance}),
        ("roles", recipe.roles.model_dump()),
        ("optim", {"student_lr": recipe.optim.student_lr, "fake_lr": recipe.optim.fake_lr}),
        ("train", {
            "iterations": train.iterations, "batch_size": train.batch_size,
            "gradient_accumulation_steps": train.gradient_accumulation_steps,
            "gradient_checkpointing": train.gradient_checkpointing,
        }),
        ("data", {"prompts": recipe.data.prompts, "offload": recipe.data.offload}),
    ]  # fmt: skip
    lines = [
        f"# A first recipe for {recipe.teacher} on {card}.",
        f"# Written by `rmd init`: change whatever you like. The rest is as in the packaged recipe {start.name}.",
        f"extends: {start.name}",
        f"name: {_scalar(name)}",
        f"teacher: {_scalar(recipe.teacher)}",
    ]
    for group, values in groups:
        if group in why:
            lines.append(f"# {why[group]}")
        lines.append(f"{group}:")
        lines += [_line(group, key, value, why) for key, value in (values or {}).items()]
    return "\n".join(lines) + "\n"


def _line(group: str, key: str, value: object, why: dict[str, str]) -> str:
    reason = why.get(f"{group}.{key}")
    return f"  {key}: {_scalar(value)}" + ("" if reason is None else f"  # {reason}")


def _scalar(value: object) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
