"""Builds what the package holds of the scenes: VAE and teacher, judge, and the reference statistics.

Everything follows from seeds. Renders and checkpoints lie in a cache, whose file names carry a key of all that decides
them, so a killed build goes on where it was and another one starts anew. `build.json` records how each part was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from research.scenes.families import FAMILIES
from research.scenes.judge import save_judge, train_judge
from research.scenes.record import (
    Data,
    Part,
    build_key,
    check_writable,
    checkpoint_path,
    read_record,
    record,
    save_halved,
    seeded,
)
from research.scenes.references import save_references
from research.scenes.teacher import HIGH, Curriculum, still_latents, train_teacher
from research.scenes.vae import build_vae, train_decoder, train_vae
from rmd.common.errors import RMDError, one_of
from rmd.common.files import disk_errors
from rmd.core.metrics import high_frequency
from rmd.evaluate.protocol import TEACHER_STEPS, full_plan
from rmd.models import Backbone, load_backbone
from rmd.models.generate import sample_images
from rmd.recipes.schema import load_recipe
from rmd.train.identity import weights_key
from rmd.worlds.assets import TEACHERS, teacher_folder
from rmd.worlds.references import References, load_references
from rmd.worlds.still.accuracy import Accuracy, accuracy
from rmd.worlds.still.grammar import parse, scene_captions
from rmd.worlds.still.judge import Judge, load_judge

__all__ = [
    "build_judge",
    "build_references",
    "build_teacher",
    "build_vae_weights",
    "load_references",
    "save_references",
]

Log = Callable[[str], None]

VAE_DATA = Data(8192, seed=1)
CLEAN_DATA = Data(40960, seed=11)
POOR_DATA = Data(16384, seed=12)
VAE_ITERATIONS = 1000
DECODER_SHARE = 2.5
"""Iterations of the VAE's decoder alone, after those of the whole, over the latter's."""
CURRICULUM = Curriculum()
TRANSFORMERS = Curriculum(
    low_iterations=1500, high_iterations=3000, low_batch=32, high_batch=16, lr=1.5e-3, matrix_lr=3e-3, even="noise",
    objects=0.6, pairs=3,
)  # fmt: skip
"""Rates half as high again as the U-Net's: three times them are better in the first minutes only."""
CURRICULA = {"sdxl": CURRICULUM, "pixart": TRANSFORMERS, "sd3": TRANSFORMERS}
IMITATORS = ("pixart", "sd3")
"""Families whose teachers learn from the packaged SDXL-type one: from pictures, transformers take too long here."""
JUDGE_DATA = Data(24576, seed=21, training=False)
JUDGE_ITERATIONS = 3000
JUDGE_TEST = Data(2048, seed=22, training=False)
REFERENCE_DATA = Data(1024, seed=31, training=False)


def build_vae_weights(
    out: Path, *, cache: Path, seed: int = 0, iterations: int = VAE_ITERATIONS, data: Data = VAE_DATA, log: Log = print
) -> Path:
    """Train the scenes' VAE into `<out>/vae`, in half precision; returns that folder.

    Args:
        iterations: of the whole; `DECODER_SHARE` times as many of the decoder alone follow.

    Raises:
        RMDError: a file cannot be written, or a checkpoint in the cache cannot be read.
    """
    check_writable(out)
    decides = (seed, iterations, data)
    further = round(DECODER_SHARE * iterations)
    checkpoint, second = checkpoint_path(cache, "vae", *decides), checkpoint_path(cache, "decoder", *decides, further)
    scenes = data.render(cache)
    with seeded(seed):
        vae = build_vae()
    seconds = train_vae(vae, scenes, iterations=iterations, seed=seed, checkpoint=checkpoint, log=log)
    more = train_decoder(vae, scenes, iterations=further, seed=seed, checkpoint=second, log=log)
    folder = save_halved(out, "vae", vae, [vae])
    record(out, "vae", Part(seed, iterations, (data,), seconds))
    record(out, "decoder", Part(seed, further, (data,), more))
    for done in (checkpoint, second):
        done.unlink(missing_ok=True)
    return folder


def build_teacher(
    out: Path, *, cache: Path, family: str = "sdxl", seed: int = 0, iterations: int | None = None,
    vae: Path | None = None, imitate: Path | None = None, clean: Data = CLEAN_DATA, poor: Data = POOR_DATA,
    log: Log = print,
) -> Path:  # fmt: skip
    """Train the scenes' teacher into `<out>/teacher`, a diffusers pipeline in half precision; returns that folder.

    Args:
        iterations: of both phases together, split as in the family's curriculum, whose number is the default.
        vae: folder of a trained VAE, for a teacher that learns from pictures; by default it is trained first.
        imitate: folder of a trained teacher whose predictions are learned, in the latents of its VAE; the packaged
            one by default for the families `IMITATORS`, unless `vae` is given.

    Raises:
        RMDError: the family is unknown; both `vae` and `imitate` are given, or hold no VAE and no teacher; a file
            cannot be written, or a checkpoint read.
    """
    one_of("family", family, tuple(FAMILIES))
    if vae is not None and imitate is not None:
        raise RMDError("a teacher that imitates another uses its VAE: give --vae or --imitate, not both")
    if imitate is None and vae is None and family in IMITATORS:
        imitate = teacher_folder()
    imitated = None if imitate is None else load_imitated(imitate)
    given = None if vae is None else load_vae(vae)
    check_writable(out)
    if imitated is not None:
        given = imitated.pipe.vae
    encoder = given if given is not None else _cached_vae(out, cache, log)
    curriculum = curriculum_of(iterations, seed=seed, usual=CURRICULA[family])
    whom = None if imitated is None else weights_key(imitated.denoiser)
    latents = weights_key(nn.ModuleList([encoder.encoder, encoder.quant_conv]))  # the decoder plays no part
    checkpoint = checkpoint_path(cache, "teacher", family, curriculum, clean, poor, latents, whom)
    with seeded(seed):
        backbone = FAMILIES[family](encoder)
    data = still_latents(backbone.pipe.vae, clean.render(cache), poor.render(cache), seed=seed)
    seconds = train_teacher(backbone, data, curriculum, imitated=imitated, checkpoint=checkpoint, log=log)
    folder = save_halved(out, "teacher", backbone.pipe, backbone.pipe.components.values())
    record(out, "teacher", Part(seed, curriculum.iterations, (clean, poor), seconds, imitated=whom))
    checkpoint.unlink(missing_ok=True)
    return folder


def build_judge(
    out: Path, *, cache: Path, seed: int = 0, iterations: int = JUDGE_ITERATIONS, data: Data = JUDGE_DATA,
    test: Data = JUDGE_TEST, log: Log = print,
) -> Accuracy:  # fmt: skip
    """Train the judge into `<out>/judge.safetensors`; returns its accuracy on scenes it has not seen.

    Raises:
        RMDError: a file cannot be written, or a checkpoint in the cache cannot be read.
    """
    check_writable(out)
    checkpoint = checkpoint_path(cache, "judge", seed, iterations, data)
    scenes = data.render(cache)
    with seeded(seed):
        judge = Judge()
    seconds = train_judge(judge, scenes, iterations=iterations, seed=seed, checkpoint=checkpoint, log=log)
    with disk_errors(out):
        save_judge(judge, out)
    unseen = test.render(cache)
    right, _ = load_judge(out).assess(unseen.pixels(torch.arange(len(unseen))), unseen.attributes)
    found = accuracy(right, unseen.attributes)
    results = {"all_right": found.all_right.value, **found.by_name}
    record(out, "judge", Part(seed, iterations, (data, test), seconds, results))
    checkpoint.unlink(missing_ok=True)
    return found


def build_references(
    out: Path, *, cache: Path, teacher: Path | None = None, judge: Path | None = None,
    data: Data = REFERENCE_DATA, steps: int = TEACHER_STEPS, log: Log = print,
) -> References:  # fmt: skip
    """Judge fresh renders and the teacher's own samples; writes `<out>/references.safetensors`.

    The teacher samples the captions of `data.seed` in `steps` steps at its full resolution, with the guidance of its
    family's recipe.

    Args:
        teacher: the pipeline, `<out>/teacher` by default.
        judge: the folder of its weights, `out` by default.

    Raises:
        RMDError: teacher or judge are not there, or the file cannot be written.
    """
    began = time.perf_counter()
    knows = load_judge(out if judge is None else judge)
    backbone = load_backbone(teacher_folder_at(out / "teacher" if teacher is None else teacher))
    check_writable(out)
    scenes = data.render(cache)
    pixels = scenes.pixels(torch.arange(len(scenes)))
    captions = scene_captions(data.count, seed=data.seed, training=data.training)
    recipes = {family: name for name, family in TEACHERS.items()}
    guidance = load_recipe(recipes[one_of("family of scenes", backbone.family, tuple(recipes))]).method.guidance
    samples = sample_images(
        backbone,
        backbone.denoiser,
        full_plan(backbone, HIGH, steps),
        captions,
        seed=data.seed,
        guidance=guidance,
        progress=log_samples(data.count, log),
    )
    renders_right, renders = knows.assess(pixels, scenes.attributes)
    samples_right, features = knows.assess(samples, _attributes(captions))
    found = References(renders, features, high_frequency(pixels))
    with disk_errors(out):
        save_references(found, out)
    shares = {"renders_right": renders_right, "teacher_right": samples_right}
    results = {name: float(right.all(1).float().mean()) for name, right in shares.items()}
    seconds = time.perf_counter() - began
    record(out, "references", Part(data.seed, 0, (data,), seconds, results | {"steps": steps, "guidance": guidance}))
    return found


def curriculum_of(iterations: int | None, *, seed: int, usual: Curriculum = CURRICULUM) -> Curriculum:
    """The usual curriculum, or one of that many iterations (at least 2) with its phases in proportion."""
    usual = replace(usual, seed=seed)
    if iterations is None:
        return usual
    low = max(1, round(iterations * usual.low_iterations / usual.iterations))
    return replace(usual, low_iterations=low, high_iterations=iterations - low)


def load_vae(folder: Path) -> AutoencoderKL:
    """A trained VAE in float32, frozen; RMDError when the folder holds none."""
    if not (folder / "config.json").is_file():
        raise RMDError(f"{folder} holds no VAE: give the folder that `python -m research.scenes train-vae` wrote")
    try:
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise RMDError(f"cannot load the VAE in {folder}: {str(error).strip().splitlines()[0]}") from error
    return vae.float().eval().requires_grad_(False)


def load_imitated(folder: Path) -> Backbone:
    """A trained teacher in float32, frozen; RMDError when the folder holds none."""
    backbone = load_backbone(teacher_folder_at(folder))
    for module in (backbone.denoiser, backbone.pipe.vae, *backbone.text_encoders):
        module.eval().requires_grad_(False)
    return backbone


def teacher_folder_at(teacher: Path) -> Path:
    """The folder itself; a name that is no folder would be looked for on the Hub."""
    if not teacher.is_dir():
        raise RMDError(
            f"there is no teacher {teacher}: build one with `python -m research.scenes train-teacher`, "
            "or give --teacher"
        )
    return teacher


def _cached_vae(out: Path, cache: Path, log: Log) -> AutoencoderKL:
    """The default VAE, trained once for a cache; its record goes to `out` too."""
    folder = cache / f"vae-{build_key(VAE_ITERATIONS, VAE_DATA)}"
    if not (folder / "vae" / "config.json").is_file():
        build_vae_weights(folder, cache=cache, iterations=VAE_ITERATIONS, data=VAE_DATA, log=log)
    made = read_record(folder)
    record(out, "vae", made.vae)
    record(out, "decoder", made.decoder)
    return load_vae(folder / "vae")


def _attributes(captions: Sequence[str]) -> Tensor:
    """(n, 9) attributes that captions of the grammar name."""
    return torch.tensor([found.to_tuple() for text in captions if (found := parse(text)) is not None])


def log_samples(total: int, log: Log) -> Callable[[int], None]:
    """A progress function that logs how many of `total` samples there are."""
    done, began = 0, time.perf_counter()

    def count(more: int) -> None:
        nonlocal done
        done += more
        log(f"teacher sample {done}/{total} {time.perf_counter() - began:.0f}s")

    return count
