"""The curriculum that trains the scenes' teachers, whatever their family.

The curriculum imitates that of large models (paper, Sec. 1 and Fig. 2): first many low-resolution pictures of
uneven quality, then mostly clean high-resolution ones with a minority of low-resolution batches. The same network
so has a visibly worse distribution at the low resolution, which is the gap that cross-resolution matching closes.

A teacher that shares its VAE with one that is there can imitate it instead of learning from the pictures
(research.scenes.imitation).
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

from research.scenes.checkpoint import Checkpoint
from research.scenes.dataset import BatchOrder
from research.scenes.fitting import Optimizers
from research.scenes.hints import Knowledge
from research.scenes.imitation import Asked, Imitation, encode_some
from research.scenes.vae import encode
from rmd.core.noise import NoiseSchedule, Prediction, per_sample
from rmd.core.plan import Stage
from rmd.core.randomness import generator
from rmd.models.base import Backbone
from rmd.worlds.still.dataset import SceneSet
from rmd.worlds.still.grammar import parse
from rmd.worlds.still.render import object_masks

LOW = Stage(1, 32, 32)
HIGH = Stage(2, 64, 64)
WRONG_CAPTIONS = 0.15
"""Share of the low-resolution pictures that are shown with another one's caption."""
IMITATED_BELOW = 4.0
"""Log signal-to-noise ratio above which the pictures themselves are learned: little is hidden there, and a small error
of the imitated prediction would be a large one of the noise."""


@dataclass(frozen=True)
class Curriculum:
    """How long and on what the teacher trains; an iteration is one optimiser step."""

    low_iterations: int = 3000
    high_iterations: int = 7500
    low_batch: int = 64
    high_batch: int = 32
    low_share: float = 0.12
    """Share of low-resolution batches in the second phase."""
    still_batch: int = 64
    still_share: float = 0.0
    """Share of batches of clips' first frames in the second phase: what things look like is learned from them too, and
    a frame costs a fraction of a clip."""
    drop_caption: float = 0.1
    """Share of samples trained without a caption, for guidance."""
    even: Literal["time", "noise"] = "time"
    """Times are drawn evenly in the schedule's own time, or in the share of the noise, sigma / (alpha + sigma)."""
    hint: float = 0.2
    """Weight of an imitated teacher's hidden states in the loss; it falls with the learning rate."""
    objects: float = 0.0
    """Share of the loss that is spread over the pictures' objects alone; it needs to be known where they are."""
    pairs: int = 1
    """How often a picture of two objects is shown for each time that one of a single object is."""
    lr: float = 1e-3
    """Of AdamW, for embeddings, norms, biases, and the network's first and last convolution."""
    matrix_lr: float = 2e-3
    """Of Muon, for all other matrices and kernels, scaled to match the size of AdamW's updates."""
    warmup: int = 200
    decay: float = 0.3
    """Last share of the run over which the learning rate falls to zero."""
    ema: float = 0.999
    seed: int = 0

    @property
    def iterations(self) -> int:
        return self.low_iterations + self.high_iterations

    def times(self, schedule: NoiseSchedule, u: Tensor) -> Tensor:
        """Times of the schedule, 0..1000, at fractions u in (0, 1) of the way from data to noise."""
        return 1000 * u if self.even == "time" else schedule.time(2 * torch.log((1 - u) / u))

    def lr_factor(self, step: int) -> float:
        """Warm up, hold, then fall linearly."""
        left = (self.iterations - step) / (self.decay * self.iterations)
        return min(1.0, (step + 1) / self.warmup, max(left, 0.0))


@dataclass(frozen=True)
class Latents:
    """Scaled latents of one resolution in half precision, each with its caption.

    `objects` (n, 1, h, w), bool, says where the objects are, if that is known; `known` (n, tokens, k), what else is
    known of the picture at every token of its network, for hints.
    """

    values: Tensor
    captions: list[str]
    objects: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What a network is taught in one step: latents in float32, and what is known of them as in `Latents`."""

    latents: Tensor
    captions: list[str]
    stage: Stage
    objects: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class LatentSets:
    """What a teacher learns from."""

    high: Latents
    low: Latents
    still: Latents | None = None
    """First frames of clips at the high resolution, as clips of one frame."""


def still_latents(vae: AutoencoderKL, clean: SceneSet, poor: SceneSet, *, seed: int) -> LatentSets:
    """Encode pictures: `clean` for the high resolution, as they are; `poor` for the low one, degraded here."""
    high, low = [], []
    for index in torch.arange(len(clean)).split(512):
        high.append(encode(vae, clean.pixels(index)).half())
    g = generator(seed, "degrade")
    for index in torch.arange(len(poor)).split(512):
        low.append(encode(vae, degrade(F.avg_pool2d(poor.pixels(index), 2), g)).half())
    return LatentSets(
        Latents(torch.cat(high), clean.captions, object_masks(clean.places, high[0].shape[-1])),
        Latents(torch.cat(low), partly_wrong(poor.captions, g), object_masks(poor.places, low[0].shape[-1])),
    )


def partly_wrong(captions: list[str], g: torch.Generator) -> list[str]:
    """The captions, a share of `WRONG_CAPTIONS` of them replaced by another's."""
    wrong = torch.rand(len(captions), generator=g) < WRONG_CAPTIONS
    order = torch.randperm(len(captions), generator=g)
    return [captions[int(order[i]) if wrong[i] else i] for i in range(len(captions))]


def train_teacher(
    backbone: Backbone, data: LatentSets, curriculum: Curriculum, *, imitated: Backbone | None = None,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train denoiser and text encoder together; the backbone holds the averaged weights at the end.

    Args:
        backbone: an untrained backbone around a trained VAE, which made the latents of `data`.
        imitated: a trained teacher with the same VAE, whose predictions are learned instead of the pictures.
        checkpoint: file that a killed run goes on from, kept after every `every` iterations.

    Returns:
        Seconds the training took, those before a kill included.
    """
    trained = nn.ModuleList([backbone.denoiser, *backbone.text_encoders])
    imitation = knowledge = None
    if imitated is not None:
        imitation = Imitation(imitated, backbone, seed=curriculum.seed)
        trained.append(imitation.head)
    elif data.high.known is not None:
        knowledge = Knowledge(backbone, data.high.known.shape[-1], seed=curriculum.seed)
        trained.append(knowledge.head)
    averaged = deepcopy(trained).requires_grad_(False)
    optimizers = Optimizers(trained, lr=curriculum.lr, matrix_lr=curriculum.matrix_lr)
    order = _Order(data, curriculum)
    state = Checkpoint(
        checkpoint, every, trained=trained, averaged=averaged, muon=optimizers.muon, adamw=optimizers.adamw
    )
    start = state.restore()
    trained.train()
    with imitation or knowledge or nullcontext():
        for step in range(start, curriculum.iterations):
            loss = denoising_loss(
                backbone, order.batch(step), step=step, curriculum=curriculum, imitation=imitation, knowledge=knowledge
            )
            trained.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizers.step(curriculum.lr_factor(step))
            decay = min(curriculum.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(averaged.parameters()), list(trained.parameters()), 1 - decay)
            if step % 100 == 0:
                log(f"teacher step {step}/{curriculum.iterations} loss {loss.item():.4f} {state.seconds:.0f}s")
            state.after(step + 1)
    trained.load_state_dict(averaged.state_dict())
    trained.eval().requires_grad_(False)
    return state.seconds


def denoising_loss(
    backbone: Backbone, batch: Batch, *, step: int, curriculum: Curriculum, imitation: Imitation | None = None,
    knowledge: Knowledge | None = None,
) -> Tensor:  # fmt: skip
    """Mean squared error of the network's own prediction target at stratified times.

    Args:
        batch: the curriculum's share of the loss for objects is spread where it says that they are.
        imitation: where it is given, x0 is what that teacher predicts from the same noisy latents, not the batch's own,
            and the errors of its hidden states are added.
        knowledge: where it is given, the error of what is known of the batch is added.
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
    output = backbone.forward(backbone.denoiser, x_t, timestep, backbone.stage_cond(cond, stage, HIGH))
    alpha = per_sample(backbone.schedule.alpha(times), latents)
    sigma = per_sample(backbone.schedule.sigma(times), latents)
    weight, hint = curriculum.hint * curriculum.lr_factor(step), latents.new_zeros(())
    if imitation is not None:
        found = imitation.x0(Asked(x_t, cond, backbone.schedule, times, captions, keep, stage, HIGH))
        hidden = per_sample(backbone.schedule.logsnr(times), latents) < IMITATED_BELOW
        latents = torch.where(hidden, found, latents)
        eps = torch.where(hidden, (x_t - alpha * found) / sigma, eps)
        if weight:
            hint = weight * imitation.hint_loss()
    if knowledge is not None and batch.known is not None and weight:
        hint = weight * knowledge.hint_loss(batch.known)
    error = (output - prediction_target(latents, eps, alpha, sigma, backbone.prediction)).square()
    if batch.objects is not None and curriculum.objects:
        error = error * emphasis(batch.objects, curriculum.objects)
    return error.mean() + hint


def emphasis(objects: Tensor, share: float) -> Tensor:
    """Weights (B, 1, h, w) of mean one for each sample, of which `share` lies on its objects alone.

    Where targets are exact, as an imitated teacher's are, what is learned in the end does not depend on weights.
    """
    inside = objects.float()
    return 1 - share + share * inside / inside.mean((-1, -2), keepdim=True).clamp_min(1e-6)


def prediction_target(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """What a network of the given kind should output for a known (x0, eps)."""
    targets = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}
    return targets[prediction]


def degrade(images: Tensor, g: torch.Generator, *, each: int = 1) -> Tensor:
    """Uneven quality for (n, 3, s, s) images in [-1, 1]: each is blurred, recoloured or made noisy by chance.

    Args:
        each: so many images in a row are frames of one clip, and share everything but the noise itself.
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


class _Order:
    """The batch of a step as a function of the step alone."""

    def __init__(self, data: LatentSets, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self._low = _Shown(data.low, LOW, curriculum.low_batch, curriculum)
        self._high = _Shown(data.high, HIGH, curriculum.high_batch, curriculum)
        if curriculum.still_share and data.still is None:
            raise ValueError("the curriculum has a share of first frames, but there are none in the data")
        self._still = None if data.still is None else _Shown(data.still, HIGH, curriculum.still_batch, curriculum)

    def batch(self, step: int) -> Batch:
        drawn = float(torch.rand((), generator=generator(self.curriculum.seed, "phase", step)))
        first_phase = step < self.curriculum.low_iterations
        if first_phase or drawn < self.curriculum.low_share:
            return self._low.batch(step)
        if self._still is not None and drawn < self.curriculum.low_share + self.curriculum.still_share:
            return self._still.batch(step)
        return self._high.batch(step)


class _Shown:
    """The pictures of one resolution, in batches."""

    def __init__(self, data: Latents, stage: Stage, size: int, curriculum: Curriculum) -> None:
        self.data, self.stage = data, stage
        often = [curriculum.pairs if (found := parse(text)) and found.is_pair else 1 for text in data.captions]
        self._entries = torch.arange(len(often)).repeat_interleave(torch.tensor(often))
        self._order = BatchOrder(len(self._entries), size, seed=curriculum.seed)

    def batch(self, step: int) -> Batch:
        index = self._entries[self._order.at(step)]
        captions = [self.data.captions[int(i)] for i in index]
        objects, known = (None if part is None else part[index] for part in (self.data.objects, self.data.known))
        return Batch(self.data.values[index].float(), captions, self.stage, objects, known)
