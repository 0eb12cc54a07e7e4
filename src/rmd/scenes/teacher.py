"""The curriculum that trains the scenes' teachers, whatever their family.

The curriculum imitates that of large models (paper, Sec. 1 and Fig. 2): first many low-resolution pictures of
uneven quality, then mostly clean high-resolution ones with a minority of low-resolution batches. The same network
so has a visibly worse distribution at the low resolution, which is the gap that cross-resolution matching closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmd.backbones.base import Backbone, Cond
from rmd.noise import Prediction, per_sample
from rmd.plan import Stage
from rmd.randomness import generator
from rmd.scenes.checkpoint import Checkpoint
from rmd.scenes.dataset import SceneSet, batches
from rmd.scenes.vae import encode

LOW = Stage(1, 32, 32)
HIGH = Stage(2, 64, 64)


@dataclass(frozen=True)
class Curriculum:
    """How long and on what the teacher trains; an iteration is one optimiser step."""

    low_iterations: int = 3000
    high_iterations: int = 4500
    low_batch: int = 64
    high_batch: int = 32
    low_share: float = 0.12
    """Share of low-resolution batches in the second phase."""
    drop_caption: float = 0.1
    """Share of samples trained without a caption, for guidance."""
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

    def lr_factor(self, step: int) -> float:
        """Warm up, hold, then fall linearly."""
        left = (self.iterations - step) / (self.decay * self.iterations)
        return min(1.0, (step + 1) / self.warmup, max(left, 0.0))


def train_teacher(
    backbone: Backbone, clean: SceneSet, poor: SceneSet, curriculum: Curriculum, *, checkpoint: Path | None = None,
    every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train denoiser and text encoder together; the backbone holds the averaged weights at the end.

    Args:
        backbone: an untrained backbone around a trained VAE.
        clean: pictures for the high resolution, shown as they are.
        poor: pictures for the low resolution, degraded here.
        checkpoint: file that a killed run goes on from, kept after every `every` iterations.

    Returns:
        Seconds the training took, those before a kill included.
    """
    trained = nn.ModuleList([backbone.denoiser, *_text_encoders(backbone)])
    averaged = deepcopy(trained).requires_grad_(False)
    optimizers = Optimizers(trained, curriculum)
    data = _LatentData(backbone, clean, poor, curriculum)
    state = Checkpoint(
        checkpoint, every, trained=trained, averaged=averaged, muon=optimizers.muon, adamw=optimizers.adamw
    )
    start = state.restore()
    trained.train()
    for step in range(start, curriculum.iterations):
        loss = denoising_loss(backbone, *data.batch(step), step=step, curriculum=curriculum)
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


class Optimizers:
    """Muon for matrices and convolution kernels, AdamW for all else.

    On these teachers Muon reaches AdamW's loss in about two thirds of the iterations. It takes matrices only, so it
    is given kernels as views of (out, in * height * width).
    """

    _elementwise = ("embed", "conv_in", "conv_out", "proj_out")
    """Names of layers next to the network's inputs and outputs, where Muon does not apply."""

    def __init__(self, trained: nn.Module, curriculum: Curriculum) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        others = []
        for name, parameter in trained.named_parameters():
            if parameter.ndim < 2 or any(part in name for part in self._elementwise):
                others.append(parameter)
            else:
                self._pairs.append((parameter, nn.Parameter(parameter.detach().view(parameter.shape[0], -1))))
        self.muon = torch.optim.Muon(
            [matrix for _, matrix in self._pairs],
            lr=curriculum.matrix_lr,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(others, lr=curriculum.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self._rates: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (self.muon, curriculum.matrix_lr),
            (self.adamw, curriculum.lr),
        )

    def step(self, factor: float) -> None:
        """One update with `factor` times the learning rates, from the gradients of the trained parameters."""
        for parameter, matrix in self._pairs:
            matrix.grad = None if parameter.grad is None else parameter.grad.view_as(matrix)
        for optimizer, lr in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()


def denoising_loss(
    backbone: Backbone, latents: Tensor, captions: list[str], stage: Stage, *, step: int, curriculum: Curriculum
) -> Tensor:
    """Mean squared error of the network's own prediction target at stratified uniform times."""
    g = generator(curriculum.seed, "teacher", step)
    count = latents.shape[0]
    times = 1000 * (torch.randperm(count, generator=g) + torch.rand(count, generator=g, dtype=torch.float64)) / count
    eps = torch.randn(latents.shape, generator=g)
    keep = torch.rand(count, generator=g) >= curriculum.drop_caption
    cond = backbone.encode(captions)
    null = backbone.null(count)
    cond = Cond(
        {k: torch.where(keep.view(-1, *[1] * (v.ndim - 1)), v, null.tensors[k]) for k, v in cond.tensors.items()}
    )
    x_t = backbone.schedule.add_noise(latents, eps, times)
    timestep = backbone.schedule.model_timestep(times).float()
    output = backbone.forward(backbone.denoiser, x_t, timestep, backbone.stage_cond(cond, stage, HIGH))
    alpha = per_sample(backbone.schedule.alpha(times), latents)
    sigma = per_sample(backbone.schedule.sigma(times), latents)
    return F.mse_loss(output, prediction_target(latents, eps, alpha, sigma, backbone.prediction))


def prediction_target(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """What a network of the given kind should output for a known (x0, eps)."""
    targets = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}
    return targets[prediction]


def degrade(images: Tensor, g: torch.Generator) -> Tensor:
    """Uneven quality for (n, 3, s, s) images in [-1, 1]: each is blurred, recoloured or made noisy by chance."""
    n = images.shape[0]

    def chance(p: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=g) < p).float()

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    images = torch.lerp(images, blurred, chance(0.5) * torch.rand(n, 1, 1, 1, generator=g))
    gain = 1 + 0.35 * (2 * torch.rand(n, 3, 1, 1, generator=g) - 1)
    offset = 0.25 * (2 * torch.rand(n, 3, 1, 1, generator=g) - 1)
    images = torch.lerp(images, images * gain + offset, chance(0.5))
    noise = 0.12 * torch.rand(n, 1, 1, 1, generator=g) * torch.randn(images.shape, generator=g)
    return (images + chance(0.4) * noise).clamp(-1, 1)


class _LatentData:
    """Latents of both data sets in memory, and the batch of a step as a function of the step alone."""

    wrong_captions = 0.15

    def __init__(self, backbone: Backbone, clean: SceneSet, poor: SceneSet, curriculum: Curriculum) -> None:
        vae = backbone.pipe.vae
        self.curriculum, self.clean, self.poor = curriculum, clean, poor
        high, low = [], []
        for index in torch.arange(len(clean)).split(512):
            high.append(encode(vae, clean.pixels(index)).half())
        g = generator(curriculum.seed, "degrade")
        for index in torch.arange(len(poor)).split(512):
            low.append(encode(vae, degrade(F.avg_pool2d(poor.pixels(index), 2), g)).half())
        self.high, self.low = torch.cat(high), torch.cat(low)
        wrong = torch.rand(len(poor), generator=g) < self.wrong_captions
        order = torch.randperm(len(poor), generator=g)
        self.poor_captions = [poor.captions[int(order[i]) if wrong[i] else i] for i in range(len(poor))]
        self._low_index = _Rewind(lambda: batches(len(poor), curriculum.low_batch, seed=curriculum.seed))
        self._high_index = _Rewind(lambda: batches(len(clean), curriculum.high_batch, seed=curriculum.seed))

    def batch(self, step: int) -> tuple[Tensor, list[str], Stage]:
        g = generator(self.curriculum.seed, "phase", step)
        first_phase = step < self.curriculum.low_iterations
        if first_phase or float(torch.rand((), generator=g)) < self.curriculum.low_share:
            index = self._low_index.at(step)
            return self.low[index].float(), [self.poor_captions[int(i)] for i in index], LOW
        index = self._high_index.at(step)
        return self.high[index].float(), [self.clean.captions[int(i)] for i in index], HIGH


class _Rewind:
    """Random access to an endless iterator of batches, cheap when positions grow."""

    def __init__(self, make: Callable[[], Iterator[Tensor]]) -> None:
        self.make, self.iterator, self.position = make, make(), 0

    def at(self, position: int) -> Tensor:
        if position < self.position:
            self.iterator, self.position = self.make(), 0
        while self.position < position:
            next(self.iterator)
            self.position += 1
        self.position += 1
        return next(self.iterator)


def _text_encoders(backbone: Backbone) -> list[nn.Module]:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    parts = backbone.pipe.components
    return [parts[name] for name in names if isinstance(parts.get(name), nn.Module)]
