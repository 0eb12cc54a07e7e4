"""Recipes, typed: every setting of a run, checked before any weight is loaded.

`load_recipe` turns a packaged name or a YAML file, plus overrides, into one frozen `Recipe`; whatever
is wrong in it becomes one sentence (RMDError) that names the key and the file. Torch is imported only
by the methods that need it, so that a typing error in a recipe is reported at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, JsonValue, Tag, ValidationError
from pydantic_core import ErrorDetails

from rmd.common.errors import RMDError, shown
from rmd.common.typed import Strict, and_more, as_written, dotted, known_keys, sentence, sorted_problems
from rmd.recipes import Layer, merge, origin, read_layers

if TYPE_CHECKING:
    from rmd.core.noise import NoiseSchedule
    from rmd.core.plan import StepPlan

TimeMap = Literal["raise", "vp", "lower", "none"]
Upsample = Literal["bilinear", "nearest", "bicubic"]
NoiseRule = Literal["plain", "corrected", "block"]
StepNoise = Literal["predicted", "fresh"]

MAX_SIDE = 65536
"""Longest side of a picture in pixels."""
MAX_STAGES = 64
# Settings that only count iterations may be large. For those that are listed or allocated for, a typing error must be
# refused at once, not after minutes.
Count = Annotated[int, Field(gt=0, le=10**9)]
Whole = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(gt=0, le=4096)]
Many = Annotated[int, Field(gt=0, le=65536)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Rate = Annotated[float, Field(gt=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def parse_side(value: object) -> tuple[int, int]:
    """(height, width) in pixels from 512, [480, 832] or "480x832"; ValueError for anything else."""
    match value:
        case int() if not isinstance(value, bool):
            sides = value, value
        case [int(height), int(width)] if not (isinstance(height, bool) or isinstance(width, bool)):
            sides = height, width
        case str() if found := re.fullmatch(r"\s*([0-9]{1,9})(?:\s*[xX]\s*([0-9]{1,9}))?\s*", value):
            sides = int(found[1]), int(found[2] or found[1])
        case _:
            sides = 0, 0
    if min(sides) < 1:
        raise ValueError("should be a side in pixels (512), [height, width] or HEIGHTxWIDTH")
    if max(sides) > MAX_SIDE:
        raise ValueError(f"should be at most {MAX_SIDE} pixels")
    return sides


# Strict inside, but YAML has lists where the frozen models hold tuples.
Numbers = Annotated[tuple[float, ...], Field(strict=False, max_length=MAX_STAGES)]
Pair = Annotated[tuple[Decay, Decay], Field(strict=False)]
Side = Annotated[tuple[int, int], BeforeValidator(parse_side)]
Sides = Annotated[tuple[Side, ...], Field(strict=False, min_length=1, max_length=MAX_STAGES)]


def _one_name(text: str) -> str:
    """Return the text if it is a valid folder name; raise ValueError otherwise."""
    if "/" in text or "\\" in text or text in (".", ".."):
        raise ValueError("should be a name without slashes, because the run's folder is called so")
    return text


class VPNoise(Strict):
    """A variance-preserving noise schedule, in the words of a diffusers scheduler config."""

    kind: Literal["vp"]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Rate = 1e-4
    beta_end: Rate = 2e-2
    num_train_timesteps: Annotated[int, Field(gt=1, le=100_000)] = 1000
    rescale_betas_zero_snr: bool = False

    def schedule(self) -> NoiseSchedule:
        """The noise schedule itself."""
        from rmd.core.noise import schedule_from_config

        return schedule_from_config({"_class_name": "DDPMScheduler", **self.model_dump(exclude={"kind"})})


class FlowNoise(Strict):
    """A rectified-flow noise schedule."""

    kind: Literal["flow"]
    shift: Rate = 1.0
    """Flow shift of the teacher's time grid."""
    num_train_timesteps: Annotated[int, Field(gt=1, le=100_000)] = 1000

    def schedule(self) -> NoiseSchedule:
        """The noise schedule itself."""
        from rmd.core.noise import schedule_from_config

        return schedule_from_config(
            {"_class_name": "FlowMatchEulerDiscreteScheduler", **self.model_dump(exclude={"kind"})}
        )


def _kind_of_noise(value: object) -> str | None:
    """Return which form a recipe's noise has: `teacher`, or the `kind` of a group of keys."""
    if isinstance(value, dict):
        return value["kind"] if value.get("kind") in ("vp", "flow") else None
    kind = getattr(value, "kind", value)
    return kind if isinstance(kind, str) else None


Noise = Annotated[
    Annotated[VPNoise, Tag("vp")] | Annotated[FlowNoise, Tag("flow")] | Annotated[Literal["teacher"], Tag("teacher")],
    Discriminator(_kind_of_noise),
]


class PlanConfig(Strict):
    """The cascade: how many steps, on which stages, split where (Sec. 3.1)."""

    steps: Annotated[int, Field(gt=0, le=1000)]
    sides: Sides
    """Stage sizes in pixels, first to last: 512, [height, width] or HEIGHTxWIDTH."""
    thresholds: Numbers = ()
    """logSNR thresholds between the stages, one fewer than stages, on the teacher's own schedule."""
    map: TimeMap = "raise"
    """Timestep map of the low-resolution steps; `raise` is Eq. 2 as the paper uses it."""
    grid_end: Decay = 0.0
    """Where the grid of teacher times ends (exclusive), 0 to 1, before the flow shift."""
    shift: Rate | None = None
    """Flow shift of the grid of teacher times, if it is not to be the teacher's own, `noise.shift`: larger for larger
    pictures."""
    multiple: Many = 8
    """Sides must be divisible by this: the VAE's factor times the backbone's patch."""


class CrossingConfig(Strict):
    """What happens between two stages (Eq. 4 and 10)."""

    upsample: Upsample = "bilinear"
    rule: NoiseRule = "plain"
    beta: Share = 1.0
    """Weight of the predicted noise when sampling."""
    within: StepNoise = "predicted"
    """Noise of a step that stays at its resolution: the predicted one, or `fresh` (DMD2, scale-wise)."""
    train_rule: NoiseRule | None = None
    """Empty: as when sampling."""
    train_beta: Share | None = None
    """Empty: as when sampling."""


class ConditioningConfig(Strict):
    """Which size a network is told at a low-resolution stage, in training and in inference alike."""

    original: Literal["final", "stage"] = "final"
    """SDXL's `original_size`."""
    target: Literal["final", "stage"] = "stage"
    """SDXL's `target_size`; the resolution and aspect ratio of PixArt-alpha at 1024 px."""
    pos_rescale: bool = False
    """An experiment for SD3: spread the positions of the final size over a low-resolution stage."""


class MethodConfig(Strict):
    """The distillation objective (Sec. 3.2)."""

    name: Literal["rmd", "tdm", "dmd2", "stagewise"] = "rmd"
    guidance: Annotated[float, Field(ge=0, le=1000)]
    """Of the teacher: uncond + guidance (cond - uncond); 1 turns it off."""
    metric: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    weight: Literal["sample", "none"] = "sample"
    """`sample`: divide the generator's loss by mean |y - f_real| of the sample."""
    tau: Literal["segment", "above", "all"] = "segment"
    """Teacher times for the scores: within the step's segment, anywhere from its lower end up, or anywhere."""
    tau_noise: Literal["mixed", "fresh"] = "mixed"
    """The noise at those times: predicted and fresh as in a crossing (Eq. 10), or fresh alone."""
    fake_weight: Literal["snr", "snr_plus_one", "noise"] = "snr"
    """Weight of the fake score's loss (Eq. 9): min(SNR, snr_cap), one more, or SNR itself: its error in the noise."""
    snr_cap: Rate = 5.0
    fake_updates: Annotated[int, Field(gt=0, le=100)] = 1
    """Updates of the fake score for one of the student."""
    warmup_steps: Whole = 0
    """Iterations on the lowest stage alone, at the start."""
    stage_draws: Annotated[tuple[Few, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """How often each stage is trained in a round of iterations, as [1, 2]; empty: all as often."""
    adversarial: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    """DMD2: weight of the student's adversarial loss, which needs `data.images`; 0: none."""
    adversarial_fake: Rate = 1.0
    """Weight of the adversarial loss in the fake score's."""
    scored: Side | None = None
    """Resolution of teacher and fake score where it is not the plan's last: a student of one low resolution that is
    matched at a higher one."""


class RolesConfig(Strict):
    """How student, fake score and teacher share weights."""

    mode: Literal["lora", "full"] = "lora"
    """`lora`: one frozen base with two adapters; `full`: three copies."""
    rank: Many = 64
    alpha: Rate = 64.0
    layers: Literal["all", "transformers"] = "all"
    """What adapters are put on. `transformers`: attention and feed-forward layers alone; `all`: in a UNet also its
    convolutions and what its residual blocks read of the time."""


class OptimConfig(Strict):
    """AdamW."""

    student_lr: Rate
    fake_lr: Rate
    lr_warmup: Whole = 0
    """Iterations over which both learning rates rise linearly to their values."""
    lr_decay: Whole = 0
    """Iterations, the run's last, over which both learning rates fall linearly towards zero."""
    betas: Pair = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0, le=1e12)] = 0.01
    clip_norm: Rate = 1.0
    ema: Decay = 0.0
    """Decay of the student's moving average; 0 turns it off."""


class TrainConfig(Strict):
    """The loop."""

    iterations: Count
    batch_size: Many
    """Over all devices."""
    seed: Seed = 0
    log_every: Count = 10
    sample_every: Count = 100
    checkpoint_every: Count = 100
    keep_last: Count = 2
    """So many of the newest checkpoints are kept."""
    keep_every: Count | None = None
    """The checkpoints of every so many iterations are kept for good, too."""
    guard: bool = True
    """Stop when the student collapses: its samples lose their spread or blow up, the scores drift apart."""
    loggers: Annotated[tuple[Literal["wandb", "trackio"], ...], Field(strict=False, max_length=2)] = ()
    """Where metrics and pictures are sent to, too."""
    threads: Few | None = None
    """CPU threads; empty: torch decides."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    """Activation checkpointing: keep the inputs of the network's blocks, and compute their insides anew when needed."""
    gradient_accumulation_steps: Many = 1
    """Micro-batches that a device's part of the batch is computed in, one after another."""


class ParallelConfig(Strict):
    """How the processes of a run share it; of no effect in a process alone."""

    dp_replicate: Many = 1
    """Groups of processes that hold all weights each (HSDP); 1: the weights are spread over all processes."""
    context_parallel: Few = 1
    """Processes that share the tokens of a sample (Wan)."""


class DataConfig(Strict):
    """Source of the prompts, and of images for methods that need them."""

    prompts: Annotated[str, Field(min_length=1)]
    """A file (.txt, .json, .jsonl, .csv, .tsv, .parquet, .tar), a pattern of files, hf:OWNER/NAME for a dataset on the
    Hub, `scenes` or `moving-scenes`, or NAME or NAME:ARGUMENT of an installed prompt source."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of an installed prompt source, which defines their keys."""
    column: str | None = None
    """Column that holds the prompts, if the file has records; empty: prompt, caption or text."""
    split: str = "train"
    """Split of a dataset on the Hub that is read."""
    skip_invalid: bool = False
    """Skip and count rows that are not one caption (numbers, lists, damaged text); otherwise the first of them is an
    error."""
    journeydb: bool = False
    """Read the records as JourneyDB's annotations: commands, weights and addresses are removed from the prompts."""
    min_chars: Count = 1
    """Smallest number of characters in a prompt."""
    max_chars: Count | None = None
    """Largest number of characters in a prompt; empty: no limit."""
    exclude: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Files of prompts to leave out, such as those of benchmarks."""
    images: str | None = None
    """Real images, for method.adversarial: a folder of pictures, each with its caption beside it in a file of the same
    name that ends in .txt; or `scenes`."""
    cache: str | None = None
    """A folder of encoded prompts that `rmd cache` wrote; empty: they are encoded as they are needed."""
    prompt_cache_mb: Whole = 0
    """Megabytes of main memory for prompts that have been encoded; 0: every batch is encoded anew, as a whole."""
    offload: bool = False
    """Keep the text encoders in main memory except while they encode."""


class EvaluationConfig(Strict):
    """How much is sampled to judge a student."""

    n: Annotated[int, Field(gt=0, le=10**6)] = 1024
    every: Count | None = None
    """Iterations between looks of the judge at the student; empty: none. The still scenes have a judge."""
    samples: Annotated[int, Field(ge=3, le=10**6)] = 64
    """That the judge looks at."""


class Recipe(Strict):
    """Everything that decides a run."""

    version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_name)]
    """Name of the run, and of its folder: runs/NAME."""
    family: Annotated[str, Field(min_length=1)]
    """Which backbone adapter reads the teacher: sdxl, pixart, sd3, wan, scenes."""
    teacher: Annotated[str, Field(min_length=1)]
    """A model id on the Hugging Face hub, a folder, or `scenes` for the packaged teacher."""
    variant: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Variant of the teacher's weight files, such as fp16; empty: the plain files, or the only variant there is."""
    frames: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Length of a sample in video frames; 1 for images."""
    noise: Noise = "teacher"
    """Noise schedule of the teacher, on which the thresholds are defined. `teacher` reads it from the teacher's
    scheduler; if it is spelt out, plans can be made without the teacher."""
    plan: PlanConfig
    crossing: CrossingConfig = CrossingConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    method: MethodConfig
    roles: RolesConfig = RolesConfig()
    optim: OptimConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    def schedule(self) -> NoiseSchedule:
        """Return the teacher's noise schedule, with the flow shift of `plan.shift` if the recipe gives one.

        Raises:
            RMDError: the noise is left to the teacher and has not been read from it (`resolve_noise`), or
                `plan.shift` is given for a schedule that has no shift.
        """
        if isinstance(self.noise, str):
            raise RMDError(
                "the recipe's noise is that of its teacher, which has not been read: resolve_noise(recipe) "
                "returns a recipe with it"
            )
        if self.plan.shift is None:
            return self.noise.schedule()
        if not isinstance(self.noise, FlowNoise):
            raise RMDError("plan.shift is for noise of kind flow, and this recipe's is of kind vp: leave it out")
        return self.noise.model_copy(update={"shift": self.plan.shift}).schedule()

    def build_plan(self) -> StepPlan:
        """The frozen step plan of this recipe; RMDError when its parts do not fit each other."""
        from rmd.core.plan import Crossing, build_plan

        ours = self.crossing
        rule = ours.rule if ours.train_rule is None else ours.train_rule
        beta = ours.beta if ours.train_beta is None else ours.train_beta
        return build_plan(
            self.schedule(),
            steps=self.plan.steps,
            sides=self.plan.sides,
            thresholds=self.plan.thresholds,
            time_map=self.plan.map,
            crossing=Crossing(upsample=ours.upsample, rule=ours.rule, beta=ours.beta, within=ours.within),
            training_crossing=Crossing(upsample=ours.upsample, rule=rule, beta=beta, within=ours.within),
            grid_end=self.plan.grid_end,
            multiple=self.plan.multiple,
            frames=self.frames,
        )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a packaged name or a YAML file, with overrides such as `optim.student_lr=1e-5`.

    Raises RMDError, in one sentence that names key and source, when anything in it is wrong.
    """
    layers = read_layers(name_or_path, overrides, is_text=_is_text)
    for layer in layers:
        _check_texts(layer.values, layer.label)
    try:
        return Recipe.model_validate(merge(layers))
    except ValidationError as error:
        raise RMDError(_explain(error, layers)) from error


def _is_text(keys: Sequence[str]) -> bool:
    """Return whether the setting at these keys is a text, possibly an optional one."""
    kinds: tuple[object, ...] = (Recipe,)
    for key in keys:
        groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fields = [group.model_fields[key] for group in groups if key in group.model_fields]
        kinds = tuple(kind for field in fields for kind in _alternatives(field.annotation))
    return str in kinds and set(kinds) <= {str, type(None)}


def _alternatives(annotation: object) -> tuple[object, ...]:
    """Return the types that a value may have: the members of a union, including nested unions."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    return _alternatives(get_args(annotation)[0]) if get_origin(annotation) is Annotated else (annotation,)


def _check_texts(value: object, where: str, path: str = "") -> None:
    """Raise RMDError if a text holds a character that no setting may have, such as a control character."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(key, where, path)
            _check_texts(inner, where, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, where, path)
    elif isinstance(value, str) and (found := _UNPRINTABLE.search(value)):
        code = f"U+{ord(found[0]):04X}"
        raise RMDError(
            f"{where}: {path or 'a key'} holds the character {code}, which no setting can have: leave it out"
        )


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, including line breaks, and bytes of a command line that are not UTF-8."""


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Block style, but lists on one line: [512, 1024] reads better so."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _explain(error: ValidationError, layers: Sequence[Layer]) -> str:
    """One sentence for the first problem, counting the others."""
    problems = sorted_problems(error)
    for problem in problems:
        if problem["loc"] == ("version",) and isinstance(problem["input"], int) and problem["input"] > 1:
            where = origin(layers, ["version"])
            return f"{where}: version should be 1, but is {shown(problem['input'])}: update RMD to read this recipe"
    first = problems[0]
    keys = _keys(first)
    where = origin(layers, [key for key in keys if isinstance(key, str)])
    return f"{where}: {_sentence(first, keys)}{and_more(problems)}"


def _keys(problem: ErrorDetails) -> list[str | int]:
    """Where the problem is. Pydantic adds the kind of noise to the keys below it, which nobody writes."""
    keys = list(problem["loc"])
    return keys[:1] + keys[2:] if keys[0] == "noise" else keys


def _sentence(problem: ErrorDetails, keys: Sequence[str | int]) -> str:
    path = dotted(keys)
    match problem["type"]:
        case "extra_forbidden" if path in known_keys(Recipe):
            return f"{path} does not go with noise of kind {problem['loc'][1]}"
        case "extra_forbidden":
            return f"there is no key {path}; {_hint(path)}"
        case "union_tag_not_found" if isinstance(problem["input"], dict) and "kind" not in problem["input"]:
            return f"{path}.kind is missing; it is vp or flow"
        case "union_tag_not_found" | "union_tag_invalid" if isinstance(problem["input"], dict):
            return f"{path}.kind should be vp or flow, but is {as_written(problem['input']['kind'])}"
        case "union_tag_not_found" | "union_tag_invalid":
            return f"{path} should be `teacher` or a group of keys, but is {as_written(problem['input'])}"
        case _:
            return sentence(problem, path)


def _hint(path: str) -> str:
    """What an unknown dotted key most likely means: one misspelt, or right but in another group."""

    group, _, name = path[:200].rpartition(".")

    def likeness(known: str) -> float:
        known_group, _, known_name = known.rpartition(".")
        alike = difflib.SequenceMatcher(None, name.lower(), known_name.lower()).ratio()
        if len(name) > 1 and name.lower() in known_name:  # lr for student_lr
            alike = max(alike, 0.7)
        return alike if known_group == group else 0.9 * alike

    known = ["extends", *known_keys(Recipe)]
    best = max(known, key=likeness)
    if likeness(best) >= 0.6:
        return f"did you mean {best}?"
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == group]
    return f"{group or 'a recipe'} has {', '.join(beside)}"
