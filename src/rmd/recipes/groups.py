"""The groups of a recipe's settings, all but the method's (`rmd.recipes.methods`), and the types of single settings.

The docstring below a setting is its help text. Settings that only count iterations may be large. A setting for which
memory is allocated has a bound, so that a typing error is refused at once instead of after minutes. Torch is imported
only by the functions that need it, so that an error in a recipe is reported at once.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator
from pydantic_core import PydanticCustomError

from rmd.common.typed import Strict

if TYPE_CHECKING:
    from rmd.core.noise import NoiseSchedule

TimeMap = Literal["raise", "vp", "lower", "none"]
Upsample = Literal["bilinear", "nearest", "bicubic", "dct", "taps"]
NoiseRule = Literal["plain", "corrected", "block"]
StepNoise = Literal["predicted", "fresh"]

MAX_SIDE = 65536
"""Longest side of an image in pixels."""
MAX_STAGES = 64
"""Largest number of stages in a plan."""

Count = Annotated[int, Field(gt=0, le=10**9)]
Whole = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(gt=0, le=4096)]
Many = Annotated[int, Field(gt=0, le=65536)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Rate = Annotated[float, Field(gt=0, le=1e12)]
Weight = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def parse_side(value: object) -> tuple[int, int]:
    """Return (height, width) in pixels from 512, [480, 832] or "480x832".

    Raises:
        ValueError: the value is none of these, or a side is longer than `MAX_SIDE`.
    """
    match value:
        case int() if not isinstance(value, bool):
            sides = value, value
        case [int(height), int(width)] if not (isinstance(height, bool) or isinstance(width, bool)):
            sides = height, width
        case str() if match := re.fullmatch(r"\s*([0-9]{1,9})(?:\s*[xX]\s*([0-9]{1,9}))?\s*", value):
            sides = int(match[1]), int(match[2] or match[1])
        case _:
            sides = 0, 0
    if min(sides) < 1:
        raise ValueError("should be a side in pixels (512), [height, width] or HEIGHTxWIDTH")
    if max(sides) > MAX_SIDE:
        raise ValueError(f"should be at most {MAX_SIDE} pixels")
    return sides


# Models are strict, but YAML has lists where they hold tuples.
Numbers = Annotated[tuple[float, ...], Field(strict=False, max_length=MAX_STAGES)]
Pair = Annotated[tuple[Decay, Decay], Field(strict=False)]
Side = Annotated[tuple[int, int], BeforeValidator(parse_side)]
Sides = Annotated[tuple[Side, ...], Field(strict=False, min_length=1, max_length=MAX_STAGES)]


class VPNoise(Strict):
    """A variance-preserving noise schedule, with the keys of a diffusers scheduler's config."""

    kind: Literal["vp"]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Rate = 1e-4
    beta_end: Rate = 2e-2
    num_train_timesteps: Annotated[int, Field(gt=1, le=100_000)] = 1000
    rescale_betas_zero_snr: bool = False

    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule that these settings describe."""
        return _schedule("DDPMScheduler", self)


class FlowNoise(Strict):
    """A rectified-flow noise schedule, with the keys of a diffusers scheduler's config."""

    kind: Literal["flow"]
    shift: Rate = 1.0
    """Flow shift of the teacher's time grid."""
    num_train_timesteps: Annotated[int, Field(gt=1, le=100_000)] = 1000
    shift_terminal: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Last sigma of the teacher's time grid, to which uniform times are stretched."""
    use_dynamic_shifting: bool = False
    """If true, the flow shift depends on the number of tokens, and `shift` has no effect."""
    base_shift: float = 0.5
    """mu of a dynamic shift at `base_image_seq_len` tokens."""
    max_shift: float = 1.15
    """mu of a dynamic shift at `max_image_seq_len` tokens."""
    base_image_seq_len: Annotated[int, Field(gt=0)] = 256
    """The smaller number of tokens for which a dynamic shift is given."""
    max_image_seq_len: Annotated[int, Field(gt=0)] = 4096
    """The larger number of tokens for which a dynamic shift is given."""
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    """Form of a dynamic shift: exp(mu), or mu itself."""
    token_frames: Annotated[int, Field(gt=0)] = 1
    """Frames of a clip for each latent frame, which a dynamic shift counts."""

    def schedule(self, token_side: int | None = None) -> NoiseSchedule:
        """Return the noise schedule that these settings describe.

        Args:
            token_side: side of a token in pixels, on which a dynamic shift depends.
        """
        return _schedule("FlowMatchEulerDiscreteScheduler", self, token_side, self.token_frames)


def _schedule(
    scheduler: str, noise: VPNoise | FlowNoise, token_side: int | None = None, token_frames: int = 1
) -> NoiseSchedule:
    from rmd.core.noise import schedule_from_config

    config = {"_class_name": scheduler, **noise.model_dump(exclude={"kind"})}
    return schedule_from_config(config, token_side=token_side, token_frames=token_frames)


def _kind_of_noise(value: object) -> str | None:
    """Return which form a recipe's noise has: `teacher`, or the `kind` of a group of keys."""
    if isinstance(value, dict):
        return value["kind"] if value.get("kind") in ("vp", "flow") else None
    kind = getattr(value, "kind", value)
    return kind if isinstance(kind, str) else None


Noise: TypeAlias = Annotated[
    Annotated[VPNoise, Tag("vp")] | Annotated[FlowNoise, Tag("flow")] | Annotated[Literal["teacher"], Tag("teacher")],
    Discriminator(_kind_of_noise),
]


def _conflict(text: str) -> PydanticCustomError:
    """Return the error of settings that do not go together; `rmd.common.typed.sentence` puts their group before it."""
    return PydanticCustomError("conflict", text)


class CrossAt(Strict):
    """The noise levels at which a cascade enters each resolution but the first, in one of two units."""

    sigma: Numbers = ()
    """The levels in sigma of a rectified flow: falling numbers between 0 (clean) and 1 (pure noise)."""
    logsnr: Numbers = ()
    """The levels in logSNR: rising numbers."""


class PlanConfig(Strict):
    """The cascade: the steps, the resolutions, and their division (Sec. 3.1).

    The steps run at uniform times, or at those of `times` or `cross_at`; `thresholds` or `split` divide them into
    stages. A layer of a recipe that gives one of them drops those of the layers below that say the same in another way.
    """

    steps: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Steps of the student, over all stages. Empty: as many as `times` or `split` give."""
    times: Annotated[tuple[float, ...], Field(strict=False, max_length=1000)] = ()
    """Teacher times of the steps, from 1000 (pure noise) down; empty: uniform ones."""
    cross_at: CrossAt | None = None
    """Noise level of each stage's first step, but the first stage's: the stages' other steps divide the time between
    these evenly. Needs `split`."""
    sides: Sides
    """Stage sizes in pixels, first to last: 512, [height, width] or HEIGHTxWIDTH."""
    thresholds: Numbers = ()
    """logSNR thresholds between the stages, one fewer than stages, on the teacher's own schedule."""
    split: Annotated[tuple[Few, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Steps of each stage, such as [2, 2], in place of thresholds."""
    map: TimeMap = "raise"
    """Timestep map of the low-resolution steps (Eq. 2). `raise`: the form that the paper uses. `vp`: the same logSNR
    shift on the model's own schedule. `lower`: the inverse of `raise`. `none`: the teacher's time."""
    grid_end: Decay = 0.0
    """End of the grid of teacher times (exclusive), 0 to 1, before the flow shift."""
    shift: Rate | None = None
    """Flow shift of the grid of teacher times; empty: the teacher's own, `noise.shift`. Larger images need a larger
    shift."""
    multiple: Many = 8
    """Number of pixels by which all sides must be divisible: the VAE's factor times the backbone's patch size."""
    match_side: Side | None = None
    """Size at which samples are compared and on which networks are conditioned; by default the last of `sides`. A
    larger one trains a low-resolution student against the teacher's own resolution."""

    @property
    def step_count(self) -> int:
        """The number of steps."""
        return len(self.times) or self.steps or sum(self.split)

    @model_validator(mode="after")
    def _say_everything_once(self) -> PlanConfig:
        if self.times and self.cross_at is not None:
            raise _conflict("gives the times of its steps by times and by cross_at: leave out one of them")
        counts = {"times": len(self.times), "split": sum(self.split), "steps": self.steps or 0}
        given = {name: count for name, count in counts.items() if count}
        for (first, one), (second, other) in combinations(given.items(), 2):
            if one != other:
                raise _conflict(f"has {one} steps by {first}, but {other} by {second}: change one of them")
        if self.split and self.thresholds:
            raise _conflict("divides its steps by split and by thresholds: leave out one of them")
        if self.times and self.grid_end:
            raise _conflict("has both times and grid_end, which is the end of uniform times: leave out one of them")
        if self.cross_at is not None and bool(self.cross_at.sigma) == bool(self.cross_at.logsnr):
            raise _conflict("needs either sigma or logsnr in cross_at")
        if self.cross_at is not None and not self.split:
            raise _conflict("has cross_at but no split: give the number of steps of each stage, such as [2, 2]")
        if not given:
            raise _conflict("gives no steps: set steps, times or split")
        return self


class CrossingConfig(Strict):
    """The transition from one step to the next, above all to a higher resolution (Eq. 4 and 10)."""

    upsample: Upsample = "bilinear"
    """Interpolation to the next resolution; the paper uses bilinear. `dct` pads the cosine transform with zeros, which
    keeps the spectrum of the low resolution. `taps` is a linear filter of your own."""
    taps: Annotated[tuple[float, ...], Field(strict=False, max_length=1024)] = ()
    """With `upsample` taps: the filter along one dimension, for a ratio of two neighbouring stages' sides that is a
    whole number; `rmd probe` fits one."""
    rule: NoiseRule = "plain"
    """Mixture of predicted and fresh noise. `plain`: Eq. 10. `corrected`: the same, divided by its standard
    deviation. `block`: predicted noise sets the low-resolution part of white noise."""
    beta: Share = 1.0
    """Weight of the predicted noise when sampling, 0 to 1."""
    within: StepNoise = "predicted"
    """Noise of a step that stays at its resolution: the predicted one, or `fresh` (DMD2, scale-wise distillation)."""
    eta: Share = 1.0
    """With `within` predicted: weight of the predicted noise, 0 to 1; the rest is fresh, as in Eq. 10."""
    train_rule: NoiseRule | None = None
    """`rule` in training; empty: the same as when sampling."""
    train_beta: Share | None = None
    """`beta` in training; empty: the same as when sampling."""


class ConditioningConfig(Strict):
    """The image size on which networks are conditioned at a low-resolution stage, in training and in inference."""

    original: Literal["final", "stage"] = "final"
    """SDXL's `original_size`."""
    target: Literal["final", "stage"] = "stage"
    """SDXL's `target_size`; the resolution and aspect ratio of PixArt-alpha at 1024 px."""
    embedded_guidance: Rate = 3.5
    """Guidance scale that FLUX.1-dev is given as an input, as it was distilled from a guided model."""
    pos_rescale: bool = False
    """SD3 only, an experiment: stretch the positions of the final size over a low-resolution stage, instead of cutting
    the stage's positions out of the middle of the table."""


class RolesConfig(Strict):
    """The way in which student, fake score and teacher share weights."""

    mode: Literal["lora", "full"] = "lora"
    """`lora`: one frozen base with two adapters. `full`: three separate networks."""
    rank: Many = 64
    """Rank of the adapters."""
    alpha: Rate = 64.0
    """Numerator of the adapters' scale, alpha / rank."""
    layers: Literal["all", "transformers"] = "all"
    """Layers that get adapters. `transformers`: attention and feed-forward layers only. `all`: in a UNet also its
    convolutions and the time projections of its residual blocks."""


class OptimConfig(Strict):
    """The optimizer, AdamW, and the moving average of the student."""

    student_lr: Rate
    """Learning rate of the student."""
    fake_lr: Rate
    """Learning rate of the fake score."""
    lr_warmup: Whole = 0
    """Iterations at the start over which both learning rates rise linearly to their values."""
    lr_decay: Whole = 0
    """Iterations at the end over which both learning rates fall linearly towards zero."""
    betas: Pair = (0.9, 0.999)
    """AdamW's decay rates of the first and second moments."""
    weight_decay: Weight = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: Rate = 1.0
    """Largest norm of the gradient; longer gradients are clipped."""
    clipped: Literal["both", "student"] = "both"
    """Networks whose gradients are clipped: `both`, or the `student` only, as in the authors' code."""
    ema: Decay = 0.0
    """Decay of the exponential moving average of the student's weights; 0 turns it off."""


class TrainConfig(Strict):
    """The training loop."""

    iterations: Count
    """Updates of the student."""
    batch_size: Many
    """Prompts per iteration, over all devices."""
    seed: Seed = 0
    """Seed of all random numbers."""
    log_every: Count = 10
    """Iterations between records of the metrics."""
    sample_every: Count = 100
    """Iterations between pictures of the student's samples."""
    checkpoint_every: Count = 100
    """Iterations between checkpoints."""
    keep_last: Count = 2
    """Number of the newest checkpoints that are kept."""
    keep_every: Count | None = None
    """Also keep the checkpoint of every multiple of this many iterations, for good; empty: none."""
    guard: bool = True
    """Stop when the student collapses: its samples lose their variance or diverge, or the scores drift apart."""
    loggers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(strict=False, max_length=8)
    ] = ()
    """Services that also receive metrics and pictures, such as wandb or trackio."""
    threads: Few | None = None
    """CPU threads; empty: torch decides."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network calls; trained weights are kept in float32."""
    gradient_checkpointing: bool = False
    """Save memory: keep only the inputs of the network's blocks, and recompute their activations in the backward
    pass."""
    gradient_accumulation_steps: Many = 1
    """Micro-batches into which each device divides its share of the batch."""


class ParallelConfig(Strict):
    """The division of the work between the processes of a run; without effect in a run of one process."""

    dp_replicate: Many = 1
    """Groups of processes that each hold all weights (HSDP); 1: the weights are sharded over all processes."""
    context_parallel: Few = 1
    """Processes that share the tokens of a sample (Wan)."""


class DataConfig(Strict):
    """The prompts, and real images for methods that need them."""

    prompts: Annotated[str, Field(min_length=1)]
    """A file (.txt, .json, .jsonl, .csv, .tsv, .parquet, .tar), a pattern of files, hf:OWNER/NAME for a dataset on the
    Hub, `scenes`, `vistas` or `moving-scenes`, or NAME or NAME:ARGUMENT of an installed prompt source."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of an installed prompt source, which defines their keys."""
    column: str | None = None
    """Column that holds the prompts, if the file has records; empty: prompt, caption or text."""
    split: str = "train"
    """Split of a dataset on the Hub."""
    skip_invalid: bool = False
    """Skip and count rows that are not a single caption (numbers, lists, damaged text); otherwise the first such row is
    an error."""
    journeydb: bool = False
    """Read the records as JourneyDB's annotations: commands, weights and addresses are removed from the prompts."""
    min_chars: Count = 1
    """Smallest number of characters in a prompt."""
    max_chars: Count | None = None
    """Largest number of characters in a prompt; empty: no limit."""
    exclude: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Files of prompts to leave out, such as those of benchmarks."""
    images: str | None = None
    """Real images, for `method.adversarial`: a folder of images, each with its caption in a file of the same name that
    ends in .txt; or `scenes`."""
    cache: str | None = None
    """Folder of encoded prompts that `rmd cache` wrote; empty: prompts are encoded when they are needed."""
    prompt_cache_mb: Whole = 0
    """Megabytes of main memory in which encoded prompts are kept; 0: every batch is encoded anew."""
    offload: bool = False
    """Keep the text encoders on the CPU except while encoding."""


class EvaluationConfig(Strict):
    """The evaluation of students, while they are trained and in the end."""

    n: Annotated[int, Field(gt=0, le=10**6)] = 1024
    """Samples of the final evaluation."""
    every: Count | None = None
    """Iterations between evaluations during training; empty: none."""
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Metrics of these evaluations, of which the first decides the best checkpoint: `judge`, for prompts of a packaged
    world, or metrics of `rmd eval images`; empty: the judge."""
    prompts: str | None = None
    """Prompts of these evaluations; empty: captions of the packaged world that are not for training, or otherwise the
    first training prompts."""
    weights: str | None = None
    """Folder with the metrics' networks as OWNER/NAME/FILE; empty: the Hub."""
    samples: Annotated[int, Field(ge=3, le=10**6)] = 64
    """Samples of each evaluation during training."""
