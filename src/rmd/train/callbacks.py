"""The work of a run besides its updates: average, pictures, judge, metrics, collapse guard, checkpoints and progress.

A callback is a subclass of `Callback`. `default_callbacks` returns those of every run, in the order in which they are
called; a user's own come after them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from pydantic import JsonValue

from rmd.common.errors import RMDError
from rmd.common.files import write_text
from rmd.methods import Rollout
from rmd.recipes.schema import to_yaml
from rmd.train.checkpoint import Meta, checkpoints, set_aside
from rmd.train.guard import Best
from rmd.train.marks import MarkBook
from rmd.train.panels import sample_panel, score_panel
from rmd.train.parallel import local
from rmd.train.run import Run
from rmd.train.tracking import TRACKERS, LocalFiles, Tracker, run_disk_errors
from rmd.train.writer import CheckpointWriter


@dataclass(frozen=True)
class Iteration:
    """The facts about a finished iteration that callbacks receive."""

    done: int
    """Number of iterations done, including this one."""
    metrics: dict[str, float]
    """The iteration's metrics, the same on every process; a callback may add to them for later callbacks."""
    rollout: Rollout
    """The student's samples of the last micro-batch."""
    last: bool
    """True if the training ends with this iteration."""

    def is_due(self, every: int | None) -> bool:
        """Return whether something is due that happens every `every` iterations (None: never) and at the end."""
        return every is not None and (self.done % every == 0 or self.last)


class Callback:
    """Work that a run does besides its updates. Every process calls every method; they do nothing by default."""

    def start(self, run: Run, iteration: int) -> None:
        """Called before the training, which begins after `iteration` iterations are done."""

    def after_student_update(self, run: Run) -> None:
        """Called in every iteration, between the student's update and those of the fake score."""

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Called after every iteration."""

    def close(self) -> None:
        """Called once after the training, also if it ended with an error, unless `start` has failed."""


class AverageStudent(Callback):
    """Keeps the exponential moving average of the student's weights."""

    @torch.no_grad()
    def after_student_update(self, run: Run) -> None:
        """Move the average towards the student by 1 - `optim.ema`."""
        decay = run.recipe.optim.ema
        if decay > 0:
            student = run.roles.state("student")
            pairs = [(local(average), local(student[name])) for name, average in run.trained.average.items()]
            torch._foreach_lerp_([average for average, _ in pairs], [value for _, value in pairs], 1 - decay)


class Tracking(Callback):
    """Reports metrics and pictures to the files in the run's folder and to the recipe's trackers."""

    def __init__(self) -> None:
        self._trackers: list[Tracker] = []
        """Open trackers; none except in the first process."""
        self._open = ExitStack()

    def start(self, run: Run, iteration: int) -> None:
        """Write the complete recipe, and open the trackers in the first process.

        Raises:
            RMDError: on every process, if a file cannot be written or a tracker cannot be opened.
        """

        def open_trackers() -> None:
            with run_disk_errors(run.folder):
                write_text(run.folder / "recipe.yaml", to_yaml(run.recipe))
            config = run.recipe.model_dump(mode="json")
            kinds: list[type[Tracker]] = [LocalFiles, *(TRACKERS.get(name) for name in run.recipe.train.loggers)]
            with ExitStack() as opened:
                for kind in kinds:
                    tracker = kind(run.folder, start=iteration, config=config)
                    opened.callback(tracker.close)
                    self._trackers.append(tracker)
                self._open = opened.pop_all()

        self._trackers = []
        run.parallel.on_main(open_trackers)

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Log the metrics every `train.log_every` iterations, and whenever there are pictures or scores."""
        train = run.recipe.train
        if (
            iteration.done % train.log_every == 0
            or iteration.is_due(train.sample_every)
            or iteration.is_due(run.recipe.evaluation.every)
        ):
            run.parallel.on_main(lambda: self._log_metrics(iteration))

    def log_picture(self, name: str, iteration: int, image: Image.Image) -> None:
        """Give a picture to every tracker."""
        for tracker in self._trackers:
            tracker.log_picture(name, iteration, image)

    def close(self) -> None:
        """Close the trackers."""
        self._open.close()

    def _log_metrics(self, iteration: Iteration) -> None:
        for tracker in self._trackers:
            tracker.log_metrics(iteration.done, iteration.metrics)


class Panels(Callback):
    """Makes pictures of the averaged student and of the scores, and measures the fake score on held-out samples."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Sample on all processes, which hold the weights together, and write the pictures on the first.

        Raises:
            RMDError: on every process, if a picture cannot be written.
        """
        if not iteration.is_due(run.recipe.train.sample_every):
            return
        with run.averaged_student() as student:
            cond = run.encoder.encode(run.panel_prompts()).to(run.device)
            seed = run.recipe.train.seed
            samples = sample_panel(run.backbone, student, run.plan, cond, seed=seed, at_once=run.at_once)

        def log() -> None:
            self.tracking.log_picture("samples", iteration.done, samples)
            self.tracking.log_picture("scores", iteration.done, score_panel(run.backbone, iteration.rollout))

        run.parallel.on_main(log)
        iteration.metrics.update(run.held_out())


class Judging(Callback):
    """Marks the averaged student while it is trained, and remembers the best iteration."""

    def start(self, run: Run, iteration: int) -> None:
        """Open the book of marks in the first process.

        Raises:
            RMDError: on every process, if it cannot be read.
        """

        def open_book() -> None:
            run.marks = MarkBook(run.folder, start=iteration)

        if run.judge is not None:
            run.parallel.on_main(open_book)

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Add the marks to the metrics every `evaluation.every` iterations, and keep those of every sample.

        Raises:
            RMDError: on every process, if they cannot be written.
        """
        if run.judge is None or not iteration.is_due(run.recipe.evaluation.every):
            return
        with run.averaged_student() as student:
            marks = run.judge(student)
        iteration.metrics.update(marks.recorded)
        if marks.deciding is not None:
            run.best = Best.of(run.best, iteration.done, marks.deciding, marks.recorded[marks.deciding])
        run.parallel.on_main(lambda: None if run.marks is None else run.marks.add(iteration.done, marks))


class Checkpointing(Callback):
    """Saves checkpoints beside the training: at intervals, at the end, and of the best iteration."""

    writer: CheckpointWriter

    def start(self, run: Run, iteration: int) -> None:
        """Get ready to write; checkpoints of this run that exist already are pruned together with new ones."""
        train = run.recipe.train
        self.writer = CheckpointWriter(
            run.checkpoint_folder, run.parallel, keep_last=train.keep_last, keep_every=train.keep_every
        )

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Begin to save if a checkpoint is due.

        Raises:
            RMDError: the previous checkpoint could not be written.
        """
        best = None if run.best is None else run.best.iteration
        if iteration.is_due(run.recipe.train.checkpoint_every) or best == iteration.done:
            self.writer.best = best
            self.writer.save(run.trained, _meta(run, iteration.done))

    def close(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            RMDError: it could not be written.
        """
        self.writer.close()


class StopOnCollapse(Callback):
    """Stops the run when the student collapses, and sets aside the checkpoints since the collapse began."""

    def __init__(self, checkpointing: Checkpointing) -> None:
        self.checkpointing = checkpointing

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Show the metrics to the guard.

        Raises:
            RMDError: on every process, if the student collapses.
        """
        if not run.recipe.train.guard:
            return
        wrong, since = run.guard.observe(iteration.done, iteration.metrics), run.guard.since
        writer = self.checkpointing.writer
        writer.good_until = since
        if wrong is None or since is None:
            return
        writer.wait()
        run.parallel.on_main(lambda: set_aside(run.checkpoint_folder, since))
        good = run.parallel.from_main(checkpoints(run.checkpoint_folder))
        advice = "no checkpoint is older: start again"
        if good:
            advice = f"{good[-1]} is older: continue from it with --resume --reset-optimizer,"
        raise RMDError(
            f"the student is collapsing: {wrong}, and something has been unusual since iteration {since}; stopped at "
            f"{iteration.done}. {advice} with a lower optim.student_lr or more method.fake_updates; "
            "train.guard=false continues regardless"
        )


class Progress(Callback):
    """Tells `run.on_iteration` about every iteration, in the first process."""

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Call the function if there is one."""
        if run.on_iteration is not None and run.parallel.main:
            run.on_iteration(iteration.done, iteration.metrics)


def default_callbacks() -> list[Callback]:
    """Return the callbacks of every run.

    Pictures and scores come before the metrics that report them, the guard comes before a checkpoint that may be bad,
    and progress is reported when the checkpoint has begun.
    """
    tracking, checkpointing = Tracking(), Checkpointing()
    return [
        AverageStudent(), Panels(tracking), Judging(), tracking, StopOnCollapse(checkpointing), checkpointing,
        Progress(),
    ]  # fmt: skip


def _meta(run: Run, done: int) -> Meta:
    """Return what a checkpoint records about its run."""
    return Meta(
        iteration=done,
        recipe=run.recipe.name,
        identity=run.identity,
        plan=cast("dict[str, JsonValue]", run.plan.to_dict()),
        guard=run.guard.state,
        best=run.best,
    )
