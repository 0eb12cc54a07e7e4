"""Scores a student's samples by published networks while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.files import user_path
from rmd.common.pictures import to_image, to_uint8
from rmd.data.prompts import read_captions
from rmd.evaluation.watch import SEED, Grader, judge_grader, student_watcher
from rmd.recipes.schema import Recipe
from rmd.scores.metrics import METRICS, ImageMetric, Place, Scorer, chosen
from rmd.train.marks import Marks
from rmd.train.run import Judge, Run
from rmd.worlds.registry import WORLDS

JUDGE = "judge"
"""The name of a packaged world's own judge among the metrics."""
FEWEST = 3
"""Smallest number of samples whose marks can be compared."""
FRAMES = 4
"""Number of frames of a clip that are scored, evenly spaced from the first to the last."""
BATCH = 16
"""Number of pictures that are scored at once."""


def check_evaluation(recipe: Recipe) -> None:
    """Check what a recipe says of evaluations during training, before any weights are loaded.

    Raises:
        RMDError: a metric is unknown, or the prompts have no judge; or there are too few prompts.
    """
    setting = recipe.evaluation
    if setting.every is None:
        return
    names = setting.metrics or (JUDGE,)
    if JUDGE in names and recipe.data.prompts not in WORLDS.names():
        raise RMDError(
            f"the judge cannot mark samples of {recipe.data.prompts}: set evaluation.metrics to some of "
            f"{', '.join(METRICS)}, or data.prompts to {' or '.join(WORLDS.names())}"
        )
    chosen(names, {**METRICS, JUDGE: None})
    together = next((name for name in names if name != JUDGE and METRICS[name].together), None)
    if together is not None:
        raise RMDError(
            f"evaluation.metrics: {together} needs several pictures of a prompt, and one is made: leave it out"
        )
    if setting.prompts is not None and len(read_captions(setting.prompts)) < FEWEST:
        raise RMDError(f"evaluation.prompts {setting.prompts} has too few prompts: at least {FEWEST} are needed")


def run_watcher(run: Run) -> Judge:
    """Return a function that marks the student of a run, as its recipe says.

    Networks are loaded by the first process, which marks the samples of all.

    Raises:
        RMDError: on every process, as `check_evaluation`, or if a network or a judge is missing.
    """
    setting, graders = run.recipe.evaluation, list[Grader]()
    check_evaluation(run.recipe)

    def load() -> None:
        place = Place(None if setting.weights is None else user_path(setting.weights))
        for name in dict.fromkeys(setting.metrics or (JUDGE,)):
            if name == JUDGE:
                graders.append(judge_grader(WORLDS.get(run.recipe.data.prompts)))
            else:
                graders.append(score_grader([METRICS[name]], place, device=run.device))

    run.parallel.on_main(load)
    return student_watcher(
        run.backbone, run.plan, _prompts(run), graders, seed=run.recipe.train.seed, parallel=run.parallel
    )


def _prompts(run: Run) -> Sequence[str]:
    """Return the prompts that are sampled at each evaluation."""
    setting, source = run.recipe.evaluation, run.recipe.data.prompts
    if setting.prompts is not None:
        return read_captions(setting.prompts)[: setting.samples]
    if source in WORLDS.names():
        return WORLDS.get(source).captions(setting.samples, seed=SEED, training=False)
    return run.prompts.texts[: setting.samples]


def score_grader(metrics: Sequence[ImageMetric], place: Place, *, device: torch.device) -> Grader:
    """Return a grader that scores pictures, and some frames of clips, by published networks.

    It records `scores/NAME` for every metric. Networks wait in the main memory, and compute on the device.

    Args:
        metrics: the metrics.
        place: source of their networks.
        device: device on which they compute.

    Raises:
        RMDError: a network is missing.
    """
    scorers = {f"scores/{metric.name}": metric.load(place) for metric in metrics}

    def grade(images: Tensor, prompts: Sequence[str]) -> Marks:
        shown, each = pictures_of(images)
        texts = [text for text in prompts for _ in range(each)]
        values = {}
        for name, scorer in scorers.items():
            with _on(scorer, device):
                scores = torch.cat(
                    [
                        scorer(shown[start : start + BATCH], texts[start : start + BATCH])
                        for start in range(0, len(shown), BATCH)
                    ]
                )
            if not bool(torch.isfinite(scores).all()):
                raise RMDError(f"the network of {name} gives values that are not finite for the student's samples")
            values[name] = tuple(scores.double().view(-1, each).mean(1).tolist())
        return Marks({name: sum(scores) / len(scores) for name, scores in values.items()}, values)

    return grade


def pictures_of(images: Tensor) -> tuple[list[Image.Image], int]:
    """Return pictures as they are stored, sample after sample, and how many there are of each sample.

    Args:
        images: (n, 3, H, W) pictures or (n, 3, T, H, W) clips in [-1, 1]. Of clips, at most `FRAMES` frames are taken.
    """
    if images.ndim == 4:
        return [to_image(picture) for picture in to_uint8(images)], 1
    count = min(FRAMES, images.shape[2])
    chosen = torch.linspace(0, images.shape[2] - 1, count).round().long()
    frames = to_uint8(images[:, :, chosen]).transpose(1, 2).flatten(0, 1)
    return [to_image(frame) for frame in frames], count


@contextmanager
def _on(scorer: Scorer, device: torch.device) -> Iterator[None]:
    """Move a scorer's networks to a device for the duration of the block."""
    homes = [next(module.parameters()).device for module in scorer.modules]
    for module in scorer.modules:
        module.to(device)
    try:
        yield
    finally:
        for module, home in zip(scorer.modules, homes, strict=True):
            module.to(home)
