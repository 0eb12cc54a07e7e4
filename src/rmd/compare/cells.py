"""Cells of a comparison: a setting, a backbone and a seed, trained and evaluated once and stored by their content.

A cell's file is named by everything that decides its numbers (recipe, plan, weights of teacher and judge, samples), so
tables share cells, and a comparison that was interrupted continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmd.bench.training import evaluations
from rmd.common.errors import RMDError
from rmd.common.files import read_model, replacing, write_text
from rmd.common.pictures import to_uint8
from rmd.common.typed import Strict
from rmd.compare.official import FlowLCMSampler
from rmd.compare.settings import BACKBONES, SIDE, Setting
from rmd.core.fit import split_thresholds
from rmd.core.plan import Stage, StepPlan
from rmd.evaluation.protocol import (
    SAMPLES_PER_PROMPT,
    SAMPLING_SEED,
    Contender,
    PlanContender,
    SamplerContender,
    evaluation_prompts,
)
from rmd.evaluation.rows import Row
from rmd.evaluation.run import evaluate
from rmd.methods.base import draw_shares
from rmd.models.base import Backbone
from rmd.models.teacher import load_teacher
from rmd.recipes.hashes import settings_hash
from rmd.recipes.methods import CascadeConfig
from rmd.recipes.schema import Recipe, load_recipe
from rmd.sample.progress import Progress, running_total
from rmd.sample.timing import TIMED, plan_seconds
from rmd.train.identity import weights_key
from rmd.train.loop import Trainer
from rmd.worlds.base import Judge
from rmd.worlds.registry import judge_of, world_of

SHOWN = 12
"""Number of captions whose pictures a cell keeps."""


@dataclass(frozen=True)
class Budget:
    """The budget of every cell.

    Attributes:
        evaluations: number of network evaluations in training per sample of a batch; both guidance branches count.
        seeds: seeds of both the trainings and the evaluations.
        samples: number of samples that are judged.
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
    """A setting with a backbone and a seed.

    Attributes:
        samples: number of samples that are judged.
        recipe: the recipe of the training.
        sampled: the recipe of the sampling, which may differ in its plan.
        plan: the plan of the sampling.
    """

    setting: Setting
    backbone: str
    seed: int
    samples: int
    recipe: Recipe
    sampled: Recipe
    plan: StepPlan

    @property
    def guidance(self) -> float:
        """Guidance scale of the sampling; students need none."""
        return 1.0 if self.setting.trained else self.recipe.method.guidance


class Training(Strict):
    """The cost of a student's training."""

    iterations: int
    evaluations: float
    """Network evaluations per sample of a batch, counted during the training."""


class CellResult(Strict):
    """The stored result of a cell."""

    row: Row
    right: tuple[bool, ...]
    """True for each sample that shows everything that its caption names."""
    prompts: tuple[str, ...]
    """Captions of the pictures that are stored beside this file."""
    training: Training | None
    """None for the teacher's own samples."""


def make_cell(setting: Setting, backbone: str, seed: int, budget: Budget) -> Cell:
    """Resolve a setting for a backbone and a seed.

    Raises:
        RMDError: the setting does not fit the backbone's recipe.
    """
    name = BACKBONES[backbone]
    base = load_recipe(name)
    common = [*_divided(base, setting.split, setting.sides), *setting.changes, f"train.seed={seed}"]
    recipe = load_recipe(name, common)
    if setting.trained:
        count = iterations_of(recipe, setting, budget)
        common.append(f"train.iterations={count}")
        if isinstance(recipe.method, CascadeConfig):
            warm_up = round(setting.warm_up * count) if len(setting.split) > 1 else 0
            common.append(f"method.warmup_steps={warm_up}")
        recipe = load_recipe(name, common)
    again = [] if setting.switched is None else _divided(base, *setting.switched)
    sampled = load_recipe(name, [*common, *again, *setting.sampled])
    return Cell(setting, backbone, seed, budget.samples, recipe, sampled, sampled.build_plan())


def iterations_of(recipe: Recipe, setting: Setting, budget: Budget) -> int:
    """Return the number of iterations whose network evaluations add up to the budget, on average over the draws."""
    plan, method = recipe.build_plan(), recipe.method
    first = [step.index for step in plan.steps if step.stage == 1]
    share = setting.warm_up if len(plan.stages) > 1 else 0.0
    drawn = sum(part * step.index for part, step in zip(draw_shares(plan, method), plan.steps, strict=True))
    student = share * fmean(first) + (1 - share) * drawn
    one = evaluations(
        student,
        fake_updates=method.fake_updates,
        branches=method.teacher_branches,
        adversarial=method.needs_images,
        fake_first=method.order == "fake_first",
    )
    return max(1, round(setting.budget * budget.evaluations / one))


def _divided(recipe: Recipe, split: Sequence[int], sides: Sequence[int]) -> list[str]:
    """Return the overrides of a recipe that give every stage its number of steps, and its side."""
    thresholds = split_thresholds(recipe.schedule(), split)
    last = recipe.build_plan().stages[-1].height
    scaled = [side * last // SIDE for side in sides]
    return [f"plan.steps={sum(split)}", f"plan.sides={scaled}", f"plan.thresholds={thresholds}"]


class Stopped(Exception):
    """A signal stopped a training; its cell starts over the next time."""


class Bench:
    """Computes cells and stores their results in a folder; weights are loaded once per backbone."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._teachers: dict[str, Backbone] = {}
        self._judges: dict[str, Judge] = {}

    def result(self, cell: Cell, *, wait: bool = True) -> CellResult | None:
        """Return the result of a cell, read from its file or else computed and stored.

        Several processes may work in the same folder: no cell is computed twice, nor a student that cells share.

        Args:
            wait: whether to wait for another process that is computing it.

        Returns:
            The result, or None if another process is computing it and `wait` is False.

        Raises:
            Stopped: a signal stopped the training.
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
                result, pictures = self._run(cell)
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path.with_suffix(".png")) as partial:
                    _picture(pictures).save(partial, "PNG")
                write_text(path, result.model_dump_json(indent=1) + "\n")
                return result
        except Timeout:
            return None

    def seconds(self, cells: Sequence[Cell]) -> list[float]:
        """Return the denoiser seconds per image of each cell's sampling; cells of one backbone, timed together."""
        prompts = evaluation_prompts(world_of(cells[0].recipe), min(TIMED, *(cell.samples for cell in cells)), seed=0)
        unguided = plan_seconds(self.teacher(cells[0].backbone), [cell.plan for cell in cells], prompts)
        return [(1 if cell.guidance == 1.0 else 2) * each for cell, each in zip(cells, unguided, strict=True)]

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell's result; its pictures have the same name.

        The plan enters the name in the form of the recipe, since computed values differ in their last digits between
        processors.
        """
        plan = cell.sampled.model_dump(mode="json", include={"noise", "plan", "crossing"}, exclude_defaults=True)
        decides: dict[str, object] = {
            **plan, "guidance": cell.guidance, "samples": cell.samples, "seed": cell.seed,
            "official": cell.setting.official,
            **(self._training(cell) if cell.setting.trained else self._weights(cell.backbone)),
        }  # fmt: skip
        return self.folder / "cells" / f"{_key(decides)}.json"

    def teacher(self, backbone: str) -> Backbone:
        """Return the untouched teacher of a backbone."""
        if backbone not in self._teachers:
            self._teachers[backbone] = load_teacher(load_recipe(BACKBONES[backbone]))
        return self._teachers[backbone]

    def judge(self, backbone: str) -> Judge:
        """Return the judge with the reference statistics of a backbone's teacher."""
        if backbone not in self._judges:
            self._judges[backbone] = judge_of(load_recipe(BACKBONES[backbone]))
        return self._judges[backbone]

    def _weights(self, backbone: str) -> dict[str, str]:
        judge = self.judge(backbone).network
        return {"teacher": weights_key(self.teacher(backbone).denoiser), "judge": weights_key(judge)}

    def _run(self, cell: Cell) -> tuple[CellResult, Tensor]:
        name, label, plan = cell.setting.name, cell.setting.label, cell.plan
        if not cell.setting.trained:
            teacher = self.teacher(cell.backbone)
            its = PlanContender(name, label, teacher, teacher.denoiser, plan, cell.guidance)
            return self._evaluated(cell, its, None)
        trainer, training = self._trained(cell)
        with trainer.roles.use("student") as network:
            ours: Contender = PlanContender(name, label, trainer.backbone, network, plan, cell.guidance)
            if cell.setting.official:
                ours = SamplerContender(name, label, FlowLCMSampler.of(trainer.backbone, network, plan), [network])
            return self._evaluated(cell, ours, training)

    def _evaluated(self, cell: Cell, contender: Contender, training: Training | None) -> tuple[CellResult, Tensor]:
        """Evaluate a contender; return the cell's result, and the pictures of its first captions."""
        world = world_of(cell.recipe)
        prompts = evaluation_prompts(world, cell.samples, seed=cell.seed)
        evaluated = evaluate(
            contender, world, self.judge(cell.backbone), prompts,
            seed=SAMPLING_SEED + cell.seed, size=_final_size(cell),
            progress=running_total(self.progress, "sampling", len(prompts)),
        )  # fmt: skip
        shown = slice(0, SHOWN * SAMPLES_PER_PROMPT, SAMPLES_PER_PROMPT)
        right = tuple(evaluated.assessment.right.tolist())
        result = CellResult(row=evaluated.row, right=right, prompts=tuple(prompts[shown]), training=training)
        return result, evaluated.samples.images[shown]

    def _trained(self, cell: Cell) -> tuple[Trainer, Training]:
        """Return the cell's run with its student loaded, after training it if necessary.

        Raises:
            Stopped: a signal stopped the training.
        """
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
            branches = cell.recipe.method.teacher_branches
            spent = sum((branches if role == "teacher" else 1) * n for role, n in trainer.method.evaluations.items())
            write_text(facts, Training(iterations=total, evaluations=spent).model_dump_json() + "\n")
            shutil.rmtree(run, ignore_errors=True)
        training = read_model(facts, Training)
        try:
            trainer.roles.load_state("student", load_file(weights))
        except (OSError, SafetensorError) as error:
            raise RMDError(f"{weights} cannot be read ({error}): remove it and {facts} to train it anew") from error
        return trainer, training

    def _training(self, cell: Cell) -> dict[str, object]:
        """Return everything that decides a student."""
        iterations = cell.recipe.train.iterations
        return {"training": settings_hash(cell.recipe), "iterations": iterations, **self._weights(cell.backbone)}


def _final_size(cell: Cell) -> Stage:
    """Return the size on which networks are conditioned and at which pictures are judged: the teacher's own."""
    last = load_recipe(BACKBONES[cell.backbone]).build_plan().stages[-1]
    return Stage(len(cell.plan.stages), last.height, last.width)


def _key(values: dict[str, object]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _picture(images: Tensor) -> Image.Image:
    """Return pictures side by side at their own size; of clips, the first, middle and last frame one below another."""
    if images.ndim == 5:
        last = images.shape[2] - 1
        images = torch.cat([images[:, :, frame] for frame in (0, last // 2, last)], dim=2)
    return Image.fromarray(torch.cat(list(to_uint8(images)), dim=2).permute(1, 2, 0).numpy())
