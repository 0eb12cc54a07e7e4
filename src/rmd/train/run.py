"""Builds a run: turns a recipe into its plan, teacher, roles, method, optimisers and data, in this order of dependence.

`build_run` is the only place where this happens; training (`rmd.train.loop`), the dry run and the benchmarks use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.data.cache import PromptCache, encoders_key
from rmd.data.images import Images, load_images
from rmd.data.online import OnlineEncoder
from rmd.data.prompts import Prompts, load_prompts
from rmd.methods import METHODS, Batch, Method, Real, Rollout
from rmd.models.base import Backbone
from rmd.models.cond import Cond, Encoder
from rmd.models.resolve import resolve_noise
from rmd.models.roles import TRAINED, Roles, build_roles
from rmd.models.teacher import load_teacher
from rmd.recipes.groups import OptimConfig
from rmd.recipes.hashes import run_hash
from rmd.recipes.schema import Recipe
from rmd.train.checkpoint import Trained
from rmd.train.folder import CHECKPOINTS
from rmd.train.guard import Best, CollapseGuard
from rmd.train.identity import Identity, images_key, network_key
from rmd.train.marks import MarkBook, Marks
from rmd.train.panels import groups
from rmd.train.parallel import Parallel, full
from rmd.train.tracking import check_trackers
from rmd.train.weights import TeacherWeights, load_sharded_teacher

PANEL_PROMPTS = 8
"""Number of prompts in a run's pictures, and of held-out samples."""
HELD_OUT = -1
"""Iteration number that keys the noise of samples on which nothing is trained."""
Judge = Callable[[nn.Module], Marks]
OnIteration = Callable[[int, dict[str, float]], None]


@dataclass(kw_only=True, eq=False)
class Run:
    """Everything that a recipe stands for, built and ready to be trained; one in each process."""

    recipe: Recipe
    backbone: Backbone
    device: torch.device
    """The backbone's device, stored because a pipeline searches all its modules for it."""
    folder: Path
    parallel: Parallel
    plan: StepPlan
    roles: Roles
    method: Method
    trained: Trained
    prompts: Prompts
    images: Images | None
    """Real images, if the method needs them."""
    encoder: Encoder
    """The encoder of prompts: the backbone itself, a cache on disk, or the backbone behind a cache in memory."""
    identity: Identity
    guard: CollapseGuard = field(default_factory=CollapseGuard)
    best: Best | None = None
    """The best iteration so far, as marked by `judge`."""
    judge: Judge | None = None
    """Marks the student's network every `evaluation.every` iterations."""
    marks: MarkBook | None = None
    """The marks so far, in the first process of a run that is judged."""
    on_iteration: OnIteration | None = None
    """Called by the first process after each iteration, with the number of iterations done and the metrics."""
    stop_requested: bool = False
    """Set by a signal, or by a callback: the run ends after the next iteration, which is saved."""
    _null: Cond | None = field(default=None, init=False)
    """The unconditional branch's conditioning of one sample, once it has been encoded."""

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def at_once(self) -> int:
        """Number of samples that this process computes together."""
        train = self.recipe.train
        return train.batch_size // (self.parallel.dp * train.gradient_accumulation_steps)

    def batches(self, iteration: int) -> list[Batch]:
        """Return this process's micro-batches of an iteration.

        The result depends on nothing but the iteration: prompts are drawn, and noise is keyed, by the global numbers of
        the samples.
        """
        texts, samples = self.prompts.batch(iteration, self.recipe.train.batch_size)
        batches = []
        for part in self.parallel.micro_batches(
            list(zip(texts, samples, strict=True)), self.recipe.train.gradient_accumulation_steps
        ):
            with torch.no_grad():
                cond, null = (c.to(self.device) for c in self.encoded([text for text, _ in part]))
            numbers = [sample for _, sample in part]
            noise = CounterNoise(self.recipe.train.seed, numbers, step=iteration, device=self.device)
            batches.append(Batch(iteration, cond, null, noise, self._real(numbers)))
        return batches

    @torch.no_grad()
    def _real(self, samples: Sequence[int]) -> Real | None:
        """Return the real images that go with samples, or None if the method needs none."""
        if self.images is None:
            return None
        pixels, captions = self.images.batch(samples)
        cond, _ = self.encoded(captions)
        return Real(self.backbone.encode_images(pixels), cond.to(self.device))

    def encoded(self, texts: Sequence[str]) -> tuple[Cond, Cond]:
        """Return the conditioning for prompts, and the unconditional branch's for as many samples."""
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder.null(1)
        return self.encoder.encode(texts), self._null.expand(len(texts))

    def panel_prompts(self) -> Sequence[str]:
        """Return the prompts that are sampled for the run's pictures."""
        return self.prompts.batch(0, PANEL_PROMPTS)[0]

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Measure how well the fake score knows the student, on samples on which nothing is trained.

        The student samples the panel's prompts at every step, and each sample is noised into the step's segment.

        Returns:
            For each step, `held_out/fake_error/step-K`, the root mean square error of the fake score's prediction, and
            `held_out/gap/step-K`, the mean absolute difference between the teacher's and the fake score's predictions.
        """
        texts = self.panel_prompts()
        cond, null = (c.to(self.device) for c in self.encoded(texts))
        evaluations, values = Counter(self.method.evaluations), []
        for step in self.plan.steps:
            errors, gaps = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
            for numbers, part in groups(cond, self.at_once):
                noise = CounterNoise(self.recipe.train.seed, numbers, step=HELD_OUT, device=self.device)
                (_, nothing), *_ = groups(null, len(part))
                batch = Batch(HELD_OUT, part, nothing, noise)
                _, rollout = self.method.student_loss(batch, step)
                errors += (rollout.f_fake - rollout.y).square().mean() * (len(part) / len(texts))
                gaps += score_gap(rollout) * (len(part) / len(texts))
            values += [errors.sqrt(), gaps]
        self.method.evaluations = evaluations
        names = [f"held_out/{kind}/step-{step.index}" for step in self.plan.steps for kind in ("fake_error", "gap")]
        return dict(zip(names, torch.stack(values).tolist(), strict=True))

    def student_state(self) -> dict[str, Tensor]:
        """Return the student's weights to sample with and to export: its moving average, if one is kept.

        The tensors are sharded if the run is.
        """
        return self.trained.average or self.roles.state("student")

    def gathered_student(self) -> dict[str, Tensor]:
        """Return `student_state` as full tensors on the CPU of the first process, and nothing on the others.

        All processes must call this.
        """
        state = {}
        for name, tensor in self.student_state().items():
            gathered = full(tensor)
            if self.parallel.main:
                state[name] = gathered.cpu()
        return state

    @contextmanager
    def averaged_student(self) -> Iterator[nn.Module]:
        """Load `student_state` into the student's network, and yield the network, for the duration of the block."""
        current = {name: value.clone() for name, value in self.roles.state("student").items()}
        self.roles.load_state("student", self.student_state())
        try:
            with self.roles.use("student") as student:
                yield student
        finally:
            self.roles.load_state("student", current)


def build_run(
    recipe: Recipe,
    backbone: Backbone | None = None,
    *,
    folder: Path,
    parallel: Parallel | None = None,
    weights: TeacherWeights | None = None,
    device: torch.device | None = None,
    encoder: Encoder | None = None,
) -> Run:
    """Build everything that a recipe stands for; nothing is written.

    Args:
        recipe: the recipe.
        backbone: the teacher, which the run takes over; by default it is loaded as the recipe says.
        folder: the folder of the run.
        parallel: the place of this process among those of the run; by default it is the only one.
        weights: the files of the denoiser's weights, for a given backbone whose denoiser does not hold them yet.
        device: where a teacher that is loaded here computes; by default the CPU.
        encoder: what encodes prompts, instead of what the recipe's `data` asks for.

    Raises:
        RMDError: a setting does not fit the teacher, the data or the processes, or a file cannot be read. Everything
            that can be checked before weights are loaded is.
    """
    parallel = Parallel() if parallel is None else parallel
    check_trackers(recipe.train.loggers)
    parallel.micro_batches(range(recipe.train.batch_size), recipe.train.gradient_accumulation_steps)
    prompts = load_prompts(recipe.data, seed=recipe.train.seed)
    if backbone is None:
        backbone, weights = _load_teacher(recipe, parallel, torch.device("cpu") if device is None else device)
    recipe = resolve_noise(recipe, backbone.pipe.scheduler.config)
    plan, denoiser = recipe.build_plan(), backbone.denoiser
    teacher_key = parallel.result_from_main(lambda: network_key(denoiser, weights))
    roles = _build_roles(recipe, backbone, plan, parallel, weights)
    method = METHODS.get(recipe.method.name)(backbone, roles, plan, recipe.method, seed=recipe.train.seed)
    trained = _build_trained(recipe.optim, roles, backbone.device)
    images = load_images(recipe)
    if images is not None and parallel.world > 1:
        raise RMDError("method.adversarial works in one process: start the run without torchrun")
    encoder = _build_encoder(recipe, backbone, prompts) if encoder is None else encoder
    identity = _identify(recipe, backbone, parallel, prompts, images, encoder, teacher_key)
    return Run(
        recipe=recipe, backbone=backbone, device=backbone.device, folder=folder, parallel=parallel, plan=plan,
        roles=roles, method=method, trained=trained, prompts=prompts, images=images, encoder=encoder,
        identity=identity,
    )  # fmt: skip


def score_gap(rollout: Rollout) -> Tensor:
    """Return the mean absolute difference between the teacher's and the fake score's predictions (scalar)."""
    return (rollout.f_real - rollout.f_fake).abs().mean()


def _load_teacher(recipe: Recipe, parallel: Parallel, device: torch.device) -> tuple[Backbone, TeacherWeights | None]:
    """Load the recipe's teacher and move it to the device, except for what stays on the CPU or is sharded later."""
    if parallel.world == 1:
        backbone, weights = load_teacher(recipe), None
    else:
        backbone, weights = load_sharded_teacher(recipe)
    move_teacher(backbone, recipe, device, stay=[] if weights is None else [backbone.denoiser])
    return backbone, weights


def move_teacher(backbone: Backbone, recipe: Recipe, device: torch.device, stay: Sequence[nn.Module] = ()) -> None:
    """Move a teacher to the device where its run computes.

    Args:
        stay: networks that stay where they are, besides text encoders that are not needed on the device.
    """
    stay = list(stay)
    if recipe.data.offload or recipe.data.cache is not None:
        stay += backbone.text_encoders
    for part in backbone.pipe.components.values():
        if isinstance(part, nn.Module) and part not in stay:
            part.to(device)
    backbone.computes_on(device)


def _build_roles(
    recipe: Recipe, backbone: Backbone, plan: StepPlan, parallel: Parallel, weights: TeacherWeights | None
) -> Roles:
    """Make student, teacher and fake score of the teacher's denoiser, and shard them over the processes."""
    if recipe.train.gradient_checkpointing:
        backbone.enable_recompute()
    roles = build_roles(
        backbone.denoiser,
        mode=recipe.roles.mode,
        targets=backbone.adapted(recipe.roles.layers),
        rank=recipe.roles.rank,
        alpha=recipe.roles.alpha,
        seed=recipe.train.seed,
        unread=backbone.unread(backbone.denoiser),
    )
    for network, trained in roles.networks():
        if parallel.cp_mesh is not None:
            backbone.share_tokens(network, parallel.cp_mesh, plan)
        if weights is not None:
            weights.drop(network)
        units = backbone.shard_units(network)
        parallel.shard(network, units, half=trained and recipe.train.dtype == "bfloat16")
        if weights is not None:
            weights.fill(network)
    roles.find_parameters()
    return roles


def _build_trained(optim: OptimConfig, roles: Roles, device: torch.device) -> Trained:
    """Make the optimisers of both trained roles, and the student's moving average if one is kept."""
    optimizers: dict[str, torch.optim.Optimizer] = {
        role: torch.optim.AdamW(
            roles.trainable(role),
            lr=learning_rate,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            fused=device.type == "cuda",  # one or two kernel launches instead of hundreds
        )
        for role, learning_rate in zip(TRAINED, (optim.student_lr, optim.fake_lr), strict=True)
    }
    average = {name: value.clone() for name, value in roles.state("student").items()}
    return Trained(roles, optimizers, average if optim.ema > 0 else {})


def _build_encoder(recipe: Recipe, backbone: Backbone, prompts: Prompts) -> Encoder:
    """Return what encodes the prompts: a cache on disk, a cache in memory, or the backbone's own text encoders."""
    if recipe.data.cache is not None:
        cache = PromptCache(Path(recipe.data.cache))
        cache.check(backbone, prompts.texts)
        return cache
    if recipe.data.prompt_cache_mb or recipe.data.offload:
        return OnlineEncoder(backbone, cache_bytes=recipe.data.prompt_cache_mb * 2**20, offload=recipe.data.offload)
    return backbone


def _identify(
    recipe: Recipe,
    backbone: Backbone,
    parallel: Parallel,
    prompts: Prompts,
    images: Images | None,
    encoder: Encoder,
    teacher_key: str,
) -> Identity:
    """Return the identity of a run.

    Args:
        teacher_key: the `network_key` of the teacher's denoiser.

    Raises:
        RMDError: on every process, if they have not all read the same.
    """
    made_by = encoder.meta.encoders if isinstance(encoder, PromptCache) else None
    encoders = encoders_key(backbone) if made_by is None else made_by
    identity = Identity(
        run_hash=run_hash(recipe),
        prompts=len(prompts.texts),
        prompts_key=prompts.key,
        teacher_key=f"{teacher_key}-{backbone.prediction}-{encoders}",
        images_key=images_key(images),
    )
    (differs,) = parallel.any(identity != parallel.from_main(identity))
    if differs:
        raise RMDError(
            "the processes of this run have read different settings, prompts or text encoders: start all of them "
            "with the same command, and let all machines see the same files"
        )
    return identity
