"""Training of the teachers of the scenes, of every family.

The curriculum follows that of large models (paper, Sec. 1 and Fig. 2): first many low-resolution pictures of uneven
quality, then mostly clean high-resolution ones with a minority of low-resolution batches. As a result, the network's
distribution at the low resolution is visibly worse, which is the gap that cross-resolution matching closes.

A teacher can also imitate a trained one that has the same VAE, instead of learning from pictures; see
`research.scenes.imitation`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from research.scenes.checkpoint import Checkpoint, read_whole, write_whole
from research.scenes.dataset import BatchOrder
from research.scenes.hints import LabelHints
from research.scenes.imitation import Imitation, Query, encode_some
from research.scenes.optimisation import Optimizers, Precision, reduced
from research.scenes.vae import encode
from rmd.core.noise import NoiseSchedule, Prediction, per_sample
from rmd.core.plan import Stage
from rmd.core.randomness import generator
from rmd.models.base import Backbone
from rmd.worlds.dataset import SceneSet
from rmd.worlds.still.render import object_masks
from rmd.worlds.vistas.canvas import CANVAS as VISTA_CANVAS

LOW = Stage(1, 32, 32)
HIGH = Stage(2, 64, 64)
WRONG_CAPTIONS = 0.15
"""Fraction of the low-resolution pictures that get the caption of another one."""
IMITATED_BELOW = 4.0
"""logSNR below which a teacher imitates. Above, it learns from the pictures themselves: little of them is hidden there,
and a small error of the imitated prediction of x0 would be a large error of the noise."""


@dataclass(frozen=True)
class Curriculum:
    """Settings of a teacher's training; an iteration is one optimiser step."""

    low_iterations: int = 3000
    high_iterations: int = 7500
    low_batch: int = 64
    high_batch: int = 32
    low_share: float = 0.12
    """Fraction of low-resolution batches in the second phase."""
    still_batch: int = 64
    still_share: float = 0.0
    """Fraction of batches of first frames of clips in the second phase. They teach what things look like, and a frame
    costs a fraction of a clip."""
    drop_caption: float = 0.1
    """Fraction of samples without a caption, for classifier-free guidance."""
    uniform_in: Literal["time", "noise"] = "time"
    """Quantity in which times are uniform: the schedule's own time, or the share of noise, sigma / (alpha + sigma)."""
    hint: float = 0.2
    """Weight of the hints (`research.scenes.hints`) in the loss; it falls with the learning rate."""
    objects: float = 0.0
    """Fraction of the loss that is concentrated on the objects, if their positions are known."""
    pairs: int = 1
    """Number of times that a picture of two objects appears per epoch; one of a single object appears once."""
    lr: float = 1e-3
    """Learning rate of AdamW, for embeddings, norms, biases, and the first and last layers of the network."""
    matrix_lr: float = 2e-3
    """Learning rate of Muon, for all other matrices and kernels, scaled to match the size of AdamW's updates."""
    warmup: int = 200
    decay: float = 0.3
    """Fraction of the run, at the end, in which the learning rate falls to zero."""
    ema: float = 0.999
    precision: Precision = "float32"
    """Precision of the networks' matrix products. A processor with instructions for bfloat16 saves a third of the time
    with it."""
    seed: int = 0

    @property
    def iterations(self) -> int:
        """Iterations of both phases."""
        return self.low_iterations + self.high_iterations

    def times(self, schedule: NoiseSchedule, u: Tensor) -> Tensor:
        """Return times in 0 to 1000 for fractions u in (0, 1) of the way from data to noise."""
        return 1000 * u if self.uniform_in == "time" else schedule.time(2 * torch.log((1 - u) / u))

    def lr_factor(self, step: int) -> float:
        """Return the learning rate's factor at a step: it warms up, holds, and falls linearly."""
        left = (self.iterations - step) / (self.decay * self.iterations)
        return min(1.0, (step + 1) / self.warmup, max(left, 0.0))


@dataclass(frozen=True)
class Latents:
    """Scaled latents of one resolution.

    Attributes:
        values: the latents, in half precision.
        captions: one caption per latent.
        objects: masks of the objects (n, 1, h, w), bool, if known.
        labels: labels of every token of the network (n, tokens, k) for hints, if known.
        pairs: which pictures show two objects, (n,) bool, if known.
    """

    values: Tensor
    captions: list[str]
    objects: Tensor | None = None
    labels: Tensor | None = None
    pairs: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """The training data of one step: latents in float32, their stage and the last one, and the rest as in `Latents`."""

    latents: Tensor
    captions: list[str]
    stage: Stage
    objects: Tensor | None = None
    labels: Tensor | None = None
    final: Stage = HIGH


@dataclass(frozen=True)
class LatentSets:
    """The training data of a teacher: latents of both resolutions."""

    high: Latents
    low: Latents
    still: Latents | None = None
    """First frames of clips, at the high resolution and as clips of one frame."""
    stages: tuple[Stage, Stage] = (LOW, HIGH)
    """The low and the high resolution."""


def kept_latents(path: Path, make: Callable[[], LatentSets]) -> LatentSets:
    """Return the latents in a file, or make them and write it: encoding takes minutes. Stages are not kept.

    Raises:
        RMDError: the file is damaged, or cannot be written.
    """
    if path.exists():
        whole = {name: Latents(**values) for name, values in read_whole(path).items()}
        return LatentSets(whole["high"], whole["low"], whole.get("still"))
    sets = make()
    kept = {"high": sets.high, "low": sets.low, "still": sets.still}
    write_whole({name: vars(latents) for name, latents in kept.items() if latents is not None}, path)
    return sets


def still_latents(vae: AutoencoderKL, clean: SceneSet, poor: SceneSet, *, seed: int) -> LatentSets:
    """Encode the clean pictures at the high resolution, and the poor ones, which are degraded here, at the low one."""
    high, low = [], []
    for index in torch.arange(len(clean)).split(512):
        high.append(encode(vae, clean.pixels(index)).half())
    g = generator(seed, "degrade")
    for index in torch.arange(len(poor)).split(512):
        low.append(encode(vae, degrade(F.avg_pool2d(poor.pixels(index), 2), g)).half())
    return LatentSets(
        Latents(
            torch.cat(high), clean.captions, object_masks(clean.places, high[0].shape[-1]), pairs=pairs_of(clean)
        ),
        Latents(
            torch.cat(low), partly_wrong(poor.captions, g), object_masks(poor.places, low[0].shape[-1]),
            pairs=pairs_of(poor),
        ),
    )  # fmt: skip


def vista_latents(vae: AutoencoderKL, clean: SceneSet, poor: SceneSet, *, seed: int) -> LatentSets:
    """Encode clean vistas at 128 px and poor ones, which are wrong in their structure, at 64 px.

    Half of the poor ones are blurred, recoloured or noisy, too. Only the clean ones have masks of their objects: a poor
    one may show its object twice.
    """
    g = generator(seed, "degrade")
    high, low = [], []
    for index in torch.arange(len(clean)).split(256):
        high.append(encode(vae, clean.pixels(index), chunk=32).half())
    for index in torch.arange(len(poor)).split(256):
        small = F.avg_pool2d(poor.pixels(index), 2)
        spoilt = torch.rand((len(index), 1, 1, 1), generator=g) < 0.5
        low.append(encode(vae, torch.where(spoilt, degrade(small, g), small)).half())
    return LatentSets(
        Latents(
            torch.cat(high), clean.captions, object_masks(clean.places, high[0].shape[-1], canvas=VISTA_CANVAS),
            pairs=pairs_of(clean),
        ),
        Latents(torch.cat(low), poor.captions, pairs=pairs_of(poor)),
    )  # fmt: skip


def pairs_of(scenes: SceneSet) -> Tensor:
    """Return which pictures show two objects, (n,) bool."""
    return scenes.places[:, 1, 2] > 0


def partly_wrong(captions: list[str], g: torch.Generator) -> list[str]:
    """Return the captions, of which a fraction of `WRONG_CAPTIONS` is replaced by the caption of another picture."""
    wrong = torch.rand(len(captions), generator=g) < WRONG_CAPTIONS
    order = torch.randperm(len(captions), generator=g)
    return [captions[int(order[i]) if wrong[i] else i] for i in range(len(captions))]


def train_teacher(
    backbone: Backbone, data: LatentSets, curriculum: Curriculum, *, imitated: Backbone | None = None,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the denoiser and the text encoder together; in the end, the backbone has the averaged weights.

    Args:
        backbone: an untrained backbone with a trained VAE, which encoded `data`.
        data: the training data.
        curriculum: settings of the training.
        imitated: a trained teacher with the same VAE to imitate, instead of learning from the pictures.
        checkpoint: file from which an interrupted training resumes; written every `every` iterations.
        log: receives progress messages.

    Returns:
        Seconds of training, including those before an interruption.
    """
    trained = nn.ModuleList([backbone.denoiser, *backbone.text_encoders])
    imitation = hints = None
    if imitated is not None:
        imitation = Imitation(imitated, backbone, seed=curriculum.seed)
        trained.append(imitation.head)
    elif data.high.labels is not None:
        hints = LabelHints(backbone, data.high.labels.shape[-1], seed=curriculum.seed)
        trained.append(hints.head)
    averaged = deepcopy(trained).requires_grad_(False)
    optimizers = Optimizers(trained, lr=curriculum.lr, matrix_lr=curriculum.matrix_lr)
    batches = BatchSchedule(data, curriculum)
    state = Checkpoint(
        checkpoint, every, trained=trained, averaged=averaged, muon=optimizers.muon, adamw=optimizers.adamw
    )
    trained.train()
    with imitation or hints or nullcontext():
        for step in range(state.restore(), curriculum.iterations):
            with reduced(curriculum.precision):
                loss = denoising_loss(
                    backbone, batches.batch(step), step=step, curriculum=curriculum, imitation=imitation, hints=hints
                )
            trained.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizers.step(curriculum.lr_factor(step))
            _average(averaged, trained, min(curriculum.ema, (step + 1) / (step + 10)))
            if step % 100 == 0:
                log(f"teacher step {step}/{curriculum.iterations} loss {loss.item():.4f} {state.seconds:.0f}s")
            state.after(step + 1)
    trained.load_state_dict(averaged.state_dict())
    trained.eval().requires_grad_(False)
    return state.seconds


@torch.no_grad()
def _average(averaged: nn.Module, trained: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the trained ones by 1 - decay."""
    torch._foreach_lerp_(list(averaged.parameters()), list(trained.parameters()), 1 - decay)


def denoising_loss(
    backbone: Backbone, batch: Batch, *, step: int, curriculum: Curriculum, imitation: Imitation | None = None,
    hints: LabelHints | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean squared error of the network's own prediction target at stratified times, plus hints.

    Args:
        backbone: the teacher in training.
        batch: the data of the step.
        step: the step, which determines all random numbers.
        curriculum: settings of the training.
        imitation: if given, the target x0 is what the imitated teacher predicts from the same noisy latents, and the
            errors of hidden states are added.
        hints: if given, the error of the hidden layer's prediction of the batch's labels is added.
    """
    latents, captions, stage = batch.latents, batch.captions, batch.stage
    g = generator(curriculum.seed, "teacher", step)
    count = latents.shape[0]
    u = (torch.randperm(count, generator=g) + torch.rand(count, generator=g, dtype=torch.float64)) / count
    times = curriculum.times(backbone.schedule, u)
    eps = torch.randn(latents.shape, generator=g)
    keep = torch.rand(count, generator=g) >= curriculum.drop_caption
    x_t = backbone.schedule.add_noise(latents, eps, times)
    timestep = backbone.schedule.model_timestep(times).float()
    cond = encode_some(backbone, captions, keep)
    output = backbone.forward(backbone.denoiser, x_t, timestep, backbone.stage_cond(cond, stage, batch.final))
    alpha = per_sample(backbone.schedule.alpha(times), latents)
    sigma = per_sample(backbone.schedule.sigma(times), latents)
    weight, hint = curriculum.hint * curriculum.lr_factor(step), latents.new_zeros(())
    if imitation is not None:
        predicted = imitation.x0(Query(x_t, cond, backbone.schedule, times, captions, keep, stage, batch.final))
        imitated = per_sample(backbone.schedule.logsnr(times), latents) < IMITATED_BELOW
        latents = torch.where(imitated, predicted, latents)
        eps = torch.where(imitated, (x_t - alpha * predicted) / sigma, eps)
        if weight:
            hint = weight * imitation.hint_loss()
    if hints is not None and batch.labels is not None and weight:
        hint = weight * hints.loss(batch.labels)
    error = (output - prediction_target(latents, eps, alpha, sigma, backbone.prediction)).square()
    if batch.objects is not None and curriculum.objects:
        error = error * emphasis(batch.objects, curriculum.objects)
    return error.mean() + hint


def emphasis(objects: Tensor, share: float) -> Tensor:
    """Return weights (B, 1, h, w) with a mean of one per sample, of which a fraction `share` is on the objects alone.

    With exact targets, such as the predictions of an imitated teacher, weights do not change what is learned in the
    end.
    """
    inside = objects.float()
    return 1 - share + share * inside / inside.mean((-1, -2), keepdim=True).clamp_min(1e-6)


def prediction_target(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Return the correct output of a network with this kind of prediction for a known x0 and eps."""
    targets = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}
    return targets[prediction]


def degrade(images: Tensor, g: torch.Generator, *, each: int = 1) -> Tensor:
    """Blur, recolour and add noise to images (n, 3, s, s) in [-1, 1], each at random and by random amounts.

    Args:
        images: the images.
        g: source of the random numbers.
        each: number of consecutive images that are frames of one clip; they share everything but the noise itself.
    """
    n = images.shape[0] // each

    def draw(channels: int = 1) -> Tensor:
        return torch.rand(n, channels, 1, 1, generator=g).repeat_interleave(each, dim=0)

    def chance(p: float) -> Tensor:
        return (draw() < p).float()

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    images = torch.lerp(images, blurred, chance(0.5) * draw())
    gain = 1 + 0.35 * (2 * draw(3) - 1)
    offset = 0.25 * (2 * draw(3) - 1)
    images = torch.lerp(images, images * gain + offset, chance(0.5))
    noise = 0.12 * draw() * torch.randn(images.shape, generator=g)
    return (images + chance(0.4) * noise).clamp(-1, 1)


class BatchSchedule:
    """The batch of every step, as a function of the step alone."""

    def __init__(self, data: LatentSets, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        low, high = data.stages
        self._low = _Stream(data.low, low, high, curriculum.low_batch, curriculum)
        self._high = _Stream(data.high, high, high, curriculum.high_batch, curriculum)
        if curriculum.still_share and data.still is None:
            raise ValueError("the curriculum has a share of first frames, but there are none in the data")
        self._still = (
            None if data.still is None else _Stream(data.still, high, high, curriculum.still_batch, curriculum)
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        drawn = float(torch.rand((), generator=generator(self.curriculum.seed, "phase", step)))
        first_phase = step < self.curriculum.low_iterations
        if first_phase or drawn < self.curriculum.low_share:
            return self._low.batch(step)
        if self._still is not None and drawn < self.curriculum.low_share + self.curriculum.still_share:
            return self._still.batch(step)
        return self._high.batch(step)


class _Stream:
    """Random batches of the pictures of one resolution."""

    def __init__(self, data: Latents, stage: Stage, final: Stage, size: int, curriculum: Curriculum) -> None:
        self.data, self.stage, self.final = data, stage, final
        pairs = torch.zeros(len(data.captions), dtype=torch.bool) if data.pairs is None else data.pairs
        self._entries = torch.arange(len(pairs)).repeat_interleave(torch.where(pairs, curriculum.pairs, 1))
        self._order = BatchOrder(len(self._entries), size, seed=curriculum.seed)

    def batch(self, step: int) -> Batch:
        index = self._entries[self._order.at(step)]
        captions = [self.data.captions[int(i)] for i in index]
        objects, labels = (None if part is None else part[index] for part in (self.data.objects, self.data.labels))
        return Batch(self.data.values[index].float(), captions, self.stage, objects, labels, self.final)
