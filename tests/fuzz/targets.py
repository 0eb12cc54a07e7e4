"""The targets of the fuzzer: commands with a file that they read, and commands with arbitrary settings and options.

`{case}` stands for the case's own folder, `{world}` for the folder of valid inputs (`world.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fuzz.mutations import (
    FILE,
    JSON,
    NUMBERS,
    OURS,
    RECIPE,
    TEXT,
    TEXTS,
    Mutation,
    fatal_only,
    lenient,
)
from fuzz.weights import ADAPTER, WEIGHTS

from rmd.scores.compbench import CATEGORIES
from rmd.scores.vbench_plan import NAMES


@dataclass(frozen=True)
class Target:
    """A command with a file that is damaged.

    Attributes:
        what: kind of file.
        parts: parts of the world that are copied into the case's folder.
        files: pattern of the files of which one is damaged.
        arguments: arguments of `rmd`; `{file}` stands for the damaged file.
        weight: how often the target is drawn; cheap targets are drawn often.
        keeps: whether a failing command leaves its folders unchanged. Other commands keep what is finished.
    """

    verb: str
    what: str
    parts: tuple[str, ...]
    files: str
    arguments: tuple[str, ...]
    mutations: Mapping[str, Mutation]
    weight: float = 1.0
    keeps: bool = True


@dataclass(frozen=True)
class Words:
    """A command with an option or a setting of any value.

    Attributes:
        arguments: arguments that are always given.
        fatal: maps options to values that must be refused. An empty option stands for a positional argument, one that
            ends in an exclamation mark takes no value, and `--set KEY` takes KEY=VALUE.
        open: maps options to values that may be accepted.
    """

    verb: str
    what: str
    arguments: tuple[str, ...]
    fatal: Mapping[str, Sequence[str]]
    open: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weight: float = 1.0
    keeps: bool = True


_RECIPE = "{case}/recipe/r.yaml"
_OUT = ("--out", "{case}/out")
_TRAIN = ("train", "{world}/recipe/r.yaml", "--threads", "1")
_DRY = (*_TRAIN, "--dry-run", *_OUT)
_DMD2 = (*_DRY, *(word for setting in (
    "method.name=dmd2", "method.adversarial=0.1", "crossing.within=fresh", "roles.mode=full",
    "plan.sides=[32]", "plan.thresholds=[]",
) for word in ("--set", setting)))  # fmt: skip
_MAKE = ("generate", "a red ball", *_OUT)
_PROMPTS = {
    "txt": {**TEXT, "emptied": FILE["emptied"]},
    "json": {**JSON, "utf-16": FILE["utf-16"]},  # prompts may be in UTF-16, with a mark
    "jsonl": {**lenient(FILE), "removed": FILE["removed"], "noise": FILE["noise"], "lfs-pointer": FILE["lfs-pointer"]},
    "csv": TEXT,
    "tsv": TEXT,
    "parquet": {**FILE, "twice": Mutation(FILE["twice"].change)},
    "tar": {**FILE, "truncated": Mutation(FILE["truncated"].change)},
}
_OURS = {**JSON, **OURS}
_FOREIGN = {**lenient(JSON), **{name: FILE[name] for name in ("removed", "noise", "lfs-pointer", "web-page")}}
"""Changes of a file of another program, of which RMD reads a part."""
_LIST = {name: change for name, change in _FOREIGN.items() if name not in ("unknown-key", "word-for-number")}
"""Changes of a list of texts."""
_ENDINGS = [ending for category in CATEGORIES for ending in category.results]
_CONFIG = {**JSON, "swapped": Mutation(FILE["swapped"].change)}
_TEACHER = (
    ("model_index.json", "model_index.json", _CONFIG),
    ("scheduler_config.json", "scheduler/scheduler_config.json", _CONFIG),
    ("network's config.json", "unet/config.json", _CONFIG),
    ("VAE's config.json", "vae/config.json", _CONFIG),
    ("encoder's config.json", "text_encoder_2/config.json", _CONFIG),
    ("tokenizer", "tokenizer_2/*.json", lenient(JSON)),
    ("network's weights", "unet/*.safetensors", WEIGHTS),
    ("VAE's weights", "vae/*.safetensors", WEIGHTS),
    ("encoder's weights", "text_encoder_2/*.safetensors", WEIGHTS),
)


def _present(mutations: Mapping[str, Mutation]) -> dict[str, Mutation]:
    """Return the mutations that leave something in the file's place, for a file that need not exist."""
    return {name: change for name, change in mutations.items() if name not in ("removed", "dangling-link", "loop-link")}


_FILES = [
    Target("plan", "recipe", ("recipe",), "recipe/r.yaml", ("plan", _RECIPE), RECIPE, 14),
    Target("plan", "recipe that is extended", ("parent",), "parent/r.yaml", ("plan", "{case}/parent/child.yaml"),
           {**RECIPE, "truncated": Mutation(FILE["truncated"].change)}, 6),
    Target("plan", "plot of a recipe", ("recipe",), "recipe/r.yaml",
           ("plan", _RECIPE, "--plot", "{case}/p.svg"), RECIPE, 1),
    Target("plan", "memory: config.json", ("teacher",), "teacher/*/config.json",
           ("plan", "{world}/recipe/r.yaml", "--memory", "--set", "teacher={case}/teacher"), lenient(_CONFIG), 2),
    Target("train", "recipe", ("recipe",), "recipe/r.yaml",
           ("train", _RECIPE, "--threads", "1", "--dry-run", *_OUT), RECIPE, 3),
    Target("train", "checkpoint", ("run",), "run/checkpoints/*/*",
           (*_TRAIN, "--resume", "--set", "train.iterations=3", "--out", "{case}/run"), lenient(JSON) | FILE, 3,
           keeps=False),
    Target("train", "checkpoint's meta.json", ("run",), "run/checkpoints/*/meta.json",
           (*_TRAIN, "--resume", "--set", "train.iterations=3", "--out", "{case}/run"), JSON, 2, keeps=False),
    Target("train", "other files of a run", ("run",), "run/*.*",
           (*_TRAIN, "--resume", "--set", "train.iterations=3", "--out", "{case}/run"), lenient(FILE), 1,
           keeps=False),
    Target("train", "cache", ("cache",), "cache/*",
           (*_TRAIN, "--set", "data.cache={case}/cache", "--set", "train.iterations=1", *_OUT), lenient(FILE), 2,
           keeps=False),
    Target("train", "cache's meta.json", ("cache",), "cache/meta.json",
           (*_TRAIN, "--set", "data.cache={case}/cache", "--set", "train.iterations=1", *_OUT), _OURS, 2,
           keeps=False),
    Target("train", "images", ("images",), "images/*",
           (*_DMD2, "--set", "data.images={case}/images"), lenient(FILE), 2),
    Target("cache", "cache to verify", ("cache",), "cache/shard-*",
           ("cache", "--verify", "--out", "{case}/cache"), {**FILE, "bits-flipped": FILE["bits-flipped"]}, 4),
    Target("cache", "meta.json to verify", ("cache",), "cache/meta.json",
           ("cache", "--verify", "--out", "{case}/cache"), _OURS, 4),
    Target("cache", "cache to go on with", ("cache",), "cache/*",
           ("cache", "--recipe", "{world}/recipe/r.yaml", "--shard", "2", "--out", "{case}/cache"),
           lenient(JSON), 2, keeps=False),
    Target("generate", "rmd_config.json", ("lora",), "lora/rmd_config.json",
           (*_MAKE, "--model", "{case}/lora"), _OURS, 6),
    Target("generate", "adapter", ("lora",), "lora/*.safetensors", (*_MAKE, "--model", "{case}/lora"), ADAPTER, 4),
    Target("generate", "full student", ("full",), "full/*/*.safetensors",
           (*_MAKE, "--model", "{case}/full"), WEIGHTS, 2),
    Target("generate", "album", ("album",), "album/*",
           ("generate", "a red ball", "--model", "{world}/lora", "--out", "{case}/album"), lenient(FILE), 2,
           keeps=False),
    Target("generate", "clip's sidecar", ("clips",), "clips/*.json",
           ("generate", "a red ball", "--model", "{world}/wan", "--format", "webp", "--out", "{case}/clips"),
           lenient(JSON), 2, keeps=False),
    Target("eval", "rows beside", ("rows",), "rows/*.json",
           ("eval", "{world}/lora", "--samples", "6", "--name", "new", "--out", "{case}/rows"),
           {**lenient(JSON), "word-for-number": JSON["word-for-number"]}, 1, keeps=False),
    Target("eval", "rmd_config.json", ("lora",), "lora/rmd_config.json",
           ("eval", "{case}/lora", "--samples", "6", *_OUT), _OURS, 1),
    Target("eval", "VBench's list", ("video",), "video/VBench_full_info.json",
           ("eval", "vbench", "plan", "{case}/video/VBench_full_info.json", "--out", "{case}/plan.json"), _LIST, 2),
    Target("eval", "plan of videos", ("video",), "video/plan.json",
           ("eval", "vbench", "check", "{case}/video/plan.json", "{case}/video/videos"), _OURS, 2),
    Target("eval", "video's settings", ("video",), "video/videos/*/*.json",
           ("eval", "vbench", "check", "{case}/video/plan.json", "{case}/video/videos"),
           _present(lenient(JSON)), 1),
    Target("eval", "VBench's results", ("video",), "video/results/*.json",
           ("eval", "vbench", "report", *(f"{{case}}/video/results/{name}.json" for name in NAMES)), _FOREIGN, 2),
    Target("eval", "T2V-CompBench's results", ("video",), "video/csv/*.csv",
           ("eval", "compbench", "report", *(f"{{case}}/video/csv/m{ending}" for ending in _ENDINGS)),
           lenient(FILE), 2),
    Target("export", "rmd_config.json", ("lora",), "lora/rmd_config.json",
           ("export", "{case}/lora", "--to", "diffusers-lora", *_OUT), _OURS, 3),
    Target("export", "adapter", ("lora",), "lora/*.safetensors",
           ("export", "{case}/lora", "--to", "kohya", *_OUT), ADAPTER, 2),
    Target("export", "checkpoint", ("run",), "run/checkpoints/*/*",
           ("export", "{case}/run", "--to", "student", *_OUT), lenient(FILE), 2),
    Target("export", "earlier export", ("exported",), "exported/*",
           ("export", "{world}/lora", "--to", "diffusers-lora", "--out", "{case}/exported"), lenient(JSON), 1,
           keeps=False),
    Target("export", "recipe of a run", ("run",), "run/recipe.yaml",
           ("export", "{case}/run", "--to", "student", *_OUT), RECIPE, 1),
    Target("compare", "tables beside", ("tables",), "tables/roles.json",
           ("compare", "main", "--budget", "small", "--out", "{case}/tables"), _present(fatal_only(_OURS)), 2),
    Target("bench", "recipe to sample", ("recipe",), "recipe/r.yaml",
           ("bench", "sample", _RECIPE, "--batch", "1", "--repeats", "1", "--teacher-steps", "1"), RECIPE, 2),
    Target("bench", "recipe to train", ("recipe",), "recipe/r.yaml",
           ("bench", "train", _RECIPE, "--repeats", "0"), RECIPE, 2),
]  # fmt: skip


def _teacher_files() -> Iterator[Target]:
    """Yield targets for the files of a teacher: checks of a run, and sampling with it as an ordinary pipeline."""
    for what, file, mutations in _TEACHER:
        part, path = ("teacher",), f"teacher/{file}"
        dry = (*_DRY, "--set", "teacher={case}/teacher")
        yield Target("train", f"teacher: {what}", part, path, dry, mutations, 0.8)
        made = (*_MAKE, "--model", "{case}/teacher", "--steps", "1", "--height", "32", "--width", "32")
        yield Target("generate", f"pipeline: {what}", part, path, made, mutations, 0.8)
        if file in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"):
            first = ("init", "{case}/teacher", "--gpu", "24", "--sides=16,32", "--out", "{case}/first.yaml")
            yield Target("init", f"teacher: {what}", part, path, first, lenient(mutations), 0.8)


def _prompt_files() -> Iterator[Target]:
    """Yield targets for the files of prompts, with every command that reads them."""
    for suffix, mutations in _PROMPTS.items():
        part, path = ("prompts",), f"prompts/p.{suffix}"
        cached = ("cache", f"{{case}}/{path}", "--teacher", "{world}/teacher", *_OUT)
        yield Target("cache", f"prompts .{suffix}", part, path, cached, mutations, 0.6, keeps=False)
        dry = (*_DRY, "--set", f"data.prompts={{case}}/{path}")
        yield Target("train", f"prompts .{suffix}", part, path, dry, mutations, 0.4)
        made = ("generate", "--prompts", f"{{case}}/{path}", "--model", "{world}/lora", *_OUT)
        yield Target("generate", f"prompts .{suffix}", part, path, made, mutations, 0.4, keeps=False)


# --- options ----------------------------------------------------------------------------------------------------------

_WRONG_COUNTS = ("0", "-1", "x", "", "1.5", "nan", "1" + "0" * 30, "9" * 5000)
_WRONG_SEEDS = ("-1", "x", "", "1.5", str(2**63), str(2**64), "9" * 5000)
_WRONG_OUTS = ("{world}/recipe/r.yaml", "{world}/recipe/r.yaml/x", "/dev/null/x", "{case}/" + "x" * 300, "{case}/a\0b")
_WRONG_DEVICES = ("x", "", "cuda:99", "cuda:-1", "cpu:7x", "meta", "CPU", "cuda:" + "9" * 30, "a\nb")
_WORDS = tuple(text for text in TEXTS if text not in ("scenes", "/dev/zero"))
_NO_RECIPES = tuple(text for text in _WORDS if text not in ("--help",))

# Settings that are numbers, for which a word is wrong, and settings that are texts of any content.
_NUMBER_KEYS = (
    "plan.steps", "plan.grid_end", "plan.multiple", "noise.beta_start", "noise.num_train_timesteps", "crossing.beta",
    "method.guidance", "method.fake_updates", "method.warmup_steps", "method.snr_cap", "roles.rank", "roles.alpha",
    "optim.student_lr", "optim.lr_decay", "optim.ema", "train.iterations", "train.batch_size", "train.seed",
    "train.keep_last", "train.threads", "train.gradient_accumulation_steps", "parallel.dp_replicate",
    "parallel.context_parallel", "data.min_chars",
    "data.prompt_cache_mb", "evaluation.n", "evaluation.samples", "frames",
)  # fmt: skip
_TEXT_KEYS = ("name", "family", "teacher", "data.prompts", "data.column", "data.split", "data.images", "data.cache")
_OTHER_KEYS = ("plan.sides", "plan.thresholds", "method.stage_draws", "optim.betas", "data.exclude", "train.loggers",
               "plan.match_side", "noise", "plan", "extends", "version", "x", "", "plan.", "plan..steps", "a.b.c.d",
               "noise.kind")  # fmt: skip


def _settings() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    numbers = [str(number) for number in NUMBERS if isinstance(number, float) or number < 10**300]
    numbers += [
        "1" + "0" * 400,
        "9" * 100_000,
        "nan",
        ".nan",
        ".inf",
        "-.inf",
        "1e400",
        "true",
        "1_000",
        "0x10",
        "1:30",
    ]
    fatal = {key: ["many", "[[1]]", "{a: 1}", "[1", "*a", "!!python/name:os.system x", ".nan"] for key in _NUMBER_KEYS}
    accepted = dict.fromkeys(_NUMBER_KEYS, numbers)
    accepted |= {key: [*_WORDS, "a: b", "m #2", "[x]", "yes", "1e3"] for key in _TEXT_KEYS}
    many = str([float(i) for i in range(100_000)])
    lists = ["[]", "[32, 64]", "[-2.5, 1e9]", "[0x10]", many, "[" * 20_000, "[" * 300 + "]" * 300, "1" + "0" * 400,
             "{}", "~", "[1000000000, 2000000000]", "['9x9', '10x10']", "[.nan]", "x", "[1, [2, [3]]]"]  # fmt: skip
    return fatal, accepted | dict.fromkeys(_OTHER_KEYS, lists)


_FATAL, _ACCEPTED = _settings()
_SETS = {f"--set {key}": values for key, values in _FATAL.items()}
_FREE = {f"--set {key}": values for key, values in _ACCEPTED.items()}
_NO_RECIPE = {"": _NO_RECIPES}
_OPTIONS = [
    Words("plan", "settings", ("plan", "scenes"), _SETS, _FREE, 14),
    Words("plan", "options", ("plan", "scenes"),
          {"--steps": _WRONG_COUNTS, "--thresholds": ("x", "1,2", "[", "'", "nan", "1,1,1"), "--map": _WORDS[5:],
           "--sides": ("x", "0", "64,32", "64,64", "-1,5", "1e9,2e9", "[[", "32x,64"),
           "--size": ("x", "", "0x0", "7x9", "-8", "1e3", "9" * 5000), "--gpus": _WRONG_COUNTS[:-2],
           "--samples": _WRONG_COUNTS[:-2], "--fit --device": _WRONG_DEVICES,
           "--plot": ("", "{case}/x", "{case}/x.gif", "{case}/no/x.svg", "/dev/full/x.png", "{case}",
                      "{case}/a\0.png", "{case}/" + "x" * 300 + ".png")},
          {"--set plan.steps": ("1000", "100000"), "--size": ("128", "65536x65536", "1000000000x1000000000")}, 10),
    Words("plan", "recipe's name", ("plan",), _NO_RECIPE, {"": ("--help", "scenes", "sdxl")}, 4),
    Words("train", "settings", (*_DRY, "--set", "train.batch_size=1"), _SETS, _FREE, 4),
    Words("train", "options", _DRY,
          {"--threads": _WRONG_COUNTS[:-2], "--device": _WRONG_DEVICES, "--profile": _WRONG_COUNTS[:-2],
           "--reset-optimizer!": ("",)}, weight=2),
    Words("train", "folder", (*_TRAIN, "--set", "train.iterations=1"),
          {"--out": _WRONG_OUTS, "--resume --out": ("{case}/none", "{world}/recipe")}, weight=1),
    Words("train", "recipe's name", ("train", "--dry-run", *_OUT), _NO_RECIPE, weight=1),
    Words("cache", "options", ("cache", "--recipe", "{world}/recipe/r.yaml", *_OUT),
          {"--batch-size": _WRONG_COUNTS, "--shard": _WRONG_COUNTS,
           "--worker": ("", "x", "1/1", "-1/2", "0/0", "²/3"),
           "--out": _WRONG_OUTS, "--device": _WRONG_DEVICES, "--teacher": _WORDS, "--recipe": _NO_RECIPES},
          {"--worker": ("0/1000000000", "999999999/1000000000"), "--shard": ("1000000000",),
           "--batch-size": ("1000000000",)}, weight=3, keeps=False),
    Words("generate", "options", (*_MAKE, "--model", "{world}/lora"),
          {"-n": (*_WRONG_COUNTS, "1000000000"), "--seed": _WRONG_SEEDS[:4], "--width": _WRONG_COUNTS,
           "--height": (*_WRONG_COUNTS, "1000000000"),
           "--frames": (*_WRONG_COUNTS, "5"), "--batch-size": _WRONG_COUNTS, "--format": _WORDS,
           "--device": _WRONG_DEVICES, "--steps": ("4",), "--out": _WRONG_OUTS, "--teacher": _WORDS,
           "--model": _WORDS, "--prompts": (*_WORDS, "{world}/prompts/p.txt"), "--guidance": ("nan", "x", "1"),
           "--height 7!": ("",), "--fps": _WRONG_COUNTS[:5]},
          {"--batch-size": ("1000000000",),
           "": _WORDS}, weight=8),
    Words("generate", "pipeline's options",
          (*_MAKE, "--model", "{world}/teacher", "--height", "32", "--width", "32"),
          {"--guidance": ("nan", "inf", "x"), "--steps": _WRONG_COUNTS, "--stages!": ("",),
           "--seed": _WRONG_SEEDS[:4],
           "--compare-teacher!": ("",)}, {"--steps": ("1000000000", "1001")}, weight=2),
    Words("eval", "options", ("eval", "{world}/lora", "--samples", "6", *_OUT),
          {"--samples": ("0", "-1", "5", "x"), "--seed": _WRONG_SEEDS,
           "--name": ("a/b", "", ".", "..", "a\nb", "é\0"),
           "--teacher": _WORDS, "--out": _WRONG_OUTS, "--device": _WRONG_DEVICES, "--steps": ("5",),
           "--batch-size": _WRONG_COUNTS}, {"--samples": ("1000000000", "7"), "--name": ("x" * 300, "\udce9")},
          weight=2),
    # A server that accepts its options does not end, so only wrong ones are tried.
    Words("serve", "options", ("serve", "{world}/lora", "--port", "0"),
          {"--max-batch": _WRONG_COUNTS, "--max-queue": _WRONG_COUNTS, "--max-n": _WRONG_COUNTS, "--fps": _WRONG_COUNTS,
           "--max-prompt": _WRONG_COUNTS, "--threads": _WRONG_COUNTS, "--timeout": ("0", "-1", "x", "", "nan", "inf"),
           "--video-timeout": ("0", "x", "nan"), "--keep": ("0", "inf", "nan"), "--store-gb": ("0", "inf", "nan"),
           "--max-wait": ("-1", "x", "", "nan", "inf"), "--frames": (*_WRONG_COUNTS, "5"), "--device": _WRONG_DEVICES,
           "--size": ("x", "", "0x0", "7x9", "-8", "1e3", "9" * 5000, "16", "17x16", "99999x99999"),
           "--store": _WRONG_OUTS, "--teacher": _WORDS, "--host": ("", "x y", "x" * 300, "a..b", "203.0.113.1", "a\0b"),
           "--port": ("-1", "65536", "x", "")}, weight=2),
    Words("export", "options", ("export", "{world}/lora", "--to", "diffusers-lora", *_OUT),
          {"--to": _WORDS, "--out": _WRONG_OUTS, "--teacher": _WORDS, "--device": _WRONG_DEVICES}, weight=3),
    Words("export", "student", ("export", "--to", "diffusers-lora", *_OUT), {"": _NO_RECIPES}, weight=1),
    Words("compare", "options", ("compare", "--budget", "small", *_OUT),
          {"": _NO_RECIPES, "main --budget": _WORDS, "main --backbone": _WORDS, "main --threads": ("0", "x"),
           "main --backbone x --out": _WRONG_OUTS}, weight=2),
    Words("bench", "options", ("bench", "sample", "--batch", "1"),
          {"--batch": _WRONG_COUNTS, "--repeats": _WRONG_COUNTS, "--teacher-steps": _WRONG_COUNTS,
           "--device": _WRONG_DEVICES, "--threads": _WRONG_COUNTS}, weight=2),
    Words("bench", "recipe's name", ("bench", "train", "--repeats", "0"), _NO_RECIPE, weight=1),
    Words("demo", "options", ("demo", "--quick", *_OUT),
          {"--recipe": _NO_RECIPES, "--threads": ("0", "x", ""), "--out": _WRONG_OUTS,
           "--set": ("x", "plan.steps=x", "=", "train.iterations=0", "nonsense=1")}, weight=2),
    Words("scenes", "options of render", ("scenes", "render", "--count", "2", *_OUT),
          {"--count": _WRONG_COUNTS, "--seed": _WRONG_SEEDS, "--size": ("7", "1025", "x"), "--text": _WORDS,
           "--out": _WRONG_OUTS}, {"--count": ("1000000000",), "--size": ("8", "65")}, weight=4),
]  # fmt: skip


TARGETS: Sequence[Target | Words] = (*_FILES, *_teacher_files(), *_prompt_files(), *_OPTIONS)


def draw(rng: random.Random, targets: Sequence[Target | Words]) -> Target | Words:
    """Draw one of the targets, by weight."""
    return rng.choices(targets, [target.weight for target in targets])[0]
