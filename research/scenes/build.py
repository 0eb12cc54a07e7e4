"""Builds the parts of the world of still scenes: VAE, teachers, judge and reference statistics.

Every result follows from seeds. Renders and checkpoints are kept in a cache. Their file names contain a hash of
everything that determines them, so an interrupted build resumes, and a build with other settings starts from the
beginning. `build.json` records how each part was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from research.sampling import sample_images
from research.scenes.families import FAMILIES
from research.scenes.judge import save_judge, train_judge
from research.scenes.kits import SCENES, Kit
from research.scenes.record import (
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
from research.scenes.teacher import (
    Curriculum,
    LatentSets,
    kept_latents,
    still_latents,
    train_teacher,
    vista_latents,
)
from research.scenes.vae import DECODER_SHARE, build_vae, train_decoder, train_vae
from rmd.common.errors import RMDError, one_of
from rmd.common.files import disk_errors
from rmd.core.metrics import high_frequency
from rmd.evaluation.protocol import TEACHER_STEPS, full_plan
from rmd.models import Backbone, load_backbone
from rmd.recipes.schema import load_recipe
from rmd.train.identity import weights_key
from rmd.worlds.assets import teacher_folder
from rmd.worlds.base import Measured
from rmd.worlds.dataset import SceneSet
from rmd.worlds.judge import accuracy, load_judge
from rmd.worlds.references import References

Log = Callable[[str], None]

TRANSFORMERS = Curriculum(
    low_iterations=1500, high_iterations=3000, low_batch=32, high_batch=16, lr=1.5e-3, matrix_lr=3e-3,
    uniform_in="noise", objects=0.6, pairs=3,
)  # fmt: skip
"""Learning rates are 1.5 times those of the U-Net; three times as high is better only in the first minutes."""
IMITATORS = ("pixart", "sd3")
"""Families whose teachers imitate the packaged SDXL-type one; learning from pictures takes transformers too long."""


def build_vae_weights(
    out: Path, *, cache: Path, kit: Kit = SCENES, seed: int = 0, iterations: int | None = None, log: Log = print
) -> Path:
    """Train the VAE and save it in half precision as `<out>/vae`.

    Args:
        out: folder for the result.
        cache: folder for renders and checkpoints.
        kit: the world's settings.
        seed: seed of the initial weights and the training.
        iterations: optimiser steps of the whole VAE, by default the kit's; `DECODER_SHARE` times as many of the
            decoder alone follow.
        log: receives progress messages.

    Returns:
        The folder `<out>/vae`.

    Raises:
        RMDError: a file cannot be written, or a checkpoint in the cache cannot be read.
    """
    check_writable(out)
    settings = kit.vae if iterations is None else replace(kit.vae, iterations=iterations)
    iterations, data = settings.iterations, kit.vae_data
    checkpoint = checkpoint_path(cache, "vae", kit.renderer_key, settings, seed, data)
    second = checkpoint_path(cache, "decoder", kit.renderer_key, settings, seed, data)
    scenes = data.render(cache)
    with seeded(seed):
        vae = build_vae(settings.widths)
    seconds = train_vae(vae, scenes, settings, seed=seed, checkpoint=checkpoint, log=log)
    more = train_decoder(vae, scenes, settings, seed=seed, checkpoint=second, log=log)
    folder = save_halved(out, "vae", vae, [vae])
    record(out, "vae", Part(seed, iterations, (data,), seconds))
    record(out, "decoder", Part(seed, round(DECODER_SHARE * iterations), (data,), more))
    for path in (checkpoint, second):
        path.unlink(missing_ok=True)
    return folder


def build_teacher(
    out: Path, *, cache: Path, kit: Kit = SCENES, family: str = "sdxl", seed: int = 0,
    iterations: int | None = None, vae: Path | None = None, imitate: Path | None = None, log: Log = print,
) -> Path:  # fmt: skip
    """Train a teacher and save it in half precision as `<out>/teacher`, a diffusers pipeline.

    Args:
        out: folder for the result.
        cache: folder for renders and checkpoints.
        kit: the world's settings.
        family: type of the pipeline, a key of `FAMILIES`; only scenes have others than `sdxl`.
        seed: seed of the initial weights and the training.
        iterations: optimiser steps of both phases, in the proportion of the family's curriculum; its own by default.
        vae: folder of a trained VAE, for a teacher that learns from pictures; by default, one is trained first.
        imitate: folder of a trained teacher to imitate in the latents of its VAE; by default, the packaged one for the
            families `IMITATORS`, unless `vae` is given.
        log: receives progress messages.

    Returns:
        The folder `<out>/teacher`.

    Raises:
        RMDError: the family is unknown; both `vae` and `imitate` are given, or do not contain a VAE or a teacher; a
            file cannot be written, or a checkpoint cannot be read.
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
    encoder = given if given is not None else _cached_vae(out, cache, kit, log)
    curriculum = curriculum_of(iterations, seed=seed, usual=kit.curriculum if family == "sdxl" else TRANSFORMERS)
    imitated_key = None if imitated is None else weights_key(imitated.denoiser)
    encoder_key = _encoder_key(encoder)
    settings = (family, curriculum, kit.clean, kit.poor, encoder_key, imitated_key)
    checkpoint = checkpoint_path(cache, "teacher", kit.renderer_key, *settings)
    with seeded(seed):
        backbone = FAMILIES[family](encoder, kit.words)
    data = _encoded(kit, encoder, encoder_key, cache, seed, log)
    seconds = train_teacher(backbone, data, curriculum, imitated=imitated, checkpoint=checkpoint, log=log)
    folder = save_halved(out, "teacher", backbone.pipe, backbone.pipe.components.values())
    record(out, "teacher", Part(seed, curriculum.iterations, (kit.clean, kit.poor), seconds, imitated=imitated_key))
    checkpoint.unlink(missing_ok=True)
    return folder


def refine_teacher(
    out: Path, *, teacher: Path, cache: Path, kit: Kit, seed: int = 0, iterations: int | None = None, log: Log = print
) -> Path:
    """Train a teacher further, as the kit's refinement says, and save it in half precision as `<out>/teacher`.

    Args:
        out: folder for the result.
        teacher: folder of the teacher's pipeline, which is not changed unless it is `<out>/teacher` itself.
        cache: folder for renders and checkpoints.
        kit: the world's settings.
        seed: seed of the training.
        iterations: optimiser steps; by default the kit's.
        log: receives progress messages.

    Returns:
        The folder `<out>/teacher`.

    Raises:
        RMDError: the kit has no refinement; there is no such teacher; a file cannot be written, or a checkpoint cannot
            be read.
    """
    if kit.refinement is None:
        raise RMDError(f"the teacher of {kit.world.name} has no further training: leave the command out")
    backbone = load_imitated(teacher)
    check_writable(out)
    began_with = weights_key(backbone.denoiser)
    curriculum = curriculum_of(iterations, seed=seed, usual=kit.refinement)
    encoder_key = _encoder_key(backbone.pipe.vae)
    checkpoint = checkpoint_path(
        cache, "refinement", kit.renderer_key, curriculum, kit.clean, kit.poor, encoder_key, began_with
    )
    data = _encoded(kit, backbone.pipe.vae, encoder_key, cache, seed, log)
    for module in (backbone.denoiser, *backbone.text_encoders):
        module.requires_grad_(True)
    seconds = train_teacher(backbone, data, curriculum, checkpoint=checkpoint, log=log)
    folder = save_halved(out, "teacher", backbone.pipe, backbone.pipe.components.values())
    record(
        out, "refinement", Part(seed, curriculum.iterations, (kit.clean, kit.poor), seconds, refined=began_with)
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    return folder


def build_judge(
    out: Path, *, cache: Path, kit: Kit = SCENES, seed: int = 0, iterations: int | None = None, log: Log = print
) -> Measured:
    """Train the judge and save it as `<out>/judge.safetensors`.

    Args:
        out: folder for the result.
        cache: folder for renders and checkpoints.
        kit: the world's settings.
        seed: seed of the initial weights and the training.
        iterations: optimiser steps; by default the kit's.
        log: receives progress messages.

    Returns:
        The accuracy on unseen pictures.

    Raises:
        RMDError: a file cannot be written, or a checkpoint in the cache cannot be read.
    """
    check_writable(out)
    iterations = kit.judge_iterations if iterations is None else iterations
    checkpoint = checkpoint_path(cache, "judge", kit.renderer_key, seed, iterations, kit.judge_data, kit.judge_blurred)
    scenes = joined([data.render(cache) for data in kit.judge_data])
    with seeded(seed):
        judge = kit.world.untrained_judge()
    seconds = train_judge(
        judge, scenes, iterations=iterations, blurred=kit.judge_blurred, seed=seed, checkpoint=checkpoint, log=log
    )
    with disk_errors(out):
        save_judge(judge, out / "judge.safetensors")
    unseen = joined([data.render(cache) for data in kit.judge_test])
    tested = load_judge(out, kit.world.untrained_judge())
    right = tested.assess(unseen.pixels(torch.arange(len(unseen))), unseen.attributes).right
    scores = accuracy(right, unseen.attributes, tested.names)
    results = {"all_right": scores.value, **scores.parts}
    record(out, "judge", Part(seed, iterations, (*kit.judge_data, *kit.judge_test), seconds, results))
    checkpoint.unlink(missing_ok=True)
    return scores


def build_references(
    out: Path, *, cache: Path, kit: Kit = SCENES, teacher: Path | None = None, judge: Path | None = None,
    steps: int = TEACHER_STEPS, log: Log = print,
) -> References:  # fmt: skip
    """Compute the features of fresh renders and of teacher samples, and save them as `<out>/references.safetensors`.

    Args:
        out: folder for the result.
        cache: folder for renders.
        kit: the world's settings.
        teacher: folder of the teacher's pipeline; `<out>/teacher` by default.
        judge: folder of the judge's weights; `out` by default.
        steps: sampling steps of the teacher, at its full resolution and with the guidance of its recipe.
        log: receives progress messages.

    Raises:
        RMDError: the teacher or the judge does not exist, or the file cannot be written.
    """
    began = time.perf_counter()
    network = load_judge(out if judge is None else judge, kit.world.untrained_judge())
    backbone = load_backbone(teacher_folder_at(out / "teacher" if teacher is None else teacher))
    check_writable(out)
    data = kit.references
    scenes = data.render(cache)
    pixels = scenes.pixels(torch.arange(len(scenes)))
    captions = kit.world.captions(data.count, seed=data.seed, training=data.training)
    guidance = _guidance(kit, backbone)
    samples = sample_images(
        backbone, backbone.denoiser, full_plan(backbone, kit.stages[1], steps), captions, seed=data.seed,
        guidance=guidance, progress=log_samples(data.count, log),
    )  # fmt: skip
    read = {
        "renders": network.assess(pixels, scenes.attributes),
        "teacher": network.assess(samples, _attributes(kit, captions)),
    }
    references = References({name: each.features for name, each in read.items()}, high_frequency(pixels))
    with disk_errors(out):
        save_references(references, out)
    results = {f"{name}_right": float(each.right.all(1).float().mean()) for name, each in read.items()}
    seconds = time.perf_counter() - began
    record(out, "references", Part(data.seed, 0, (data,), seconds, results | {"steps": steps, "guidance": guidance}))
    return references


def joined(sets: Sequence[SceneSet]) -> SceneSet:
    """Return sets of pictures of one world as one."""
    images, attributes, places = (
        torch.cat([getattr(each, name) for each in sets]) for name in ("images", "attributes", "places")
    )
    return SceneSet(images, attributes, [text for each in sets for text in each.captions], places)


def kit_latents(kit: Kit, vae: AutoencoderKL, cache: Path, seed: int, log: Log) -> LatentSets:
    """Return the latents of the teacher's pictures in a VAE."""
    made = still_latents if kit.world.name == "scenes" else vista_latents
    clean, poor = (data.render(cache) for data in (kit.clean, kit.poor))
    log(f"encoding {kit.clean.count + kit.poor.count} pictures")
    return made(vae, clean, poor, seed=seed)


def _guidance(kit: Kit, backbone: Backbone) -> float:
    """Return the guidance scale of the recipe of a world's teacher of the same family."""
    recipes = {teacher.family: name for name, teacher in kit.world.teachers.items()}
    return load_recipe(recipes[one_of(f"family of {kit.world.name}", backbone.family, tuple(recipes))]).method.guidance


def curriculum_of(iterations: int | None, *, seed: int, usual: Curriculum) -> Curriculum:
    """Return the usual curriculum, or one of `iterations` steps (at least 2) with the phases in the same proportion."""
    usual = replace(usual, seed=seed)
    if iterations is None:
        return usual
    low = max(min(1, usual.low_iterations), round(iterations * usual.low_iterations / usual.iterations))
    return replace(usual, low_iterations=low, high_iterations=iterations - low)


def _encoder_key(vae: AutoencoderKL) -> str:
    """Return the key of a VAE's encoder, which does not depend on the decoder."""
    return weights_key(nn.ModuleList([vae.encoder, vae.quant_conv]))


def _encoded(kit: Kit, vae: AutoencoderKL, encoder_key: str, cache: Path, seed: int, log: Log) -> LatentSets:
    """Return the latents of the teacher's pictures, which are encoded once per cache."""
    path = checkpoint_path(cache, "latents", kit.renderer_key, seed, kit.clean, kit.poor, encoder_key)
    return replace(kept_latents(path, lambda: kit_latents(kit, vae, cache, seed, log)), stages=kit.stages)


def load_vae(folder: Path) -> AutoencoderKL:
    """Load a trained VAE, frozen and in float32; raise RMDError if the folder contains none."""
    if not (folder / "config.json").is_file():
        raise RMDError(f"{folder} holds no VAE: give the folder that `python -m research.scenes train-vae` wrote")
    try:
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise RMDError(f"cannot load the VAE in {folder}: {str(error).strip().splitlines()[0]}") from error
    return vae.float().eval().requires_grad_(False)


def load_imitated(folder: Path) -> Backbone:
    """Load a trained teacher, frozen and in float32; raise RMDError if the folder contains none."""
    backbone = load_backbone(teacher_folder_at(folder))
    for module in (backbone.denoiser, backbone.pipe.vae, *backbone.text_encoders):
        module.eval().requires_grad_(False)
    return backbone


def teacher_folder_at(teacher: Path) -> Path:
    """Return the folder; raise RMDError if it does not exist, since its name would then be looked up on the Hub."""
    if not teacher.is_dir():
        raise RMDError(
            f"there is no teacher {teacher}: build one with `python -m research.scenes train-teacher`, "
            "or give --teacher"
        )
    return teacher


def _cached_vae(out: Path, cache: Path, kit: Kit, log: Log) -> AutoencoderKL:
    """Return the kit's VAE, which is trained once per cache; its record is copied to `out`."""
    folder = cache / f"vae-{build_key(kit.renderer_key, kit.vae, kit.vae_data)}"
    if not (folder / "vae" / "config.json").is_file():
        build_vae_weights(folder, cache=cache, kit=kit, log=log)
    cached = read_record(folder)
    record(out, "vae", cached.vae)
    record(out, "decoder", cached.decoder)
    return load_vae(folder / "vae")


def _attributes(kit: Kit, captions: Sequence[str]) -> Tensor:
    """Return the attributes (n, k) that captions of a world name."""
    return torch.tensor([kit.world.asked(text).to_tuple() for text in captions])


def log_samples(total: int, log: Log) -> Callable[[int], None]:
    """Return a progress function that logs the number of samples so far."""
    done, began = 0, time.perf_counter()

    def count(more: int) -> None:
        nonlocal done
        done += more
        log(f"teacher sample {done}/{total} {time.perf_counter() - began:.0f}s")

    return count
