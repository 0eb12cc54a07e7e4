"""The training loop (Algorithm 1): draw a batch, update the student, update the fake score, call the callbacks."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from rmd.common.errors import RMDError
from rmd.core.plan import Step
from rmd.methods import Batch, Rollout, Sample
from rmd.models.attention import attention_on
from rmd.models.base import Backbone
from rmd.models.roles import ROLES
from rmd.models.teacher import DTYPES
from rmd.recipes.groups import OptimConfig
from rmd.recipes.schema import Recipe
from rmd.train.callbacks import Callback, Iteration, default_callbacks
from rmd.train.checkpoint import checkpoints, load_checkpoint
from rmd.train.folder import check_folder, hold_folder
from rmd.train.parallel import Parallel
from rmd.train.run import Run, build_run, score_gap
from rmd.train.tracking import peak_memory_gb
from rmd.train.weights import TeacherWeights


class Trainer(Run):
    """A run and the loop over its iterations."""

    def __init__(
        self,
        recipe: Recipe | Run,
        backbone: Backbone | None = None,
        folder: Path = Path("run"),
        parallel: Parallel | None = None,
        weights: TeacherWeights | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Prepare the training of a run; nothing is written yet.

        Args:
            recipe: a run that `build_run` has built, or a recipe, from which it is built with the arguments `backbone`,
                `folder`, `parallel` and `weights`.
            callbacks: further callbacks, called after those of every run.

        Raises:
            RMDError: as `build_run`.
        """
        run = recipe
        if not isinstance(run, Run):
            run = build_run(run, backbone, folder=folder, parallel=parallel, weights=weights)
        super().__init__(**{each.name: getattr(run, each.name) for each in fields(run) if each.init})
        self.callbacks: list[Callback] = [*default_callbacks(), *callbacks]

    def train(self, *, resume: bool = False, reset_optimizers: bool = False, is_locked: bool = False) -> int:
        """Train up to the recipe's last iteration, or until a signal asks to stop; return the iterations done.

        All processes stop if any of them is asked to. The run's folder is locked meanwhile.

        Args:
            resume: continue from the newest checkpoint in the folder.
            reset_optimizers: continue from a checkpoint's weights alone, even those of another recipe.
            is_locked: whether the caller already holds the lock of the run's folder (`hold_folder`).

        Raises:
            RMDError: another process writes to the folder, the folder or its checkpoint does not fit, something cannot
                be written, or the training has failed. Checkpoints that were complete before stay complete.
        """
        with self._stop_on_signals():
            for _ in self.iterations(resume=resume, reset_optimizers=reset_optimizers, is_locked=is_locked):
                pass
        return self.done

    def iterations(
        self, *, resume: bool = False, reset_optimizers: bool = False, is_locked: bool = False
    ) -> Iterator[Iteration]:
        """Train as `train` does, and yield every iteration when its callbacks are done; signals are left alone."""
        with ExitStack() as stack:
            if not is_locked:
                stack.enter_context(hold_folder(self.folder, self.parallel, resume=resume))
            self.done = start = self.start(resume=resume, reset_optimizers=reset_optimizers)
            for callback in self.callbacks:
                callback.start(self, start)
                stack.callback(callback.close)
            for iteration in range(start, self.recipe.train.iterations):
                began = time.perf_counter()
                values, rollout = self.iterate(iteration)
                values |= self._speed(time.perf_counter() - began)
                self.done = iteration + 1
                # Read only once: a signal that arrives later ends the next iteration.
                (stop,) = self.parallel.any(self.stop_requested)
                result = Iteration(self.done, values, rollout, last=stop or self.done == self.recipe.train.iterations)
                for callback in self.callbacks:
                    callback.after_iteration(self, result)
                yield result
                if stop:
                    break

    def iterate(self, iteration: int) -> tuple[dict[str, float], Rollout]:
        """Update the student once and the fake score `method.fake_updates` times, in the order of `method.order`.

        Gradients add up over the micro-batches before each update.

        Args:
            iteration: number of iterations done before.

        Returns:
            The iteration's metrics, means over all samples of the batch, and the last micro-batch's roll-out.

        Raises:
            RMDError: on every process, if a loss or a gradient of any is not finite.
        """
        began, calls = time.perf_counter(), Counter(self.method.evaluations)
        batches = self.batches(iteration)
        waited = time.perf_counter() - began
        step = self.method.draw_step(iteration)

        with attention_on(self.device, DTYPES[self.recipe.train.dtype]):
            fake = None
            if self.recipe.method.order == "fake_first":
                fake = self._update_fake(batches, self._own_samples(batches, iteration), iteration)
            student, rollouts = self._update_student(batches, step, iteration)
            if fake is None:
                fake = self._update_fake(batches, rollouts, iteration)

        values = self._measured(step, student, fake, rollouts)
        values |= {f"calls_{role}": float(self.method.evaluations[role] - calls[role]) for role in ROLES}
        values["data_seconds"] = waited
        return values, rollouts[-1]

    def _update_student(
        self, batches: Sequence[Batch], step: Step, iteration: int
    ) -> tuple[Tensor, list[Rollout]]:  # fmt: skip
        """Update the student at a step, and return what `_update` does and the roll-outs of the micro-batches."""
        losses, rollouts = [], []
        self.roles.zero_grad()
        for batch in batches:
            with record_function("student"):
                loss, rollout = self.method.student_loss(batch, step)
                self._backward("student", loss, of=len(batches), last=batch is batches[-1])
            losses.append(loss.detach())
            rollouts.append(rollout)
        measured = self._update("student", losses, iteration)
        for callback in self.callbacks:
            callback.after_student_update(self)
        return measured, rollouts

    def _update_fake(self, batches: Sequence[Batch], samples: Sequence[Sample], iteration: int) -> Tensor:
        """Update the fake score on samples of the student, and return what the last `_update` does."""
        for update in range(self.recipe.method.fake_updates):
            losses = []
            self.roles.zero_grad()
            for batch, sample in zip(batches, samples, strict=True):
                with record_function("fake"):
                    loss = self.method.fake_loss(batch, sample, update)
                    self._backward("fake", loss, of=len(batches), last=batch is batches[-1])
                losses.append(loss.detach())
            measured = self._update("fake", losses, iteration)
        return measured

    @torch.no_grad()
    def _own_samples(self, batches: Sequence[Batch], iteration: int) -> list[Sample]:
        """Return the samples of a step that is drawn for the fake score.

        They lie on the trajectories that the student's update continues from: a batch draws the same noise each time.
        """
        step = self.method.draw_step(iteration, "fake")
        with record_function("fake"):
            return [self.method.sample(batch, step) for batch in batches]

    def start(self, *, resume: bool, reset_optimizers: bool = False) -> int:
        """Load the newest checkpoint if the run is resumed, and return the number of iterations that are done.

        Args:
            resume: whether the run is resumed.
            reset_optimizers: load a checkpoint's weights alone, even those of another recipe.

        Raises:
            RMDError: there are checkpoints and `resume` is off, or there are none and it is on.
        """
        self.parallel.on_main(lambda: check_folder(self.folder, resume=resume))
        saved = self.parallel.from_main(checkpoints(self.checkpoint_folder))
        if not saved:
            return 0
        meta = load_checkpoint(
            saved[-1],
            self.trained,
            identity=self.identity,
            parallel=self.parallel,
            reset_optimizers=reset_optimizers,
        )
        if not reset_optimizers:
            self.guard.state = meta.guard
        self.best = meta.best
        return meta.iteration

    def _backward(self, role: Literal["student", "fake"], loss: Tensor, *, of: int, last: bool) -> None:
        """Add the gradients of one of `of` micro-batches; the last pass averages them over the processes."""
        with self.roles.use(role) as network:
            self.parallel.set_gradient_sync(network, last)
        # Processes that share a sample each hold a part of its gradient; FSDP's mean is to become their sum.
        self.roles.backward(role, loss * (self.parallel.cp / of), more=not last)

    def _update(self, role: Literal["student", "fake"], losses: Sequence[Tensor], iteration: int) -> Tensor:
        """Clip the gradient of a role and step its optimiser, on all processes or on none.

        Returns:
            The mean loss, and the gradient's norm before clipping (2).

        Raises:
            RMDError: on every process, if a loss or a gradient of any is not finite.
        """
        optim = self.recipe.optim
        limit = optim.clip_norm if role == "student" or optim.clipped == "both" else math.inf
        norm = self.parallel.clip(self.roles.trainable(role), limit)
        measured = torch.stack([torch.stack(list(losses)).mean(), norm])
        (bad,) = self.parallel.any(not bool(measured.isfinite().all()))
        if bad:
            raise RMDError(
                f"the {role}'s loss or gradient is not finite at iteration {iteration + 1}; stopped before the "
                f"optimiser's step: lower optim.{role}_lr and add --resume --reset-optimizer, or resume from the last "
                f"checkpoint in {self.checkpoint_folder}"
            )
        optimizer = self.trained.optimizers[role]
        rate = optim.student_lr if role == "student" else optim.fake_lr
        for group in optimizer.param_groups:
            group["lr"] = rate * lr_scale(optim, iteration, self.recipe.train.iterations)
        optimizer.step()
        self.roles.sync(role)
        return measured

    def _measured(self, step: Step, student: Tensor, fake: Tensor, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Return the metrics of an iteration that trained `step`, in one transfer from the device.

        Args:
            student, fake: what `_update` returned for the student's and the last fake update.
        """
        gap = torch.stack([score_gap(rollout) for rollout in rollouts]).mean()
        std = torch.stack([rollout.y.flatten(1).std(1).mean() for rollout in rollouts]).mean()
        numbers = torch.stack([*student, *fake, gap, std]).tolist()
        names = ("student_loss", "student_grad_norm", "fake_loss", "fake_grad_norm", "gap", "sample_std")
        means = self.parallel.mean(dict(zip(names, numbers, strict=True)))
        return {"step": float(step.index), "stage": float(step.stage), **means}

    def _speed(self, seconds: float) -> dict[str, float]:
        """Return the machine-dependent metrics of an iteration."""
        return {
            "seconds": seconds,
            "images_per_second": self.recipe.train.batch_size / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the training after the current iteration; a second SIGINT interrupts at once."""

        def request(number: int, frame: object) -> None:
            self.stop_requested = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only, so its caller handles them.
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def lr_scale(optim: OptimConfig, iteration: int, iterations: int) -> float:
    """Return the factor in (0, 1] by which iteration `iteration` (from 0) of `iterations` scales the learning rates."""
    rise = (iteration + 1) / (optim.lr_warmup + 1)
    fall = (iterations - iteration) / (optim.lr_decay + 1)
    return min(1.0, rise, fall)
