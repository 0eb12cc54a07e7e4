"""The training loop: draw a step, update the student, update the fake score (Alg. 1)."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rmd.backbones.base import Backbone, Encoder
from rmd.config import Recipe, run_hash, to_yaml
from rmd.data.cache import PromptCache
from rmd.data.prompts import load_prompts
from rmd.errors import RMDError
from rmd.methods import METHODS, Batch, Method, Rollout
from rmd.plan import StepPlan
from rmd.randomness import CounterNoise
from rmd.roles import TRAINED, Roles, build_roles
from rmd.train.checkpoint import Trained, checkpoints, load_checkpoint, save_checkpoint
from rmd.train.panels import sample_panel, score_panel
from rmd.train.tracking import Tracker

PANEL_PROMPTS = 8
OnIteration = Callable[[int, dict[str, float]], None]


@dataclass
class Trainer:
    """A run in one process: everything that a checkpoint holds, and the loop over it."""

    recipe: Recipe
    backbone: Backbone
    folder: Path
    on_iteration: OnIteration | None = None
    stop_requested: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.plan: StepPlan = recipe.build_plan()
        if recipe.train.recompute:
            self.backbone.enable_recompute()
        self.roles: Roles = build_roles(
            self.backbone.denoiser,
            mode=recipe.roles.mode,
            targets=self.backbone.lora_targets,
            rank=recipe.roles.rank,
            alpha=recipe.roles.alpha,
            seed=recipe.train.seed,
        )
        self.method: Method = METHODS[recipe.method.name](
            self.backbone, self.roles, self.plan, recipe.method, seed=recipe.train.seed
        )
        rates = {"student": recipe.optim.student_lr, "fake": recipe.optim.fake_lr}
        optimizers: dict[str, torch.optim.Optimizer] = {
            role: torch.optim.AdamW(
                self.roles.trainable(role),
                lr=rates[role],
                betas=recipe.optim.betas,
                weight_decay=recipe.optim.weight_decay,
            )
            for role in TRAINED
        }
        average = {name: value.clone() for name, value in self.roles.state("student").items()}
        self.trained = Trained(self.roles, optimizers, average if recipe.optim.ema > 0 else {})
        self.prompts = load_prompts(recipe.data, seed=recipe.train.seed)
        self.encoder: Encoder = self.backbone
        if recipe.data.cache is not None:
            cache = PromptCache(Path(recipe.data.cache))
            cache.check(self.backbone)
            self.encoder = cache
        self.hash = run_hash(recipe)

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoints"

    def start(self, *, resume: bool) -> int:
        """The iteration to begin with: 0, or where the newest checkpoint left off.

        Raises:
            RMDError: there are checkpoints and `resume` is off, or none and it is on.
        """
        found = checkpoints(self.checkpoint_folder)
        if resume and not found:
            raise RMDError(f"nothing to resume in {self.folder}: run without --resume")
        if found and not resume:
            raise RMDError(f"{self.folder} holds a run already: add --resume to go on with it, or choose another --out")
        return load_checkpoint(found[-1], self.trained, run_hash=self.hash) if found else 0

    def train(self, *, resume: bool = False) -> int:
        """Run to the recipe's last iteration, or until asked to stop; returns how many iterations are done."""
        recipe, start = self.recipe, self.start(resume=resume)
        self._make_folder()
        done = start
        with Tracker(self.folder, start=start) as tracker, self._graceful_stop():
            for iteration in range(start, recipe.train.iterations):
                began = time.perf_counter()
                values, rollout = self.iterate(iteration)
                values["seconds"] = time.perf_counter() - began
                done = iteration + 1
                stop = self.stop_requested  # read once: asked for later than here, it waits for the next iteration
                last = stop or done == recipe.train.iterations
                if done % recipe.train.log_every == 0 or last:
                    tracker.metrics(done, values)
                if done % recipe.train.sample_every == 0 or last:
                    self._pictures(tracker, done, rollout)
                if done % recipe.train.checkpoint_every == 0 or last:
                    self.save(done)
                if self.on_iteration is not None:
                    self.on_iteration(done, values)
                if stop:
                    break
        return done

    def iterate(self, iteration: int) -> tuple[dict[str, float], Rollout]:
        """One student update and the fake score's updates after it; returns the iteration's numbers."""
        batch = self.batch(iteration)
        step = self.method.draw_step(iteration)
        loss, rollout = self.method.student_loss(batch, step)
        values = {"step": float(step.index), "stage": float(step.stage), "student_loss": float(loss.detach())}
        values["student_grad_norm"] = self._update("student", loss, iteration)
        self._average()
        for update in range(self.recipe.method.fake_updates):
            fake_loss = self.method.fake_loss(batch, rollout, update)
            values["fake_loss"] = float(fake_loss.detach())
            values["fake_grad_norm"] = self._update("fake", fake_loss, iteration)
        values["gap"] = float((rollout.f_real - rollout.f_fake).abs().mean())
        values["sample_std"] = float(rollout.y.std())
        return values, rollout

    def batch(self, iteration: int) -> Batch:
        """Prompts, encoded, and noise keyed by their global sample numbers: a function of the iteration alone."""
        texts, samples = self.prompts.batch(iteration, self.recipe.train.batch_size)
        with torch.no_grad():
            cond, null = (
                c.to(self.backbone.device) for c in (self.encoder.encode(texts), self.encoder.null(len(texts)))
            )
        noise = CounterNoise(self.recipe.train.seed, samples, step=iteration, device=self.backbone.device)
        return Batch(iteration, cond, null, noise)

    def save(self, iteration: int) -> Path:
        meta: dict[str, object] = {"run_hash": self.hash, "recipe": self.recipe.name, "plan": self.plan.to_dict()}
        keep = self.recipe.train.keep_last
        return save_checkpoint(self.checkpoint_folder, iteration, self.trained, meta, keep=keep)

    def student_state(self) -> dict[str, Tensor]:
        """The student to sample with and to export: its moving average where one is kept."""
        return self.trained.average or self.roles.state("student")

    @contextmanager
    def averaged_student(self) -> Iterator[torch.nn.Module]:
        """The student's network holding `student_state` for the time of the block."""
        current = {name: value.clone() for name, value in self.roles.state("student").items()}
        self.roles.load_state("student", self.student_state())
        try:
            with self.roles.use("student") as student:
                yield student
        finally:
            self.roles.load_state("student", current)

    def _make_folder(self) -> None:
        """Create the run's folder, with the whole recipe in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(to_yaml(self.recipe), encoding="utf-8")
        except OSError as error:
            raise RMDError(f"cannot write to {self.folder}: {error.strerror}; choose another --out") from error

    def _update(self, role: Literal["student", "fake"], loss: Tensor, iteration: int) -> float:
        """Back-propagate, clip and step one role; returns the gradient norm before clipping."""
        self.roles.zero_grad()
        if math.isfinite(float(loss.detach())):
            self.roles.backward(role, loss)
            norm = torch.nn.utils.clip_grad_norm_(self.roles.trainable(role), self.recipe.optim.clip_norm)
            if math.isfinite(float(norm)):
                self.trained.optimizers[role].step()
                self.roles.sync(role)
                return float(norm)
        raise RMDError(
            f"the {role}'s loss or gradient is not finite at iteration {iteration + 1}; stopped before its optimiser: "
            f"lower optim.{role}_lr, or resume from the last checkpoint in {self.checkpoint_folder}"
        )

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.recipe.optim.ema
        if decay > 0:
            now = self.roles.state("student")
            torch._foreach_lerp_(list(self.trained.average.values()), [now[n] for n in self.trained.average], 1 - decay)

    def _pictures(self, tracker: Tracker, iteration: int, rollout: Rollout) -> None:
        prompts = self.prompts.batch(0, PANEL_PROMPTS)[0]
        with self.averaged_student() as student:
            cond = self.encoder.encode(prompts).to(self.backbone.device)
            picture = sample_panel(self.backbone, student, self.plan, cond, seed=self.recipe.train.seed)
        tracker.picture("samples", iteration, picture)
        tracker.picture("scores", iteration, score_panel(self.backbone, rollout))

    @contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        """SIGINT and SIGTERM let the iteration finish and save; a second SIGINT interrupts at once."""

        def request(number: int, frame: object) -> None:
            self.stop_requested = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread: whoever called us there handles them
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
