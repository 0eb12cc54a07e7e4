"""Gates that a world and its teacher must pass before students are trained on it, for the paper's question to be asked.

Cross-resolution matching (paper, Sec. 3.2) is to help where a teacher's low resolution is wrong in structure although
everything that matters could be seen there, and where a crossing in the middle of the schedule costs no detail.
`measure_gates` measures whether this is so:

- what captions name can be seen in pictures of half the size;
- detail that captions do not name has a spectrum like that of natural pictures, and the noise at the crossing hides it;
- pictures without it, enlarged and finished from the crossing, are as good as complete ones;
- the teacher is wrong at the low resolution and right at the full one;
- it loses by sampling in 4 steps instead of 25.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from research.scenes.kits import Kit
from research.scenes.vae import encode
from rmd.common.typed import Strict
from rmd.core.crossing import upsample
from rmd.core.fit import modes_within, power_spectrum
from rmd.core.metrics import Z95, kernel_distance, kernel_distance_gap, standardise
from rmd.core.plan import Stage, build_plan
from rmd.core.randomness import CounterNoise
from rmd.evaluation.paired import finishing_times
from rmd.evaluation.protocol import full_plan
from rmd.models import load_backbone
from rmd.models.base import Backbone
from rmd.models.generate import predictor, sample_latents
from rmd.worlds.judge import Judge, Reading, load_judge
from rmd.worlds.picture import PictureWorld

SEEN = 0.95
"""Share of pictures of half the size that the judge must read rightly."""
SLOPES = (-3.0, -1.5)
"""Exponents of the power of unnamed detail over its frequency that count as natural; 1/f^2 is typical."""
HIDDEN = 0.05
"""Largest power times signal-to-noise ratio of a mode beyond the low resolution at the crossing."""
WRONG, RIGHT = 0.80, 0.97
"""Largest share of right samples at the low resolution, and smallest one at the full one."""
FEW_STEPS = 4
BATCH = 16
"""Number of samples that are made at once."""


@dataclass(frozen=True)
class Gate:
    """A condition and whether it holds.

    Attributes:
        name: what is measured.
        wanted: the condition in words.
        measured: the figure with its interval, in words.
        passed: whether the condition holds.
    """

    name: str
    wanted: str
    measured: str
    passed: bool


class GateReport(Strict):
    """The gates of a world and its teacher, and how they were measured.

    Attributes:
        world: name of the world.
        samples: number of captions.
        steps, guidance: how the teacher sampled.
        crossing: teacher time at which cascades leave the low resolution.
        seed: seed of captions, pictures and samples.
        gates: the conditions, in the order of the table.
    """

    world: str
    samples: int
    steps: int
    guidance: float
    crossing: float
    seed: int
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Bench:
    """A teacher and its judge with captions, pictures of them, and the way in which samples are made."""

    kit: Kit
    backbone: Backbone
    judge: Judge
    captions: list[str]
    asked: Tensor
    pixels: Tensor
    guidance: float
    steps: int
    seed: int

    @property
    def low(self) -> Stage:
        return self.kit.stages[0]

    @property
    def final(self) -> Stage:
        return self.kit.stages[1]

    def read(self, images: Tensor) -> Reading:
        """Return the judge's reading of pictures of any size; small pictures are enlarged."""
        if images.shape[-1] != self.final.width:
            images = upsample(images, (self.final.height, self.final.width), "bilinear")
        return self.judge.assess(images, self.asked)

    @torch.no_grad()
    def sample(self, stage: Stage, steps: int) -> Tensor:
        """Return the teacher's samples at a resolution, conditioned on the full one, as in a cascade."""
        backbone, plan, made = self.backbone, full_plan(self.backbone, stage, steps), []
        for index in torch.arange(len(self.captions)).split(BATCH):
            latents = sample_latents(
                backbone, backbone.denoiser, plan, backbone.encode([self.captions[i] for i in index.tolist()]),
                CounterNoise(self.seed, index.tolist()), null=backbone.null(len(index)), guidance=self.guidance,
                final=self.final,
            )  # fmt: skip
            made.append(backbone.decode(latents).clamp(-1, 1))
        return torch.cat(made)


def open_bench(
    kit: Kit, teacher: Path, judge: Path, *, samples: int, steps: int, guidance: float, seed: int
) -> Bench:  # fmt: skip
    """Load a teacher and a judge, and render pictures.

    Args:
        kit: the world's settings.
        teacher: folder of the pipeline.
        judge: folder of the judge's weights.
        samples: number of captions.
        steps, guidance: how the teacher samples.
        seed: seed of captions, pictures and samples.
    """
    scenes = kit.world.renders(samples, seed=seed, size=kit.stages[1].width)
    return Bench(
        kit, load_backbone(teacher), load_judge(judge, kit.world.untrained_judge()), list(scenes.captions),
        scenes.attributes, scenes.pixels(torch.arange(samples)), guidance, steps, seed,
    )  # fmt: skip


def measure_gates(bench: Bench, *, crossing: float, log: Callable[[str], None] = print) -> list[Gate]:
    """Return all gates.

    Args:
        bench: the teacher, its judge and pictures.
        crossing: teacher time at which a cascade leaves the low resolution, in 0 to 1000.
        log: receives the name of each piece of work that takes long.
    """
    latents = encode(bench.backbone.pipe.vae, bench.pixels, chunk=32)
    small, smaller = (bench.read(F.avg_pool2d(bench.pixels, factor)).right for factor in (2, 4))
    gates = [
        share_gate("pictures of half the size that are read rightly", small.all(1), least=SEEN),
        slope_gate(unnamed_detail(bench.kit.world, len(bench.pixels), seed=bench.seed, size=bench.final.width)),
        hidden_gate(bench, latents, crossing),
    ]
    log("finishing complete and enlarged pictures")
    gates.append(finished_gate(bench, latents, crossing))
    log("sampling at both resolutions")
    full, low = (bench.sample(stage, bench.steps) for stage in (bench.final, bench.low))
    gates += [
        share_gate(
            f"right at the low resolution in {_names(bench, smaller)}",
            bench.read(low).right[:, coarse(smaller)].all(1),
            most=WRONG,
        ),
        share_gate("right at the full resolution", bench.read(full).right.all(1), least=RIGHT),
    ]
    log(f"sampling in {FEW_STEPS} steps")
    gates.append(steps_gate(bench, full, bench.sample(bench.final, FEW_STEPS)))
    return gates


def coarse(smaller: Tensor) -> Tensor:
    """Return which attributes (k,) are of low frequency: right in nearly all pictures of a quarter size, (n, k)."""
    return smaller.double().mean(0) >= SEEN


def unnamed_detail(world: PictureWorld, count: int, *, seed: int, size: int) -> Tensor:
    """Return what random fields alone contribute to pictures (n, 3, size, size).

    It is the difference of two pictures that have everything else in common: the edges of objects and landscapes, which
    dominate the spectrum of whole pictures, cancel.
    """
    batch, other = (world.sample(count, seed=each, text=None) for each in (seed, seed + 1))
    return 2 * (world.paint(batch, size) - world.paint(replace(batch, grain=other.grain), size))


def slope_gate(detail: Tensor) -> Gate:
    """Return whether the spectrum of unnamed detail (n, 3, s, s) falls as that of natural pictures."""
    slope = spectral_slope(detail)
    low, high = SLOPES
    name = "exponent of the power spectrum of detail that captions do not name"
    return Gate(name, f"between {low:g} and {high:g}", f"{slope:.2f}", low <= slope <= high)


def spectral_slope(pixels: Tensor) -> float:
    """Return the exponent a of the power f^a of pictures (n, 3, s, s), fitted from an eighth of Nyquist's frequency up.

    Powers are averaged over rings of frequencies, of which there are eight per octave.
    """
    grey = pixels.double().mean(1)
    window = torch.hann_window(grey.shape[-1], dtype=torch.float64)
    grey = (grey - grey.mean((-2, -1), keepdim=True)) * window[:, None] * window
    power = torch.fft.rfft2(grey).abs().square().mean(0)
    side = grey.shape[-1]
    radius = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]).double()
    rings = torch.floor(8 * torch.log2(radius.clamp(min=1e-9) / 0.0625)).long()
    points = [
        (float(radius[rings == ring].log().mean()), float(power[rings == ring].mean().log()))
        for ring in range(24) if bool((rings == ring).any())
    ]  # fmt: skip
    x, y = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def hidden_gate(bench: Bench, latents: Tensor, crossing: float) -> Gate:
    """Return whether the noise at the crossing hides every mode beyond the low resolution."""
    power = power_spectrum(latents)
    ratio = bench.low.width / bench.final.width
    beyond = power[~modes_within(power, ratio, ratio)]
    worst = float(beyond.max()) * math.exp(float(bench.backbone.schedule.logsnr(crossing)))
    name = f"largest power times SNR beyond the low resolution at time {crossing:g}"
    return Gate(name, f"at most {HIDDEN:g}", f"{worst:.3f}", worst <= HIDDEN)


def finished_gate(bench: Bench, latents: Tensor, crossing: float) -> Gate:
    """Return whether pictures that were pooled and enlarged are finished as well as complete ones from the crossing."""
    ratio = bench.final.width // bench.low.width
    enlarged = upsample(F.avg_pool2d(latents, ratio), (latents.shape[-2], latents.shape[-1]), "bilinear")
    whole, rebuilt = (bench.read(finish(bench, each, crossing)).right.all(1).double() for each in (latents, enlarged))
    lost = whole - rebuilt
    value, half = float(lost.mean()), Z95 * float(lost.std()) / math.sqrt(len(lost))
    name = f"share of right pictures lost if pooled latents are finished from time {crossing:g}"
    return Gate(name, "0 within its interval", f"{_percent(value, half)}", value - half <= 0)


@torch.no_grad()
def finish(bench: Bench, latents: Tensor, crossing: float) -> Tensor:
    """Return the pictures (n, 3, H, W) to which the teacher finishes latents with the noise of a time."""
    backbone, schedule = bench.backbone, bench.backbone.schedule
    times = finishing_times(schedule, crossing, bench.steps)
    plan = build_plan(schedule, times=[1000.0, *times], sides=[(bench.final.height, bench.final.width)])
    made = []
    for index in torch.arange(len(latents)).split(BATCH):
        source = CounterNoise(bench.seed, index.tolist())
        part = latents[index]
        noise = source.normal(part.shape, "crossing")
        captions = [bench.captions[i] for i in index.tolist()]
        predict = predictor(
            backbone, backbone.denoiser, plan, backbone.encode(captions), null=backbone.null(len(part)),
            guidance=bench.guidance,
        )  # fmt: skip
        for step in plan.steps[1:]:
            x = schedule.add_noise(part, noise, torch.full((len(part),), step.teacher_time))
            part, noise = predict(x, step)
        made.append(backbone.decode(part).clamp(-1, 1))
    return torch.cat(made)


def steps_gate(bench: Bench, full: Tensor, quick: Tensor) -> Gate:
    """Return whether the teacher in few steps is clearly farther from pictures than in many, with the same noise."""
    others = bench.kit.world.renders(len(bench.pixels), seed=bench.seed + 1, size=bench.final.width)
    renders = bench.judge.assess(others.pixels(torch.arange(len(others.captions))), bench.asked).features
    (near, scaled), (far, _) = (standardise(bench.read(images).features, renders) for images in (full, quick))
    gap, few, many = kernel_distance_gap(far, near, scaled), kernel_distance(far, scaled), kernel_distance(near, scaled)
    name = f"kernel distance to pictures in {FEW_STEPS} steps, less that in {bench.steps}"
    text = f"{gap.value:.1f} [{gap.low:.1f}, {gap.high:.1f}], from {few.value:.1f} and {many.value:.1f}"
    return Gate(name, "above 0 in its interval", text, gap.low > 0)


def share_gate(name: str, right: Tensor, *, least: float = 0.0, most: float = 1.0) -> Gate:
    """Return whether a share of right pictures is between two limits."""
    share = float(right.double().mean())
    half = Z95 * math.sqrt(share * (1 - share) / len(right))
    wanted = f"at least {100 * least:g}%" if least else f"at most {100 * most:g}%"
    return Gate(name, wanted, _percent(share, half), least <= share <= most)


def _names(bench: Bench, smaller: Tensor) -> str:
    """Return how the attributes of low frequency are called."""
    kept = coarse(smaller)
    hidden = [name for name, known in zip(bench.judge.names, kept.tolist(), strict=True) if not known]
    return "every attribute" if not hidden else f"every attribute but {', '.join(hidden)}"


def gates_markdown(gates: Sequence[Gate]) -> str:
    """Return a Markdown table of gates."""
    lines = ["| gate | wanted | measured | |", "| --- | --- | --- | --- |"]
    for gate in gates:
        lines.append(f"| {gate.name} | {gate.wanted} | {gate.measured} | {'pass' if gate.passed else '**miss**'} |")
    return "\n".join(lines) + "\n"


def _percent(value: float, half: float) -> str:
    return f"{100 * value:.1f}% [{100 * (value - half):.1f}, {100 * (value + half):.1f}]"
