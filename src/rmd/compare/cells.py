"""Cells of a comparison: a setting, a backbone and a seed, trained, sampled and judged once and kept by their content.

A cell's file is named by everything that decides its numbers (recipe, plan, weights of teacher and judge, samples), so
tables share cells, and a comparison that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmd.bench.training import evaluations
from rmd.common.errors import RMDError
from rmd.common.files import read_model, replacing, write_text
from rmd.common.pictures import to_uint8
from rmd.common.typed import Strict
from rmd.compare.official import FlowLCMSampler
from rmd.compare.tables import BACKBONES, Setting
from rmd.core.fit import split_thresholds
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import Stage, StepPlan
from rmd.evaluate.protocol import (
    SAMPLES_PER_PROMPT,
    SAMPLING_SEED,
    Contender,
    Samples,
    assess,
    evaluation_prompts,
    judged_row,
    run_contender,
    run_maker,
)
from rmd.evaluate.rows import Row
from rmd.methods.base import draw_shares
from rmd.models.base import Backbone
from rmd.models.teacher import load_teacher
from rmd.recipes.hashes import settings_hash
from rmd.recipes.methods import CascadeConfig
from rmd.recipes.schema import Recipe, load_recipe
from rmd.sample.timing import TIMED, plan_seconds
from rmd.train.identity import weights_key
from rmd.train.loop import Trainer
from rmd.worlds.assets import assets_folder, teacher_home
from rmd.worlds.references import load_references
from rmd.worlds.still.grammar import NONE
from rmd.worlds.still.judge import Judge, load_judge

SHOWN = 12
"""Captions whose pictures a cell keeps."""
Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)."""


@dataclass(frozen=True)
class Budget:
    """What every cell may spend.

    Attributes:
        evaluations: of networks in its training, for every sample of a batch; both guidance branches count.
        seeds: of trainings and evaluations alike.
        samples: that are judged.
    """

    name: str
    evaluations: int
    seeds: tuple[int, ...]
    samples: int


BUDGETS = {
    "small": Budget("small", 100, (0,), 128),
    "default": Budget("default", 975, (0, 1, 2), 1024),
}


@dataclass(frozen=True)
class Cell:
    """A setting with a backbone and a seed: the recipes it is trained and sampled by, and the plan of the second."""

    setting: Setting
    backbone: str
    seed: int
    samples: int
    recipe: Recipe
    sampled: Recipe
    plan: StepPlan

    @property
    def guidance(self) -> float:
        """Of the sampling: a student needs none."""
        return 1.0 if self.setting.trained else self.recipe.method.guidance


class Training(Strict):
    """What a student's training took."""

    iterations: int
    evaluations: float
    """Of networks, for every sample of a batch, counted while it trained."""


class CellResult(Strict):
    """What a cell came to."""

    row: Row
    right: tuple[bool, ...]
    """Of every sample, whether all that its caption asks for is there."""
    prompts: tuple[str, ...]
    """Of the pictures that are kept beside this file."""
    training: Training | None


def make_cell(setting: Setting, backbone: str, seed: int, budget: Budget) -> Cell:
    """Everything that decides a cell's numbers; RMDError where the setting does not fit the backbone's recipe."""
    name = BACKBONES[backbone]
    schedule = load_recipe(name).schedule()
    common = [*_divided(schedule, setting.split, setting.sides), *setting.changes, f"train.seed={seed}"]
    recipe = load_recipe(name, common)
    if setting.trained:
        count = iterations_of(recipe, setting, budget)
        common.append(f"train.iterations={count}")
        if isinstance(recipe.method, CascadeConfig):
            warm_up = round(setting.warm_up * count) if len(setting.split) > 1 else 0
            common.append(f"method.warmup_steps={warm_up}")
        recipe = load_recipe(name, common)
    again = [] if setting.switched is None else _divided(schedule, *setting.switched)
    sampled = load_recipe(name, [*common, *again, *setting.sampled])
    return Cell(setting, backbone, seed, budget.samples, recipe, sampled, sampled.build_plan())


def iterations_of(recipe: Recipe, setting: Setting, budget: Budget) -> int:
    """So many iterations that the network evaluations of a training come to the budget, on average over its draws."""
    plan, method = recipe.build_plan(), recipe.method
    first = [step.index for step in plan.steps if step.stage == 1]
    share = setting.warm_up if len(plan.stages) > 1 else 0.0
    drawn = sum(part * step.index for part, step in zip(draw_shares(plan, method), plan.steps, strict=True))
    student = share * fmean(first) + (1 - share) * drawn
    one = evaluations(
        student,
        fake_updates=method.fake_updates,
        guidance=method.guidance != 1.0,
        adversarial=method.needs_images,
    )
    return max(1, round(setting.budget * budget.evaluations / one))


def _divided(schedule: NoiseSchedule, split: Sequence[int], sides: Sequence[int]) -> list[str]:
    """Overrides that give every stage its steps."""
    thresholds = split_thresholds(schedule, split)
    return [f"plan.steps={sum(split)}", f"plan.sides={list(sides)}", f"plan.thresholds={thresholds}"]


class Stopped(Exception):
    """A signal asked a training to stop: its cell begins anew the next time."""


class Bench:
    """Runs cells in a folder, and keeps what they come to; weights are loaded once a backbone."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._teachers: dict[str, Backbone] = {}
        self._judge: Judge | None = None

    def result(self, cell: Cell, *, wait: bool = True) -> CellResult | None:
        """What a cell came to: read if it is there, computed and kept if it is not.

        Processes that work in the same folder compute no cell twice, nor the student that several share. None if
        another one is at it and we shall not wait.
        """
        path = self.path(cell)
        if path.is_file():
            return read_model(path, CellResult)
        lock = self.folder / "running" / f"{_key(self._training(cell)) if cell.setting.trained else path.stem}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, blocking=wait):
                if path.is_file():
                    return self.result(cell)
                found, pictures = self._run(cell)
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path.with_suffix(".png")) as partial:
                    _picture(pictures).save(partial, "PNG")
                write_text(path, found.model_dump_json(indent=1) + "\n")
                return found
        except Timeout:
            return None

    def seconds(self, cells: Sequence[Cell]) -> list[float]:
        """Denoiser seconds per image of the sampling of each cell, timed together; all are of one backbone."""
        prompts = evaluation_prompts(min(TIMED, *(cell.samples for cell in cells)), seed=0)
        found = plan_seconds(self.teacher(cells[0].backbone), [cell.plan for cell in cells], prompts)
        return [(1 if cell.guidance == 1.0 else 2) * each for cell, each in zip(cells, found, strict=True)]

    def path(self, cell: Cell) -> Path:
        """Where a cell's result is kept; its pictures have the same name.

        The plan enters as the recipe has it: what is computed from that differs in its last digits between processors.
        """
        plan = cell.sampled.model_dump(mode="json", include={"noise", "plan", "crossing"}, exclude_defaults=True)
        decides: dict[str, object] = {
            **plan, "guidance": cell.guidance, "samples": cell.samples, "seed": cell.seed,
            "official": cell.setting.official,
            **(self._training(cell) if cell.setting.trained else self._weights(cell.backbone)),
        }  # fmt: skip
        return self.folder / "cells" / f"{_key(decides)}.json"

    def teacher(self, backbone: str) -> Backbone:
        """The untouched teacher of a backbone."""
        if backbone not in self._teachers:
            self._teachers[backbone] = load_teacher(load_recipe(BACKBONES[backbone]))
        return self._teachers[backbone]

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = load_judge(assets_folder())
        return self._judge

    def _weights(self, backbone: str) -> dict[str, str]:
        return {"teacher": weights_key(self.teacher(backbone).denoiser), "judge": weights_key(self.judge)}

    def _run(self, cell: Cell) -> tuple[CellResult, Tensor]:
        prompts = evaluation_prompts(cell.samples, seed=cell.seed)
        contender = Contender(cell.setting.name, cell.setting.label, "student", cell.plan, cell.guidance)
        training: Training | None = None
        if cell.setting.trained:
            trainer, training = self._trained(cell)
            with trainer.roles.use("student") as network:
                samples = self._samples(cell, contender, trainer.backbone, network, prompts)
        else:
            teacher = self.teacher(cell.backbone)
            samples = self._samples(cell, contender, teacher, teacher.denoiser, prompts)
        references = load_references(teacher_home(BACKBONES[cell.backbone]))
        right, truth, features = assess(samples.images, prompts, self.judge)
        row = judged_row(contender, samples, right, truth, features, references=references, teacher_seconds=1.0)
        whole = (right | (truth == NONE)).all(1)
        shown = slice(0, SHOWN * SAMPLES_PER_PROMPT, SAMPLES_PER_PROMPT)
        result = CellResult(row=row, right=tuple(whole.tolist()), prompts=tuple(prompts[shown]), training=training)
        return result, samples.images[shown]

    def _samples(
        self, cell: Cell, contender: Contender, backbone: Backbone, network: nn.Module, prompts: Sequence[str]
    ) -> Samples:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.progress("sampling", done, len(prompts))

        seed, size = SAMPLING_SEED + cell.seed, _told(cell)
        if cell.setting.official:
            maker = FlowLCMSampler.of(backbone, network, cell.plan)
            return run_maker(maker, [network], prompts, seed=seed, size=size, progress=count)
        return run_contender(backbone, network, contender, prompts, seed=seed, size=size, progress=count)

    def _trained(self, cell: Cell) -> tuple[Trainer, Training]:
        """The cell's run with its student in place, trained if it has not been; Stopped when a signal ends it."""
        key = _key(self._training(cell))
        weights, facts = (self.folder / "students" / f"{key}.{kind}" for kind in ("safetensors", "json"))
        run = self.folder / "running" / key
        shutil.rmtree(run, ignore_errors=True)
        trainer = Trainer(cell.recipe, load_teacher(cell.recipe), run)
        if not facts.is_file():
            total = cell.recipe.train.iterations
            trainer.on_iteration = lambda done, _: self.progress("distilling", done, total)
            if trainer.train() < total:
                raise Stopped
            weights.parent.mkdir(parents=True, exist_ok=True)
            with replacing(weights) as partial:
                save_file({name: tensor.contiguous() for name, tensor in trainer.student_state().items()}, partial)
            guided = cell.recipe.method.guidance != 1.0
            spent = sum(
                (2 if role == "teacher" and guided else 1) * n for role, n in trainer.method.evaluations.items()
            )
            write_text(facts, Training(iterations=total, evaluations=spent).model_dump_json() + "\n")
            shutil.rmtree(run, ignore_errors=True)
        training = read_model(facts, Training)
        try:
            trainer.roles.load_state("student", load_file(weights))
        except (OSError, SafetensorError) as error:
            raise RMDError(f"{weights} cannot be read ({error}): remove it and {facts} to train it anew") from error
        return trainer, training

    def _training(self, cell: Cell) -> dict[str, object]:
        """What decides a student."""
        iterations = cell.recipe.train.iterations
        return {"training": settings_hash(cell.recipe), "iterations": iterations, **self._weights(cell.backbone)}


def _told(cell: Cell) -> Stage:
    """The size that networks are told and pictures are judged at: the teacher's own."""
    last = load_recipe(BACKBONES[cell.backbone]).build_plan().stages[-1]
    return Stage(len(cell.plan.stages), last.height, last.width)


def _key(values: dict[str, object]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _picture(images: Tensor) -> Image.Image:
    """Pictures side by side at their own size."""
    return Image.fromarray(torch.cat(list(to_uint8(images)), dim=2).permute(1, 2, 0).numpy())
