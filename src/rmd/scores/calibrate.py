"""Calibration: scores of pictures that the authors of HPSv2 publish, beside the scores that they publish for them.

Whether a score computed here may stand beside published ones is seen by scoring the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rmd.common.errors import RMDError, one_of
from rmd.common.files import parse_model
from rmd.common.typed import Strict
from rmd.common.workers import ALONE, Worker
from rmd.scores.metrics import ImageMetric, Place
from rmd.scores.result import Score
from rmd.scores.run import Progress, in_folders, score_table
from rmd.scores.suites import STYLES, group_scores, has_styles, read_suite

AVERAGE = "average"
VERSIONS = {"hps": "v2.1", "hps-legacy": "v2.1", "hps-v2.0": "v2.0"}
"""The version of HPSv2 of each metric with published scores."""


class PublishedModel(Strict):
    """The published scores of one model's pictures.

    Attributes:
        title: what the authors' table calls the model.
        scores: by version of HPSv2, the means of the four styles, and their average.
    """

    title: str
    scores: dict[str, tuple[float, float, float, float, float]]


class Published(Strict):
    """The published table; models are called like the folders of their pictures."""

    source: str
    models: dict[str, PublishedModel]


@dataclass(frozen=True)
class Line:
    """The score of a group of pictures here, and the published one."""

    ours: Score
    published: float

    @property
    def difference(self) -> float:
        """Our score less the published one."""
        return self.ours.mean - self.published


@dataclass(frozen=True)
class Calibration:
    """The calibration of metrics with one model's pictures.

    Attributes:
        title: what the authors' table calls the model.
        source: where the published scores are from.
        metrics: for every metric, its lines by style, and that of the average.
    """

    title: str
    source: str
    metrics: dict[str, dict[str, Line]]


def published() -> Published:
    """Return the published table."""
    text = resources.files("rmd.scores").joinpath("hpdv2.json").read_text(encoding="utf-8")
    return parse_model(text, Published, "hpdv2.json")


def calibrate(
    place: str, prompts: str, metrics: Sequence[ImageMetric], networks: Place, out: Path, *, model: str,
    batch_size: int = 32, allow_missing: bool = False, worker: Worker = ALONE, progress: Progress | None = None,
) -> Calibration | None:  # fmt: skip
    """Score pictures in the authors' layout, and compare the means of the styles with the published ones.

    Args:
        place: a folder with a folder of pictures for each style.
        prompts: the folder with the prompts of each style.
        metrics: the metrics.
        networks: where networks are found and run.
        out: folder for the journal.
        model: the model, as the authors call its folder.
        batch_size, allow_missing, worker, progress: as for `rmd.scores.run.score_pictures`.

    Returns:
        The calibration; None if other workers have not finished yet.

    Raises:
        RMDError: there are no published scores of the model or of a metric, or pictures cannot be scored.
    """
    table = published()
    one_of("model", model, tuple(table.models))
    known = table.models[model]
    for metric in metrics:
        if metric.name not in VERSIONS:
            raise RMDError(f"there are no published scores of {metric.name}: use some of {', '.join(VERSIONS)}")
    if not has_styles(place):
        raise RMDError(f"{place} has no folders called {', '.join(STYLES)}: unpack the authors' archive of a model")
    expected = in_folders(place, read_suite(prompts))
    found = score_table(
        expected, metrics, networks, out, batch_size=batch_size, allow_missing=allow_missing, worker=worker,
        progress=progress,
    )  # fmt: skip
    if found is None:
        return None
    lines = {}
    for metric in metrics:
        ours = group_scores(found[0], metric.name, expected.groups, each=expected.each)
        theirs = known.scores[VERSIONS[metric.name]]
        means = zip((*STYLES, AVERAGE), (*ours.groups.values(), ours.average), theirs, strict=True)
        lines[metric.name] = {name: Line(score, value) for name, score, value in means}
    return Calibration(known.title, table.source, lines)
