"""Blind comparisons on the page: each is a study of `rmd.study`, whose design, votes and analysis it uses as they are.

A comparison is a folder with the samples of every model (`samples`) and the study that was built of them (`study`),
which `rmd study serve`, `analyse` and `export` read as well.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from rmd.common.errors import RMDError, one_of
from rmd.common.files import disk_errors
from rmd.data.captions import check_prompts
from rmd.report.html import Cell, HtmlTable, TableRow, cells
from rmd.report.tables import MISSING, bounds, fixed, p_text, percent
from rmd.sample.album import make_album, plan_album, writing
from rmd.sample.progress import Progress, running_total
from rmd.sample.samplers import Sampler
from rmd.study.analysis import DRAWS, Analysis, PairResult, Ranking, analyse
from rmd.study.build import build_study
from rmd.study.design import QUESTIONS
from rmd.study.folder import DESIGN, open_study
from rmd.study.server import Desk
from rmd.study.store import FILE_NAME, Store
from rmd.ui.shelf import is_small
from rmd.worlds.base import Measured

STUDY, SAMPLES = "study", "samples"
"""Folders of a comparison."""
_PREFIX = "comparison-"
BATCH = 4
"""Number of samples that are made at once."""


class Comparisons:
    """The comparisons of a folder; usable from several threads."""

    def __init__(self, folder: Path) -> None:
        """Name the folder, which is created with the first comparison."""
        self.folder = folder
        self._desks: dict[str, Desk] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of all complete comparisons, the newest first."""
        found = self.folder.glob(f"{_PREFIX}*/{STUDY}/{DESIGN}")
        return sorted((path.parents[1].name for path in found), reverse=True)

    def desk(self, name: str) -> Desk:
        """Return the desk of a comparison, which shows pairs and stores votes.

        Raises:
            RMDError: there is no comparison of this name, or its files are damaged.
        """
        with self._lock:
            if name not in self._desks:
                one_of("comparison", name, tuple(self.names))
                study = open_study(self.folder / name / STUDY)
                self._desks[name] = Desk(study, Store(study.folder / FILE_NAME, study.hash))
            return self._desks[name]

    def is_small(self, name: str) -> bool:
        """Return whether the samples of a comparison are so small that they are enlarged without smoothing."""
        desk = self.desk(name)
        with Image.open(desk.study.media / desk.study.design.files[0][0], formats=("PNG", "WEBP")) as image:
            return is_small(image)

    def make(
        self, samplers: Mapping[str, Sampler], prompts: Sequence[str], *, seed: int, questions: Sequence[str],
        progress: Progress,
    ) -> str:  # fmt: skip
        """Sample every model with the same prompts and seeds, build a study of the samples, and return its name.

        Args:
            samplers: the models by name.
            prompts: the prompts; those that come twice count once.
            seed: seed of the first prompt; each further one has the next.
            questions: names of the questions of `rmd.study.design.QUESTIONS` that are asked.
            progress: called with the model, the number of its samples so far, and their total.

        Raises:
            RMDError: there are fewer than two models, no prompt or no question, or the samples differ in size.
        """
        prompts = list(dict.fromkeys(prompts))
        if len(samplers) < 2:
            raise RMDError("a comparison needs two models: choose another one")
        if not prompts:
            raise RMDError("a comparison needs prompts: write one in each line")
        if not questions:
            raise RMDError("a comparison needs a question: choose one")
        check_prompts(prompts)
        asked = [question for question in QUESTIONS if question.name in questions]
        place = self._new()
        sources = []
        for number, (name, sampler) in enumerate(samplers.items(), start=1):
            folder = place / SAMPLES / f"model-{number}"
            album = plan_album(
                prompts, folder, count=1, seed=seed, suffix=".webp" if sampler.moving else ".png"
            )  # fmt: skip
            with writing(album):
                make_album(sampler, album, batch_size=BATCH, progress=running_total(progress, name, len(album)))
            sources.append((name, str(folder)))
        build_study(
            sources, place / STUDY, title="Which one do you prefer?", questions=asked, tasks=len(prompts), repeats=0,
            checks=0, seed=seed,
        )  # fmt: skip
        return place.name

    def results(self, name: str, *, draws: int = DRAWS) -> Analysis | None:
        """Analyse the votes of a comparison so far, with some draws of the bootstrap; None if there are none."""
        desk = self.desk(name)
        votes = desk.store.votes()
        return analyse(desk.study, desk.study.key(), votes, draws=draws) if votes else None

    def _new(self) -> Path:
        """Create the folder of the next comparison."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            ends = [path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*")]
            used = [int(end) for end in ends if end.isdecimal()]
            place = self.folder / f"{_PREFIX}{max(used, default=0) + 1:03d}"
            place.mkdir()
        return place


def results_tables(analysis: Analysis) -> list[tuple[str, HtmlTable, HtmlTable]]:
    """Return every question with the tallies of its pairs, and the strengths of the models, as tables."""
    texts = {question.name: question.text for question in QUESTIONS}
    return [
        (
            texts.get(ranking.question, ranking.question),
            _tallies([pair for pair in analysis.pairs if pair.question == ranking.question]),
            _strengths(ranking),
        )
        for ranking in analysis.rankings
    ]


def _tallies(pairs: Sequence[PairResult]) -> HtmlTable:
    heads = cells("", "Wins", "Ties", "Losses", "Preferred", "Decisive votes", "p")
    rows = [
        TableRow([
            Cell(f"{pair.first} over {pair.second}"), *cells(str(pair.wins), str(pair.ties), str(pair.losses)),
            _cell(pair.preferred), Cell(MISSING) if pair.decisive is None else _cell(pair.decisive),
            Cell(p_text(pair.p_holm)),
        ])
        for pair in pairs
    ]  # fmt: skip
    return HtmlTable(heads, rows)


def _strengths(ranking: Ranking) -> HtmlTable:
    order = sorted(ranking.strengths.items(), key=lambda item: -item[1].value)
    rows = [
        TableRow([Cell(name), Cell(fixed(strength.value, 2), _interval(strength, decimals=True))])
        for name, strength in order
    ]
    return HtmlTable(cells("", "Strength"), rows)


def _cell(measured: Measured) -> Cell:
    return Cell(percent(measured.value), _interval(measured))


def _interval(measured: Measured, *, decimals: bool = False) -> str:
    if measured.interval is None:
        return ""
    return bounds(measured.interval, (lambda value: fixed(value, 2)) if decimals else percent)
