"""The demo: distil a packaged teacher, evaluate the student beside other samplers with the same seeds, check targets.

Worlds differ only in data: which samplers are compared, which targets are checked, how many captions are shown
(`rmd.worlds.base.Demo`). `rmd.report.demo` writes the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rmd.common.pictures import to_uint8
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import StepPlan
from rmd.evaluation.metrics import METRICS
from rmd.evaluation.protocol import (
    SAMPLES_PER_PROMPT,
    SAMPLING_SEED,
    TEACHER_STEPS,
    PlanContender,
    evaluation_prompts,
    full_plan,
)
from rmd.evaluation.rows import STUDENT, TEACHER, Check, Report, Row
from rmd.evaluation.run import Evaluated, evaluate
from rmd.evaluation.versions import versions
from rmd.models.student import save_student
from rmd.models.teacher import load_teacher
from rmd.recipes.methods import TDMConfig
from rmd.recipes.schema import Recipe
from rmd.sample.progress import Progress, running_total
from rmd.sample.timing import plan_seconds
from rmd.train.loop import Trainer
from rmd.train.tracking import peak_memory_gb, read_metrics
from rmd.worlds.base import Judge, Target, World
from rmd.worlds.registry import judge_of, world_of

RUNS = {STUDENT: "run", "tdm": "run-tdm"}
"""Folders of the trainings, by the row of their student."""


@dataclass(frozen=True)
class DemoResult:
    """The measurements of a demo, and the pictures that its report shows.

    Attributes:
        grids: samples of the first captions, (n, 3, H, W) or (n, 3, T, H, W) uint8, by row.
        panels: iteration and picture of each training panel.
        schedule: the teacher's noise schedule, by which the plan is drawn.
    """

    report: Report
    world: World
    grids: Mapping[str, Tensor]
    panels: Sequence[tuple[int, Image.Image]]
    schedule: NoiseSchedule


def run_demo(recipe: Recipe, folder: Path, *, quick: bool, progress: Progress) -> DemoResult | None:
    """Train the student (and the baseline, if the world compares one), evaluate all samplers, and check the targets.

    Args:
        recipe: a recipe of a world's packaged teacher, or a variant of one.
        folder: the demo's folder; the trainings are in `run` and `run-tdm`, and the student is saved to `student`.
        quick: whether this is a smoke run, as which the report is marked.

    Returns:
        The result, or None if a signal stopped a training, which is saved and can be resumed.

    Raises:
        RMDError: the recipe belongs to no world, or its teacher or judge is missing.
    """
    began, world = time.perf_counter(), world_of(recipe)
    trainers = _train(recipe, world, folder, progress)
    if trainers is None:
        return None
    trainer = trainers[STUDENT]
    save_student(trainer.backbone, trainer.student_state(), recipe, folder / "student")
    prompts = evaluation_prompts(world, recipe.evaluation.n, seed=recipe.train.seed)
    judge = judge_of(recipe)
    shown = slice(0, world.demo.prompts * SAMPLES_PER_PROMPT, SAMPLES_PER_PROMPT)
    rows, grids, overhead = list[Row](), dict[str, Tensor](), 0.0
    for name in world.demo.rows:
        result = _evaluate(name, trainers, world, judge, prompts, progress)
        rows.append(result.row)
        grids[name] = to_uint8(result.samples.images[shown])
        if name == STUDENT:
            overhead = result.samples.overhead
    rows, gain = timed_together(rows, trainers, prompts)
    facts = {"gain": gain, "overhead": overhead}
    report = Report(
        rows=rows,
        checks=check_targets(world.demo.targets, {row.name: row for row in rows}, facts),
        quick=quick,
        seconds=time.perf_counter() - began,
        peak_memory_gb=peak_memory_gb(torch.device("cpu")),
        config=recipe.model_dump(mode="json"),
        versions=versions(),
        plan=trainer.plan.to_dict(),
        prompts=prompts[shown],
        history=read_metrics(folder / RUNS[STUDENT] / "metrics.jsonl"),
        n=len(prompts),
        seed=recipe.train.seed,
        overhead=overhead,
    )
    return DemoResult(report, world, grids, _panels(folder / RUNS[STUDENT]), trainer.backbone.schedule)


def check_targets(targets: Sequence[Target], rows: Mapping[str, Row], facts: Mapping[str, float]) -> list[Check]:
    """Compare rows with the targets that were set beforehand.

    Args:
        rows: rows by name.
        facts: `gain`, the student's speed over that of as many full-resolution steps, and `overhead`, the time of its
            sampler outside the network over the time inside it.
    """
    return [_check(target, rows, facts) for target in targets]


def _check(target: Target, rows: Mapping[str, Row], facts: Mapping[str, float]) -> Check:
    if target.measure in facts:
        measured = facts[target.measure]
    elif target.measure == "speedup":
        measured = rows[target.row].speedup
    else:
        measured = rows[target.row].value(target.measure)
        if target.over:
            whole = rows[target.over].value(target.measure)
            # A teacher that gets nothing right has a share of 0.
            share = METRICS.get(target.measure).shown == "percent"
            measured /= max(whole, 1e-9) if share else whole
    passed = measured >= target.limit if target.least else measured <= target.limit
    return Check(name=target.name, target=target.wanted, measured=measured, passed=passed)


def tdm_recipe(recipe: Recipe) -> Recipe:
    """Return the baseline of a recipe: TDM with as many iterations and steps, all at the final resolution."""
    plan = recipe.plan.model_copy(update={"sides": recipe.plan.sides[-1:], "thresholds": ()})
    method = TDMConfig(**recipe.method.model_dump(include=set(TDMConfig.model_fields) - {"name"}), name="tdm")
    return recipe.model_copy(update={"plan": plan, "method": method})


def timed_together(
    rows: Sequence[Row], trainers: Mapping[str, Trainer], prompts: Sequence[str]
) -> tuple[list[Row], float]:
    """Return the rows with the denoiser's time, and the time of as many full-resolution steps over the student's.

    All rows are made of the same network's calls at a few resolutions. These are timed in turn, so that what else the
    machine does meanwhile affects all rows alike; the times at which the rows were sampled are minutes apart.
    """
    trainer = trainers[STUDENT]
    plan, backbone = trainer.plan, trainer.backbone
    full = full_plan(backbone, plan.stages[-1], len(plan.steps), frames=plan.frames)
    plans = [_sampler(row.name, trainers.get(row.name, trainer))[1] for row in rows]
    with trainer.averaged_student() as network:
        *seconds, slow = plan_seconds(backbone, [*plans, full], prompts, network=network)
    # A guided call evaluates the network twice.
    seconds = [each * row.nfe / len(its.steps) for each, row, its in zip(seconds, rows, plans, strict=True)]
    names = [row.name for row in rows]
    reference, ours = seconds[names.index(TEACHER)], seconds[names.index(STUDENT)]
    timed = [
        row.model_copy(update={"seconds_per_image": each, "speedup": reference / each})
        for row, each in zip(rows, seconds, strict=True)
    ]
    return timed, slow / ours


def _train(recipe: Recipe, world: World, folder: Path, progress: Progress) -> dict[str, Trainer] | None:
    """Train every student that the world compares, ours first; None if a training was asked to stop."""
    recipes = {STUDENT: recipe} | ({"tdm": tdm_recipe(recipe)} if "tdm" in world.demo.rows else {})
    trainers = {}
    for name, its in recipes.items():
        trainer = Trainer(its, load_teacher(its), folder / RUNS[name])
        what = "distilling" if len(recipes) == 1 else f"distilling ({name.upper()})"
        trainer.on_iteration = _reported_to(progress, what, its.train.iterations)
        if trainer.train() < its.train.iterations:
            return None
        trainers[name] = trainer
    return trainers


def _reported_to(progress: Progress, what: str, total: int) -> Callable[[int, Mapping[str, float]], None]:
    return lambda done, _: progress(what, done, total)


def _evaluate(
    name: str, trainers: Mapping[str, Trainer], world: World, judge: Judge, prompts: Sequence[str],
    progress: Progress,
) -> Evaluated:  # fmt: skip
    """Evaluate a row: a student if one was trained for it, otherwise the teacher."""
    trainer = trainers.get(name, trainers[STUDENT])
    label, plan = _sampler(name, trainer)
    guidance = 1.0 if name in trainers else trainer.recipe.method.guidance
    with trainer.averaged_student() if name in trainers else trainer.roles.use("teacher") as network:
        return evaluate(
            PlanContender(name, label, trainer.backbone, network, plan, guidance), world, judge, prompts,
            seed=SAMPLING_SEED, size=trainer.plan.match_stage,
            progress=running_total(progress, f"sampling: {label}", len(prompts)),
        )  # fmt: skip


def _sampler(name: str, trainer: Trainer) -> tuple[str, StepPlan]:
    """Return the label and the plan of a row of `rmd.worlds.base.Demo.rows`."""
    plan, backbone = trainer.plan, trainer.backbone
    first, last, count = plan.stages[0], plan.stages[-1], len(plan.steps)
    split = "+".join(str(sum(step.stage == stage.index for step in plan.steps)) for stage in plan.stages)
    if name == TEACHER:
        return f"teacher, {TEACHER_STEPS} steps", full_plan(backbone, last, TEACHER_STEPS, frames=plan.frames)
    if name == "teacher-4":
        return f"teacher, {count} steps", full_plan(backbone, last, count, frames=plan.frames)
    if name == "teacher-low":
        low = full_plan(backbone, first, TEACHER_STEPS, frames=plan.frames)
        return f"teacher at {first.size}, enlarged", low
    labels = {
        "cascade-undistilled": f"teacher as a {split} cascade",
        "tdm": f"TDM student, {count} full-resolution steps",
        STUDENT: f"RMD student, {split}",
    }
    return labels[name], plan


def _panels(run: Path) -> list[tuple[int, Image.Image]]:
    paths = sorted((run / "pictures").glob("scores-*.png"))
    return [(int(path.stem.split("-")[1]), Image.open(path).convert("RGB")) for path in paths]
