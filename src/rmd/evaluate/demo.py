"""The demo: distil the packaged teacher, sample five ways with the same seeds, judge, and write the report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rmd.common.files import replacing
from rmd.common.pictures import to_uint8
from rmd.core.plan import StepPlan
from rmd.evaluate.protocol import (
    SAMPLES_PER_PROMPT,
    SAMPLING_SEED,
    TEACHER_STEPS,
    Contender,
    Samples,
    evaluation_prompts,
    full_plan,
    measure,
    run_contender,
)
from rmd.evaluate.rows import Check, Report, Row
from rmd.evaluate.versions import versions
from rmd.models.base import Backbone
from rmd.models.student import save_student
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.report import write_report
from rmd.report.plotting import plot_plan
from rmd.sample.timing import plan_seconds
from rmd.train.loop import Trainer
from rmd.train.tracking import peak_memory_gb, read_metrics
from rmd.worlds.assets import TEACHERS, assets_folder, teacher_home
from rmd.worlds.references import load_references
from rmd.worlds.still.judge import load_judge

GRID_PROMPTS = 24

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)."""


@dataclass(frozen=True)
class DemoResult:
    """The report, where it was written, and whether the run was asked to stop before its end."""

    report: Report
    page: Path


def run_demo(recipe: Recipe, folder: Path, *, quick: bool, progress: Progress) -> DemoResult | None:
    """Train, compare and report; None when a signal stopped the training (it is saved and can be resumed).

    Args:
        recipe: the scenes recipe, or a variant of it.
        folder: the run's folder; a finished run in it is made anew.
        quick: marks the report as a smoke run.
    """
    began = time.perf_counter()
    backbone = load_teacher(recipe)
    trainer = Trainer(recipe, backbone, folder / "run")
    total = recipe.train.iterations
    trainer.on_iteration = lambda done, _: progress("distilling", done, total)
    if trainer.train() < total:
        return None
    state = trainer.student_state()
    save_student(backbone, state, recipe, folder / "student")
    prompts = evaluation_prompts(recipe.evaluation.n, seed=recipe.train.seed)
    found = contenders(backbone, recipe)
    samples = {c.name: sample(trainer, c, prompts, progress) for c in found}
    gain = gain_over_full_steps(trainer, prompts)
    judge = load_judge(assets_folder())
    references = load_references(teacher_home(recipe.teacher if recipe.teacher in TEACHERS else "scenes"))
    shown = slice(0, GRID_PROMPTS * SAMPLES_PER_PROMPT, SAMPLES_PER_PROMPT)
    base = samples["teacher"].denoiser_seconds / len(prompts)
    rows = [
        measure(c, samples[c.name], prompts, judge=judge, references=references, teacher_seconds=base) for c in found
    ]
    report = Report(
        rows=rows,
        checks=targets({row.name: row for row in rows}, samples["rmd"].overhead, gain),
        quick=quick,
        seconds=time.perf_counter() - began,
        peak_memory_gb=peak_memory_gb(torch.device("cpu")),
        config=recipe.model_dump(mode="json"),
        versions=versions(),
        plan=trainer.plan.to_dict(),
        prompts=prompts[shown],
        history=read_metrics(folder / "run" / "metrics.jsonl"),
        n=len(prompts),
        seed=recipe.train.seed,
        overhead=samples["rmd"].overhead,
    )
    grids = {name: to_uint8(s.images[shown]) for name, s in samples.items()}
    save_strips(grids, folder / "grids")
    page = write_report(report, grids, panels(folder / "run"), plan_png(trainer), folder)
    return DemoResult(report, page)


def targets(rows: dict[str, Row], overhead: float, gain: float) -> list[Check]:
    """What the demo must reach, set beforehand.

    Args:
        gain: the student's speed over that of as many steps at the full resolution.
    """
    ours, teacher, four, cascade = (rows[name] for name in ("rmd", "teacher", "teacher-4", "cascade-undistilled"))
    nearest = min(cascade.kernel_distance_to_teacher, four.kernel_distance_to_teacher)
    found = [
        ("attributes over the teacher's", "at least 0.95", share_of(ours.attributes, teacher.attributes), 0.95, True),
        ("distance to renders over the undistilled cascade's", "at most 0.5",
         ours.kernel_distance / cascade.kernel_distance, 0.5, False),
        ("distance to renders over the 4-step teacher's", "below 1",
         ours.kernel_distance / four.kernel_distance, 1, False),
        ("distance to the teacher's samples over the nearer of cascade and 4 steps", "below 1",
         ours.kernel_distance_to_teacher / nearest, 1, False),
        ("denoiser speed-up over the teacher", "at least 15", ours.speedup, 15, True),
        ("denoiser speed-up over as many full-resolution steps", "at least 1.4", gain, 1.4, True),
        ("sampler time outside the network", "at most 0.02", overhead, 0.02, False),
        ("4-step teacher's distance to renders over the teacher's", "at least 3",
         four.kernel_distance / teacher.kernel_distance, 3, True),
    ]  # fmt: skip
    return [
        Check(name=name, target=target, measured=value, passed=value >= limit if least else value <= limit)
        for name, target, value, limit, least in found
    ]


def share_of(part: float, whole: float) -> float:
    """part / whole, where the whole may be nothing (a teacher that gets nothing right)."""
    return part / max(whole, 1e-9)


def contenders(backbone: Backbone, recipe: Recipe) -> list[Contender]:
    """The five rows: the teacher, its cheaper ways of sampling, and the student."""
    plan, guidance = recipe.build_plan(), recipe.method.guidance
    low, full, count = plan.stages[0], plan.stages[-1], len(plan.steps)
    split = "+".join(str(sum(step.stage == stage.index for step in plan.steps)) for stage in plan.stages)

    def teacher(name: str, label: str, its: StepPlan) -> Contender:
        return Contender(name, label, "teacher", its, guidance)

    return [
        teacher("teacher", f"teacher, {TEACHER_STEPS} steps", full_plan(backbone, full, TEACHER_STEPS)),
        teacher("teacher-4", f"teacher, {count} steps", full_plan(backbone, full, count)),
        teacher("cascade-undistilled", f"teacher as a {split} cascade", plan),
        teacher("teacher-low", f"teacher at {low.size}, enlarged", full_plan(backbone, low, TEACHER_STEPS)),
        Contender("rmd", f"RMD student, {split}", "student", plan),
    ]


def sample(trainer: Trainer, contender: Contender, prompts: Sequence[str], progress: Progress) -> Samples:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(f"sampling: {contender.label}", done, len(prompts))

    network = trainer.averaged_student() if contender.role == "student" else trainer.roles.use(contender.role)
    with network as module:
        return run_contender(
            trainer.backbone,
            module,
            contender,
            prompts,
            seed=SAMPLING_SEED,
            size=trainer.plan.match_stage,
            progress=count,
        )


def gain_over_full_steps(trainer: Trainer, prompts: Sequence[str]) -> float:
    """Denoiser seconds of as many steps as the student's, all at the full resolution, over those of its own steps."""
    plan = trainer.plan
    full = full_plan(trainer.backbone, plan.stages[-1], len(plan.steps), frames=plan.frames)
    with trainer.averaged_student() as network:
        slow, ours = plan_seconds(trainer.backbone, [full, plan], prompts, network=network)
    return slow / ours


def save_strips(grids: Mapping[str, Tensor], folder: Path) -> None:
    """The grids' pictures at their own size, one PNG a row of the table, from left to right."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in grids.items():
        strip = torch.cat(list(images), dim=2).permute(1, 2, 0)
        with replacing(folder / f"{name}.png") as partial:
            Image.fromarray(strip.numpy()).save(partial, "PNG")


def panels(run: Path) -> list[tuple[int, Image.Image]]:
    paths = sorted((run / "pictures").glob("scores-*.png"))
    return [(int(path.stem.split("-")[1]), Image.open(path).convert("RGB")) for path in paths]


def plan_png(trainer: Trainer) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.png"
        plot_plan(trainer.plan, trainer.backbone.schedule, path)
        return path.read_bytes()
