"""The video demo: distil the teacher of moving scenes by RMD and by TDM, and compare both with it, clip by clip."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from rmd.common.pictures import to_uint8
from rmd.data.prompts import clip_captions
from rmd.evaluate.clips import measure_clip_row
from rmd.evaluate.demo import (
    DemoResult,
    Progress,
    gain_over_full_steps,
    panels,
    plan_png,
    sample,
    share_of,
)
from rmd.evaluate.protocol import SAMPLES_PER_PROMPT, SAMPLING_SEED, TEACHER_STEPS, Contender, full_plan
from rmd.evaluate.rows import Check, Report, Row
from rmd.evaluate.versions import versions
from rmd.models.student import save_student
from rmd.models.teacher import load_teacher
from rmd.recipes.methods import TDMConfig
from rmd.recipes.schema import Recipe
from rmd.report import write_report
from rmd.train.loop import Trainer
from rmd.train.tracking import peak_memory_gb, read_metrics
from rmd.worlds.assets import teacher_home
from rmd.worlds.moving.judge import load_frame_judge
from rmd.worlds.moving.pictures import save_comparison, save_sheet
from rmd.worlds.moving.references import load_clip_references

GRID_PROMPTS = 16
COMPARED_PROMPTS = 8
"""Of those, shown beside each other in one animation."""


def run_moving_demo(recipe: Recipe, folder: Path, *, quick: bool, progress: Progress) -> DemoResult | None:
    """Train, compare and report; None when a signal stopped a training (it is saved and can be resumed).

    Args:
        recipe: the recipe `scenes-wan`, or a variant of it.
        folder: the run's folder; a finished run in it is made anew.
        quick: marks the report as a smoke run.
    """
    began = time.perf_counter()
    trainer = _train(recipe, folder / "run", "distilling (RMD)", progress)
    baseline = None if trainer is None else _train(tdm_recipe(recipe), folder / "run-tdm", "distilling (TDM)", progress)
    if trainer is None or baseline is None:
        return None
    save_student(trainer.backbone, trainer.student_state(), recipe, folder / "student")
    plan, guidance, count = trainer.plan, recipe.method.guidance, len(trainer.plan.steps)
    split = "+".join(str(sum(step.stage == stage.index for step in plan.steps)) for stage in plan.stages)
    final = plan.stages[-1]
    slow, fast = (full_plan(trainer.backbone, final, steps, frames=plan.frames) for steps in (TEACHER_STEPS, count))
    contenders = [
        Contender("teacher", f"teacher, {TEACHER_STEPS} steps", "teacher", slow, guidance),
        Contender("teacher-4", f"teacher, {count} steps", "teacher", fast, guidance),
        Contender("cascade-undistilled", f"teacher as a {split} cascade", "teacher", plan, guidance),
        Contender("tdm", f"TDM student, {count} full-resolution steps", "student", baseline.plan),
        Contender("rmd", f"RMD student, {split}", "student", plan),
    ]
    prompts = moving_prompts(recipe.evaluation.n, seed=recipe.train.seed)
    samples = {c.name: sample(baseline if c.name == "tdm" else trainer, c, prompts, progress) for c in contenders}
    gain = gain_over_full_steps(trainer, prompts)
    home = teacher_home(recipe.teacher)
    judge, references = load_frame_judge(home), load_clip_references(home)
    base = samples["teacher"].denoiser_seconds / len(prompts)
    rows = [
        measure_clip_row(c, samples[c.name], prompts, judge=judge, references=references, teacher_seconds=base)
        for c in contenders
    ]
    shown = slice(0, GRID_PROMPTS * SAMPLES_PER_PROMPT, SAMPLES_PER_PROMPT)
    grids = {name: to_uint8(made.images[shown]) for name, made in samples.items()}
    report = Report(
        rows=rows,
        checks=moving_targets({row.name: row for row in rows}, gain),
        quick=quick,
        seconds=time.perf_counter() - began,
        peak_memory_gb=peak_memory_gb(torch.device("cpu")),
        config=recipe.model_dump(mode="json"),
        versions=versions(),
        plan=plan.to_dict(),
        prompts=prompts[shown],
        history=read_metrics(folder / "run" / "metrics.jsonl"),
        n=len(prompts),
        seed=recipe.train.seed,
        overhead=samples["rmd"].overhead,
    )
    (folder / "grids").mkdir(parents=True, exist_ok=True)
    for name, videos in grids.items():
        save_sheet(videos, report.prompts, folder / "grids" / f"{name}.webp")
    compared = {name: videos[:COMPARED_PROMPTS] for name, videos in grids.items()}
    labels = {row.name: row.title for row in rows}
    save_comparison(compared, labels, folder / "grids" / "comparison.webp")
    return DemoResult(report, write_report(report, grids, panels(folder / "run"), plan_png(trainer), folder))


def tdm_recipe(recipe: Recipe) -> Recipe:
    """The baseline of a recipe: TDM with as many iterations and steps, all at the final resolution."""
    plan = recipe.plan.model_copy(update={"sides": recipe.plan.sides[-1:], "thresholds": ()})
    method = TDMConfig(**recipe.method.model_dump(include=set(TDMConfig.model_fields) - {"name"}))
    return recipe.model_copy(update={"plan": plan, "method": method})


def moving_prompts(count: int, *, seed: int) -> list[str]:
    """Captions of the whole grammar, held-out combinations included, each `SAMPLES_PER_PROMPT` times in a row."""
    captions = clip_captions(-(-count // SAMPLES_PER_PROMPT), seed=SAMPLING_SEED + seed, training=False)
    return [caption for caption in captions for _ in range(SAMPLES_PER_PROMPT)]


def moving_targets(rows: dict[str, Row], gain: float) -> list[Check]:
    """What the video demo must reach, set beforehand.

    Args:
        gain: the student's speed over that of as many steps at the full resolution.
    """
    ours, teacher, cascade = rows["rmd"], rows["teacher"], rows["cascade-undistilled"]
    moved, asked = (0.0 if row.motion is None else row.motion.motion for row in (ours, teacher))
    found = [
        ("motion over the teacher's", "at least 0.9", share_of(moved, asked), 0.9, True),
        ("attributes over the teacher's", "at least 0.9", share_of(ours.attributes, teacher.attributes), 0.9, True),
        ("distance to renders over the undistilled cascade's", "below 1",
         ours.kernel_distance / cascade.kernel_distance, 1, False),
        ("denoiser speed-up over as many full-resolution steps", "at least 1.4", gain, 1.4, True),
    ]  # fmt: skip
    return [
        Check(name=name, target=target, measured=value, passed=value >= limit if least else value <= limit)
        for name, target, value, limit, least in found
    ]


def _train(recipe: Recipe, folder: Path, what: str, progress: Progress) -> Trainer | None:
    """A trained run; None when it was asked to stop."""
    trainer = Trainer(recipe, load_teacher(recipe), folder)
    total = recipe.train.iterations
    trainer.on_iteration = lambda done, _: progress(what, done, total)
    return trainer if trainer.train() == total else None
