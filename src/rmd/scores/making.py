"""The making of pictures, as far as their files say it: the model, its steps and its guidance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.common.files import user_path
from rmd.models.student_config import CONFIG_NAME, read_student
from rmd.sample.album import read_settings
from rmd.sample.found import RECORDED
from rmd.scores.result import Making, Settings

OWN = ("prompt", "seed", "version")
"""Settings in which the pictures of one model may differ."""


def making_of(
    name: str, place: str, paths: Sequence[Path], *, nfe: str | None = None, seconds: float | None = None
) -> Making:  # fmt: skip
    """Return how pictures were made.

    Args:
        name: name of the model.
        place: folder or pattern of the pictures.
        paths: the pictures; those of other programs do not say how they were made.
        nfe: network evaluations per picture; by default, as the settings say.
        seconds: measured seconds per picture in the denoiser.

    Raises:
        RMDError: two pictures were made in different ways.
    """
    settings = _shared(paths)
    nfe = evaluations(settings) if nfe is None else nfe
    return Making(model=name, settings=settings, nfe=nfe, seconds=seconds, place=place)


def evaluations(settings: Settings) -> str | None:
    """Return the network evaluations that a picture with these settings took; None if they do not say it.

    A student's are those of its plan, by stage, if its folder is still there. A pipeline evaluates its network twice in
    each step with a guidance above 1; without a given guidance it uses its own, which the settings do not have.
    """
    steps = settings.get("steps")
    if steps is not None:
        folder = user_path(str(settings["model"]))
        if not (folder / CONFIG_NAME).is_file():
            return str(steps)
        plan = read_student(folder).plan
        counts = Counter(step.stage for step in plan.steps)
        is_that_of_the_pictures = len(plan.steps) == steps
        return "+".join(str(counts[stage.index]) for stage in plan.stages) if is_that_of_the_pictures else str(steps)
    count, guidance = settings.get("num_inference_steps"), settings.get("guidance_scale")
    if count is None or guidance is None:
        return None
    return f"{count}x2" if float(guidance) > 1 else str(count)


def _shared(paths: Sequence[Path]) -> Settings:
    """Return the settings that all pictures have."""
    found: dict[tuple[tuple[str, str | int | float | bool], ...], Path] = {}
    for path in paths:
        settings = (read_settings(path) if path.suffix.lower() in RECORDED else None) or {}
        found.setdefault(tuple((key, value) for key, value in settings.items() if key not in OWN), path)
    if len(found) > 1:
        (first, one), (second, two) = list(found.items())[:2]
        key = next(key for key, _ in set(first) ^ set(second))
        raise RMDError(
            f"pictures of one result are made in one way: {one} and {two} differ in {key}; name one kind by a pattern"
        )
    return dict(next(iter(found), ()))
