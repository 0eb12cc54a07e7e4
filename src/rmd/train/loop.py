"""The training loop: draw a step, update the student, update the fake score (Alg. 1)."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.profiler import record_function

from rmd.common.errors import RMDError
from rmd.common.files import write_text
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.data.cache import PromptCache, encoders_key
from rmd.data.images import load_images
from rmd.data.online import OnlineEncoder
from rmd.data.prompts import load_prompts
from rmd.methods import METHODS, Batch, Method, Real, Rollout
from rmd.models.base import Backbone, Cond, Encoder
from rmd.models.resolve import resolve_noise
from rmd.models.roles import ROLES, TRAINED, Roles, build_roles
from rmd.recipes.hashes import run_hash, settings_hash
from rmd.recipes.schema import OptimConfig, Recipe, to_yaml
from rmd.train.checkpoint import CheckpointWriter, Meta, Trained, checkpoints, load_checkpoint, set_aside
from rmd.train.folder import CHECKPOINTS, check_folder, hold_folder
from rmd.train.guard import Best, CollapseGuard
from rmd.train.identity import Identity, images_key, network_key
from rmd.train.panels import sample_panel, score_panel
from rmd.train.parallel import Parallel, own, whole
from rmd.train.tracking import Tracker, peak_memory_gb, run_disk_errors
from rmd.train.weights import TeacherWeights

PANEL_PROMPTS = 8
HELD_OUT = -1
"""Stands for the iteration in the noise of samples that nothing is trained on."""
T = TypeVar("T")
OnIteration = Callable[[int, dict[str, float]], None]
Judge = Callable[[torch.nn.Module], dict[str, float]]


@dataclass
class Trainer:
    """A run: everything that a checkpoint holds, and the loop over it; one in each of its processes.

    The first process writes what is written once, and hears of every iteration.
    """

    recipe: Recipe
    backbone: Backbone
    folder: Path
    on_iteration: OnIteration | None = None
    parallel: Parallel = field(default_factory=Parallel)
    judge: Judge | None = None
    """Looks at the student's network every `evaluation.every` iterations."""
    weights: TeacherWeights | None = None
    """Of a backbone whose denoiser has none yet: each process reads its part."""
    stop_requested: bool = field(default=False, init=False)
    _null: Cond | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.recipe = recipe = resolve_noise(self.recipe, self.backbone.pipe.scheduler.config)
        self.plan: StepPlan = recipe.build_plan()
        self.device = self.backbone.device  # asked for once: a pipeline looks through all its modules for it
        teacher = _done_by_main(self.parallel, lambda: network_key(self.backbone.denoiser, self.weights))
        if recipe.train.gradient_checkpointing:
            self.backbone.enable_recompute()
        self.roles: Roles = build_roles(
            self.backbone.denoiser,
            mode=recipe.roles.mode,
            targets=self.backbone.adapted(recipe.roles.layers),
            rank=recipe.roles.rank,
            alpha=recipe.roles.alpha,
            seed=recipe.train.seed,
        )
        self.parallel.share(range(recipe.train.batch_size), recipe.train.gradient_accumulation_steps)  # that it divides
        for network, trained in self.roles.networks():
            if self.parallel.tokens is not None:
                self.backbone.share_tokens(network, self.parallel.tokens, self.plan)
            if self.weights is not None:
                self.weights.drop(network)
            units = self.backbone.shard_units(network)
            self.parallel.spread(network, units, half=trained and recipe.train.dtype == "bfloat16")
            if self.weights is not None:
                self.weights.fill(network)
        self.roles.find_parameters()
        self.method: Method = METHODS.get(recipe.method.name)(
            self.backbone, self.roles, self.plan, recipe.method, seed=recipe.train.seed
        )
        self.rates = {"student": recipe.optim.student_lr, "fake": recipe.optim.fake_lr}
        optimizers: dict[str, torch.optim.Optimizer] = {
            role: torch.optim.AdamW(
                self.roles.trainable(role),
                lr=self.rates[role],
                betas=recipe.optim.betas,
                weight_decay=recipe.optim.weight_decay,
                fused=self.device.type == "cuda",  # a launch or two, not hundreds
            )
            for role in TRAINED
        }
        average = {name: value.clone() for name, value in self.roles.state("student").items()}
        self.trained = Trained(self.roles, optimizers, average if recipe.optim.ema > 0 else {})
        self.images = load_images(recipe)
        if self.images is not None and self.parallel.world > 1:
            raise RMDError("method.adversarial works in one process: start the run without torchrun")
        self.prompts = load_prompts(recipe.data, seed=recipe.train.seed)
        self.encoder: Encoder = self.backbone
        if recipe.data.cache is not None:
            cache = PromptCache(Path(recipe.data.cache))
            cache.check(self.backbone, self.prompts.texts)
            self.encoder = cache
        elif recipe.data.prompt_cache_mb or recipe.data.offload:
            self.encoder = OnlineEncoder(
                self.backbone, cache_bytes=recipe.data.prompt_cache_mb * 2**20, offload=recipe.data.offload
            )
        self.identity = self._identify(teacher)
        self.guard = CollapseGuard()
        self.best: Best | None = None

    def _identify(self, denoiser: str) -> Identity:
        """Return the identity of this run.

        Args:
            denoiser: the `network_key` of the teacher's denoiser.

        Raises:
            RMDError: on every process, if they have not all read the same.
        """
        made_by = self.encoder.meta.encoders if isinstance(self.encoder, PromptCache) else None
        encoders = encoders_key(self.backbone) if made_by is None else made_by
        mine = Identity(
            run_hash=run_hash(self.recipe),
            prompts=len(self.prompts.texts),
            prompts_key=self.prompts.key,
            teacher_key=f"{denoiser}-{self.backbone.prediction}-{encoders}",
            images_key=images_key(self.images),
        )
        (apart,) = self.parallel.any(mine != self.parallel.from_main(mine))
        if apart:
            raise RMDError(
                "the processes of this run have read different settings, prompts or text encoders: start all of them "
                "with the same command, and let all machines see the same files"
            )
        return mine

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / CHECKPOINTS

    def start(self, *, resume: bool, reset_optimizers: bool = False) -> int:
        """The iteration to begin with: 0, or where the newest checkpoint left off.

        Args:
            reset_optimizers: go on from a checkpoint's weights alone, even those of another recipe.

        Raises:
            RMDError: there are checkpoints and `resume` is off, or none and it is on.
        """
        self.parallel.on_main(lambda: check_folder(self.folder, resume=resume))
        found = self.parallel.from_main(checkpoints(self.checkpoint_folder))
        if not found:
            return 0
        meta = load_checkpoint(
            found[-1], self.trained, identity=self.identity, earlier_hash=settings_hash(self.recipe),
            parallel=self.parallel, reset_optimizers=reset_optimizers,
        )  # fmt: skip
        if not reset_optimizers:
            self.guard.load(meta.guard)
        self.best = meta.best
        return meta.iteration

    def train(self, *, resume: bool = False, reset_optimizers: bool = False, is_locked: bool = False) -> int:
        """Train up to the recipe's last iteration, or until asked to stop; return the number of iterations done.

        All processes stop when any of them is asked to. The run's folder is locked meanwhile.

        Args:
            resume: continue from the newest checkpoint in the folder.
            reset_optimizers: continue from a checkpoint's weights alone, even those of another recipe.
            is_locked: whether the caller already holds the lock of the run's folder (`hold_folder`).

        Raises:
            RMDError: another process writes to the folder, the folder or its checkpoint does not fit, something cannot
                be written, or the training has failed. Checkpoints that were complete before stay complete.
        """
        recipe = self.recipe
        with ExitStack() as open_ones:
            if not is_locked:
                open_ones.enter_context(hold_folder(self.folder, self.parallel, resume=resume))
            done = start = self.start(resume=resume, reset_optimizers=reset_optimizers)
            # Entered first, so that a signal does not interrupt the writing of the last checkpoint either.
            open_ones.enter_context(self._graceful_stop())
            tracker = self._open_files(open_ones, start)
            writer = CheckpointWriter(
                self.checkpoint_folder, self.parallel,
                keep_last=recipe.train.keep_last, keep_every=recipe.train.keep_every,
            )  # fmt: skip
            open_ones.callback(writer.close)
            for iteration in range(start, recipe.train.iterations):
                began = time.perf_counter()
                values, rollout = self.iterate(iteration)
                values["seconds"] = time.perf_counter() - began
                values["images_per_second"] = recipe.train.batch_size / values["seconds"]
                values["peak_memory_gb"] = peak_memory_gb(self.device)
                done = iteration + 1
                # read once: asked for later than here, it waits for the next iteration
                (stop,) = self.parallel.any(self.stop_requested)
                last = stop or done == recipe.train.iterations
                sampled = done % recipe.train.sample_every == 0 or last
                if sampled:
                    self._pictures(tracker, done, rollout)
                    values |= self.held_out()
                judged = recipe.evaluation.every is not None and (done % recipe.evaluation.every == 0 or last)
                if judged and self.judge is not None:
                    with self.averaged_student() as student:
                        values |= self.judge(student)
                    self.best = Best.of(self.best, done, values)
                if done % recipe.train.log_every == 0 or sampled or judged:
                    self._record(tracker, done, values)
                if recipe.train.guard:
                    self._watch(done, values, writer)
                best = self.best is not None and self.best.iteration == done
                if done % recipe.train.checkpoint_every == 0 or last or best:
                    writer.best = None if self.best is None else self.best.iteration
                    writer.save(self.trained, self._meta(done))
                if self.on_iteration is not None and self.parallel.main:
                    self.on_iteration(done, values)
                if stop:
                    break
        return done

    def iterate(self, iteration: int) -> tuple[dict[str, float], Rollout]:
        """One student update and the fake score's updates after it.

        Returns:
            The iteration's numbers, means over all samples of the batch, and the last micro-batch's roll-out.
        """
        began, before = time.perf_counter(), Counter(self.method.evaluations)
        batches = self.batches(iteration)
        waited = time.perf_counter() - began
        step = self.method.draw_step(iteration)
        losses, rollouts = [], []
        self.roles.zero_grad()
        for batch in batches:
            with record_function("student"):
                loss, rollout = self.method.student_loss(batch, step)
                self._backward("student", loss, of=len(batches), last=batch is batches[-1])
            losses.append(loss.detach())
            rollouts.append(rollout)
        found = {"student": self._update("student", losses, iteration)}
        self._average()
        for update in range(self.recipe.method.fake_updates):
            losses = []
            self.roles.zero_grad()
            for batch, rollout in zip(batches, rollouts, strict=True):
                with record_function("fake"):
                    loss = self.method.fake_loss(batch, rollout, update)
                    self._backward("fake", loss, of=len(batches), last=batch is batches[-1])
                losses.append(loss.detach())
            found["fake"] = self._update("fake", losses, iteration)
        gap = torch.stack([_gap(rollout) for rollout in rollouts]).mean()
        spread = torch.stack([rollout.y.flatten(1).std(1).mean() for rollout in rollouts]).mean()
        # all that is measured leaves the device at once
        numbers = torch.stack([*found["student"], *found["fake"], gap, spread]).tolist()
        names = ("student_loss", "student_grad_norm", "fake_loss", "fake_grad_norm", "gap", "sample_std")
        calls = {f"calls_{role}": float(self.method.evaluations[role] - before[role]) for role in ROLES}
        values = {
            "step": float(step.index),
            "stage": float(step.stage),
            **self.parallel.mean(dict(zip(names, numbers, strict=True))),
            **calls,
            "data_seconds": waited,
        }
        return values, rollouts[-1]

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """How well the fake score knows the student, by noise level: on samples that nothing is trained on.

        Every step's sample of the panel's prompts is noised into the step's segment; `fake_error` is the fake score's
        root mean square error in it, `gap` its mean distance from the teacher's reading.
        """
        count = PANEL_PROMPTS
        noise = CounterNoise(self.recipe.train.seed, range(count), step=HELD_OUT, device=self.device)
        texts = self.prompts.batch(0, count)[0]
        cond, null = (c.to(self.device) for c in self.encoded(texts, HELD_OUT))
        evaluations, found = Counter(self.method.evaluations), []
        for step in self.plan.steps:
            _, rollout = self.method.student_loss(Batch(HELD_OUT, cond, null, noise), step)
            found += [(rollout.f_fake - rollout.y).square().mean().sqrt(), _gap(rollout)]
        self.method.evaluations = evaluations
        names = [f"held_out/{kind}/step-{step.index}" for step in self.plan.steps for kind in ("fake_error", "gap")]
        return dict(zip(names, torch.stack(found).tolist(), strict=True))

    def batches(self, iteration: int) -> list[Batch]:
        """This process's micro-batches of an iteration.

        Prompts, encoded, and noise keyed by their global sample numbers: a function of the iteration alone.
        """
        texts, samples = self.prompts.batch(iteration, self.recipe.train.batch_size)
        found = []
        for part in self.parallel.share(
            list(zip(texts, samples, strict=True)), self.recipe.train.gradient_accumulation_steps
        ):
            with torch.no_grad():
                cond, null = (c.to(self.device) for c in self.encoded([text for text, _ in part], iteration))
            numbers = [sample for _, sample in part]
            noise = CounterNoise(self.recipe.train.seed, numbers, step=iteration, device=self.device)
            found.append(Batch(iteration, cond, null, noise, self._real(numbers, iteration)))
        return found

    @torch.no_grad()
    def _real(self, samples: Sequence[int], iteration: int) -> Real | None:
        if self.images is None:
            return None
        pixels, captions = self.images.batch(samples)
        cond, _ = self.encoded(captions, iteration)
        return Real(self.backbone.encode_images(pixels), cond.to(self.device))

    def encoded(self, texts: Sequence[str], iteration: int) -> tuple[Cond, Cond]:
        """What a network is told of prompts, and what its unconditional branch is told."""
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder.null(1)
        return self.encoder.encode(texts), self._null.expand(len(texts))

    def _meta(self, done: int) -> Meta:
        """What a checkpoint says of its run."""
        return Meta(
            iteration=done,
            recipe=self.recipe.name,
            identity=self.identity,
            plan=cast("dict[str, JsonValue]", self.plan.to_dict()),
            guard=self.guard.state(),
            best=self.best,
        )

    def _watch(self, done: int, values: dict[str, float], writer: CheckpointWriter) -> None:
        """RMDError, on every process, when the student collapses; what was saved since it began is set aside."""
        wrong = self.guard.observe(done, values)
        writer.good_until = self.guard.since
        if wrong is None or self.guard.since is None:
            return
        since = self.guard.since
        writer.wait()
        self.parallel.on_main(lambda: set_aside(self.checkpoint_folder, since))
        good = self.parallel.from_main(checkpoints(self.checkpoint_folder))
        way = "no checkpoint is older: begin anew"
        if good:
            way = f"{good[-1]} is older: go on from it with --resume --reset-optimizer,"
        raise RMDError(
            f"the student is collapsing: {wrong}, and has been unusual since iteration {since}; stopped at {done}. "
            f"{way} with a lower optim.student_lr or more method.fake_updates; train.guard=false goes on regardless"
        )

    def student_state(self) -> dict[str, Tensor]:
        """The student to sample with and to export, spread as it is: its moving average where one is kept."""
        return self.trained.average or self.roles.state("student")

    def gathered_student(self) -> dict[str, Tensor]:
        """`student_state`, whole and on the CPU of the first process; all processes must ask for it."""
        found = {}
        for name, tensor in self.student_state().items():
            full = whole(tensor)
            if self.parallel.main:
                found[name] = full.cpu()
        return found

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

    def _open_files(self, open_ones: ExitStack, start: int) -> Tracker | None:
        """Write the whole recipe and open the first process's tracker; a failure raises RMDError on every process."""
        opened: list[Tracker] = []

        def open_them() -> None:
            with run_disk_errors(self.folder):
                write_text(self.folder / "recipe.yaml", to_yaml(self.recipe))
            settings, loggers = self.recipe.model_dump(mode="json"), self.recipe.train.loggers
            tracker = Tracker(self.folder, start=start, loggers=loggers, config=settings)
            opened.append(open_ones.enter_context(tracker))

        self.parallel.on_main(open_them)
        return opened[0] if opened else None

    def _backward(self, role: Literal["student", "fake"], loss: Tensor, *, of: int, last: bool) -> None:
        """Add the gradients of one of `of` micro-batches; the last pass ends with their mean over the processes."""
        with self.roles.use(role) as network:
            self.parallel.synchronise(network, last)
        # processes that share a sample hold parts of its gradient, which are to be added up
        self.roles.backward(role, loss * (self.parallel.context_parallel / of), more=not last)

    def _update(self, role: Literal["student", "fake"], losses: Sequence[Tensor], iteration: int) -> Tensor:
        """Clip and step one role, on all processes or on none; its loss, and the gradient norm before clipping.

        Raises:
            RMDError: on every process, when a loss or gradient of any is not finite.
        """
        norm = self.parallel.clip(self.roles.trainable(role), self.recipe.optim.clip_norm)
        found = torch.stack([torch.stack(list(losses)).mean(), norm])
        (bad,) = self.parallel.any(not bool(found.isfinite().all()))
        if bad:
            raise RMDError(
                f"the {role}'s loss or gradient is not finite at iteration {iteration + 1}; stopped before its "
                f"optimiser: lower optim.{role}_lr and add --resume --reset-optimizer, or resume from the last "
                f"checkpoint in {self.checkpoint_folder}"
            )
        scale = lr_scale(self.recipe.optim, iteration, self.recipe.train.iterations)
        for group in self.trained.optimizers[role].param_groups:
            group["lr"] = self.rates[role] * scale
        self.trained.optimizers[role].step()
        self.roles.sync(role)
        return found

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.recipe.optim.ema
        if decay > 0:
            now = self.roles.state("student")
            pairs = [(own(average), own(now[name])) for name, average in self.trained.average.items()]
            torch._foreach_lerp_([average for average, _ in pairs], [value for _, value in pairs], 1 - decay)

    def _record(self, tracker: Tracker | None, iteration: int, values: dict[str, float]) -> None:
        """Record the values on the first process; raise RMDError on every process if they cannot be written."""

        def write() -> None:
            assert tracker is not None, "the first process has one"
            tracker.metrics(iteration, values)

        self.parallel.on_main(write)

    def _pictures(self, tracker: Tracker | None, iteration: int, rollout: Rollout) -> None:
        """Sampled by all processes, which hold the weights together; written by the first."""
        prompts = self.prompts.batch(0, PANEL_PROMPTS)[0]
        with self.averaged_student() as student:
            cond = self.encoder.encode(prompts).to(self.device)
            picture = sample_panel(self.backbone, student, self.plan, cond, seed=self.recipe.train.seed)

        def write() -> None:
            assert tracker is not None, "the first process has one"
            tracker.picture("samples", iteration, picture)
            tracker.picture("scores", iteration, score_panel(self.backbone, rollout))

        self.parallel.on_main(write)

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


def lr_scale(optim: OptimConfig, iteration: int, iterations: int) -> float:
    """The share of its learning rates that iteration `iteration` (from 0) of `iterations` steps with, in (0, 1]."""
    rise = (iteration + 1) / (optim.lr_warmup + 1)
    fall = (iterations - iteration) / (optim.lr_decay + 1)
    return min(1.0, rise, fall)


def _gap(rollout: Rollout) -> Tensor:
    return (rollout.f_real - rollout.f_fake).abs().mean()


def _done_by_main(parallel: Parallel, work: Callable[[], T]) -> T:
    """Return the first process's result on every process; if it raises RMDError, raise it on all of them."""
    made: list[T] = []
    parallel.on_main(lambda: made.append(work()))
    return parallel.from_main(made)[0]
