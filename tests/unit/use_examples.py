"""Uses every example plug-in in one process, and prints what happened for test_examples.py; takes an empty folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from families import tiny_auraflow
from helpers import PROMPTS, make_recipe, tiny_sdxl

from research.sampling import sample_images
from rmd.common.errors import RMDError
from rmd.core.plan import build_plan
from rmd.data.formats import FORMATS
from rmd.data.prompts import PROMPTS as SOURCES
from rmd.data.prompts import load_prompts
from rmd.evaluation.metrics import METRICS, metrics_of
from rmd.models.registry import MODELS, wrap
from rmd.recipes.methods import METHODS
from rmd.recipes.schema import load_recipe
from rmd.train.loop import Trainer
from rmd.train.tracking import TRACKERS
from rmd.worlds.base import Assessment, Features
from rmd.worlds.registry import WORLDS

REGISTRIES = (MODELS, METHODS, METRICS, WORLDS, SOURCES, FORMATS, TRACKERS)
TEMPLATE = {
    "prompts": "template:a {colour} {thing} on the beach",
    "options": {"words": {"colour": ["red", "blue"], "thing": ["ball", "kite"]}},
}


def train(folder: Path) -> dict[str, object]:
    """Train two iterations by the example's method, with its prompts and its tracker."""
    recipe = make_recipe(
        "unused", method={"name": "weighted", "strength": 2.0}, train={"iterations": 2, "loggers": ["csv"]},
        data=TEMPLATE,
    )  # fmt: skip
    trainer = Trainer(recipe, tiny_sdxl(), folder / "run")
    trainer.train()
    return {
        "method": type(trainer.method).__name__,
        "csv": (folder / "run" / "metrics.csv").read_text(encoding="utf-8"),
        "prompts": sorted(trainer.prompts.texts),
    }


def refusals() -> dict[str, str]:
    """Return the sentences about a method's and a prompt source's wrong options."""
    sentences = {}
    try:
        load_recipe("scenes", ["method.name=weighted", "method.strenght=1"])
    except RMDError as error:
        sentences["wrong option"] = str(error)
    try:
        load_prompts(load_recipe("scenes", ["data.prompts=template:{a}", "data.options={wrods: {}}"]).data, seed=0)
    except RMDError as error:
        sentences["wrong prompts"] = str(error)
    return sentences


def metric() -> dict[str, object]:
    """Compute the example's metric on features, half of whose dimensions do not vary."""
    g = torch.Generator().manual_seed(0)
    renders = torch.randn(64, 8, generator=g)
    samples = torch.randn(64, 8, generator=g) * torch.tensor([1.0, 0.1]).repeat(4)
    assessment = Assessment(
        count=64, samples_per_prompt=1, right=torch.ones(64, dtype=torch.bool), counted={},
        features=Features(samples, renders, renders), detail=1.0,
    )  # fmt: skip
    names = {f"metrics of {world}": list(metrics_of(WORLDS.get(world))) for world in ("scenes", "moving-scenes")}
    return {"variety": METRICS.get("variety").compute(assessment).value, **names}


def family() -> dict[str, object]:
    """Wrap a tiny AuraFlow pipeline by the example's family, and sample with it."""
    backbone = wrap(tiny_auraflow())
    plan = build_plan(backbone.schedule, steps=2, sides=[(16, 16)], thresholds=[], multiple=backbone.size_multiple)
    pictures = sample_images(backbone, backbone.denoiser, plan, PROMPTS[:1], seed=0, guidance=1.0)
    return {"family": backbone.family, "picture": list(pictures.shape)}


def markdown(folder: Path) -> list[str]:
    """Read prompts from a file of the example's format."""
    path = folder / "prompts.md"
    path.write_text("# Prompts\n\n- a red ball\n- a blue kite\n", encoding="utf-8")
    return load_prompts(load_recipe("scenes", [f"data.prompts={path}"]).data, seed=0).texts


def main(folder: Path) -> None:
    """Print one line of JSON."""
    beach = load_prompts(load_recipe("scenes", ["data.prompts=beach-scenes"]).data, seed=0).texts
    used = {
        "names": {registry.group: list(registry.names()) for registry in REGISTRIES},
        **train(folder), **refusals(), **metric(), **family(), "beach": beach[:100],
        "markdown": markdown(folder),
    }  # fmt: skip
    print(json.dumps(used))


main(Path(sys.argv[1]))
