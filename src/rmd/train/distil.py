"""Distillation from Python: `rmd.distil` builds a run around a pipeline; the run returns its student as a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, write_text
from rmd.data.captions import check_prompts
from rmd.models.base import Backbone
from rmd.models.registry import wrap
from rmd.models.student import UNNAMED, save_student, student_config
from rmd.models.teacher import DTYPES, check_teacher, load_teacher
from rmd.models.twin import twin_pipeline
from rmd.recipes.schema import Recipe, load_recipe, steps_overrides
from rmd.sample.pipeline import RMDPipeline
from rmd.train.callbacks import Callback, Iteration
from rmd.train.loop import Trainer
from rmd.train.run import build_run, move_teacher

PROMPTS_FILE = "prompts.jsonl"
"""Name of the file in a run's folder that holds prompts given as a list."""


class Distillation:
    """A run that is trained by iterating over it.

    Each turn of the loop is an update of the student and the fake score's updates after it. A loop that was left can be
    entered again and continues where it was. Checkpoints, metrics and pictures are written as by `rmd train`.

    Attributes:
        trainer: the run with all its parts: recipe, plan, roles, method and optimisers.
    """

    def __init__(self, trainer: Trainer, teacher: DiffusionPipeline, *, resume: bool = False) -> None:
        """Prepare the iterations.

        Args:
            trainer: the run.
            teacher: a pipeline of the teacher that the run does not use.
            resume: continue from the newest checkpoint in the run's folder.
        """
        self.trainer = trainer
        self._teacher = teacher
        self._iterations = trainer.iterations(resume=resume)

    def __iter__(self) -> Iterator[Iteration]:
        """Train, and yield each iteration when it is done: its number is `done`, its numbers are `metrics`."""
        return self._iterations

    def train(self) -> Distillation:
        """Train up to the last iteration, and return this object."""
        for _ in self:
            pass
        return self

    def pipeline(self) -> RMDPipeline:
        """Return a pipeline with the student as it is now; training may continue and does not change it.

        If the recipe keeps a moving average (`optim.ema`), its weights are used. The pipeline shares the memory of all
        weights that training does not change.
        """
        run, pipe = self.trainer, twin_pipeline(self._teacher)
        state = run.gathered_student()
        backbone = wrap(pipe, run.backbone.conditioning)
        if run.recipe.roles.mode == "full":
            _replace_weights(backbone.denoiser, state)
            return RMDPipeline.of(pipe, student_config(backbone, run.recipe))
        files = TemporaryDirectory()
        folder = save_student(backbone, state, run.recipe, Path(files.name) / "student")
        student = RMDPipeline.from_pipe(pipe, folder)
        student.files = files  # `save_pretrained` copies the adapter from there
        return student


def distil(
    pipe: DiffusionPipeline | str | Path,
    prompts: Sequence[str] | str | Path,
    *,
    recipe: str | Path | Recipe,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> Distillation:
    """Prepare the distillation of a pipeline into a few-step student; iterating over the result trains it.

    Examples:
        >>> run = rmd.distil(pipe, prompts=["a red ball", "a blue cube"], recipe="sdxl", steps=4)
        >>> for step in run:
        ...     print(step.done, step.metrics["student_loss"])
        >>> run.pipeline()("a red ball").images[0]

    Args:
        pipe: the teacher. A pipeline in memory stays as it is; otherwise a folder, or a repository on the Hub.
        prompts: the prompts to train with, as a list, or whatever `data.prompts` of a recipe accepts.
        recipe: a packaged recipe such as `sdxl`, a YAML file, or a `Recipe`.
        steps: number of the student's steps; by default the recipe's.
        overrides: further settings of the recipe as `KEY=VALUE`, such as `train.iterations=500`.
        folder: folder of the run; by default `runs/NAME` with the recipe's name.
        device: where to compute; by default where the pipeline is, and for others a GPU if there is one.
        callbacks: called after those of every run.
        resume: continue from the newest checkpoint in the folder.

    Raises:
        RMDError: the recipe does not fit the pipeline, or something that it names cannot be read.
    """
    loaded = _load(recipe, steps, overrides)
    place = Path("runs") / loaded.name if folder is None else Path(folder)
    if isinstance(pipe, DiffusionPipeline):
        loaded = loaded.model_copy(update={"teacher": str(pipe.config.get("_name_or_path") or UNNAMED)})
        backbone = _backbone(pipe, loaded)
        where = pipe.device if device is None else torch.device(device)
    else:
        loaded = loaded.model_copy(update={"teacher": str(pipe)})
        backbone = load_teacher(loaded)
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        where = torch.device(usual if device is None else device)
    loaded = _with_prompts(loaded, prompts, place)
    move_teacher(backbone, loaded, where)
    clean = twin_pipeline(backbone.pipe)
    trainer = Trainer(build_run(loaded, backbone, folder=place), callbacks=callbacks)
    return Distillation(trainer, clean, resume=resume)


def _load(recipe: str | Path | Recipe, steps: int | None, overrides: Sequence[str]) -> Recipe:
    """Load a recipe with overrides; one that is loaded already is changed through its own YAML."""
    if not isinstance(recipe, Recipe):
        loaded = load_recipe(str(recipe), overrides)
        more = [] if steps is None else steps_overrides(loaded, steps)
        return load_recipe(str(recipe), [*overrides, *more]) if more else loaded
    if steps is None and not overrides:
        return recipe
    raise RMDError("steps and overrides change a recipe that is given by name: give load_recipe(NAME, OVERRIDES) alone")


def _backbone(pipe: DiffusionPipeline, recipe: Recipe) -> Backbone:
    """Wrap a twin of a pipeline in the recipe's precision, and check that it fits the recipe."""
    twin = twin_pipeline(pipe)
    for part in twin.components.values():
        if isinstance(part, nn.Module) and getattr(part, "hf_quantizer", None) is None:
            part.to(DTYPES[recipe.train.dtype])
    backbone = wrap(twin, recipe.conditioning)
    check_teacher(recipe, backbone)
    return backbone


def _with_prompts(recipe: Recipe, prompts: Sequence[str] | str | Path, folder: Path) -> Recipe:
    """Return the recipe with a source of prompts; those of a list are written into the run's folder."""
    if isinstance(prompts, str | Path):
        source = str(prompts)
    else:
        lines = [json.dumps({"prompt": text}) for text in check_prompts(prompts)]
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / PROMPTS_FILE, "\n".join(lines) + "\n")
        source = str(folder / PROMPTS_FILE)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompts": source})})


@torch.no_grad()
def _replace_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a network weights of its own, in its own precision and on its own device."""
    weights = {name: state[name].to(value.device, value.dtype) for name, value in network.named_parameters()}
    network.load_state_dict({**network.state_dict(), **weights}, assign=True)
