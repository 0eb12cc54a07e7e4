"""Writes the table of the packaged recipes into docs/recipes.md: `python tools/recipes.py`."""

from __future__ import annotations

import re
from pathlib import Path

from rmd.recipes.layers import PACKAGED, recipe_names
from rmd.recipes.schema import load_recipe

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
START, END = "<!-- recipes -->", "<!-- /recipes -->"


def table() -> str:
    """Return a Markdown table with a line for each packaged recipe."""
    head = ["| recipe | for | sizes | steps | cost |", "|---|---|---|---|---:|"]
    return "\n".join([*head, *map(line, recipe_names())])


def line(name: str) -> str:
    """Return a recipe's row: what it is for, its sizes, its steps by stage, and its cost in full-resolution steps."""
    plan = load_recipe(name).build_plan()
    sizes = " → ".join(str(s.height) if s.height == s.width else s.size for s in plan.stages)
    split = "+".join(str(sum(step.stage == stage.index for step in plan.steps)) for stage in plan.stages)
    cost = sum(plan.relative_cost(plan.stage_of(step)) for step in plan.steps)
    return f"| `{name}` | {purpose(name)} | {sizes} | {split} | {cost:.3g} |"


def purpose(name: str) -> str:
    """Return the first sentence of the comment with which a recipe's file begins, without what other columns say."""
    lines = (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    count = next(index for index, text in enumerate(lines) if not text.startswith("#"))
    comment = " ".join(text.removeprefix("#").strip() for text in lines[:count])
    sentence = re.split(r"(?<=[a-z0-9)])(?<!App)\. (?=[A-Z])", comment)[0].rstrip(".")
    return re.sub(r" \(docs/[\w.-]+\)|,? \w+( -> \w+)+( pixels)?|, [\d+]+ steps\b(?! at flow)", "", sentence)


def fill(text: str) -> str:
    """Return the page with the current table between its marks."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
