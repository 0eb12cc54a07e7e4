"""Builds the parts of the world of moving scenes: VAE, teacher, judge and reference statistics."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from research.sampling import sample_images
from research.scenes.build import log_samples, teacher_folder_at
from research.scenes.judge import save_judge
from research.scenes.moving import maps
from research.scenes.moving.dataset import make_clips
from research.scenes.moving.judge import train_frame_judge
from research.scenes.moving.teacher import build_wan, clip_latents
from research.scenes.moving.vae import build_clip_vae, train_clip_vae
from research.scenes.record import Data, Part, check_writable, checkpoint_path, record, save_halved, seeded
from research.scenes.references import save_references
from research.scenes.teacher import HIGH, Curriculum, LatentSets, kept_latents, train_teacher
from rmd.common.errors import RMDError
from rmd.common.files import disk_errors
from rmd.core.metrics import high_frequency
from rmd.evaluation.protocol import TEACHER_STEPS, full_plan
from rmd.models import load_backbone
from rmd.recipes.schema import load_recipe
from rmd.train.identity import weights_key
from rmd.worlds.base import Measured
from rmd.worlds.moving import grammar, path, render
from rmd.worlds.moving.grammar import clip_captions, parse_clip
from rmd.worlds.moving.judge import FILE_NAME, FrameJudge, load_frame_judge
from rmd.worlds.moving.metrics import change_features, frame_features, measure_clips
from rmd.worlds.references import References

Log = Callable[[str], None]

CLIP_VAE_DATA = Data(1536, seed=41)
CLIP_VAE_ITERATIONS = 3400
CLEAN_CLIPS = Data(8192, seed=51)
POOR_CLIPS = Data(4096, seed=52)
STILL_CLIPS = Data(32768, seed=53)
CLIP_JUDGE_DATA = Data(4096, seed=61, training=False)
CLIP_JUDGE_ITERATIONS = 2000
CLIP_JUDGE_TEST = Data(512, seed=62, training=False)
CLIP_REFERENCES = Data(384, seed=71, training=False)
CLIP_CURRICULUM = Curriculum(
    low_iterations=2000, high_iterations=7000, low_batch=32, high_batch=16, still_share=0.4, uniform_in="noise",
    lr=1.5e-3, matrix_lr=3e-3,
)  # fmt: skip


def renderer_key() -> str:
    """Return a hash (12 hexadecimal digits) of the source code of the grammar, the paths, the renderer and the maps."""
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (grammar, path, render, maps))
    return hashlib.blake2b(sources, digest_size=6).hexdigest()


def build_clip_vae_weights(
    out: Path, *, cache: Path, seed: int = 0, iterations: int = CLIP_VAE_ITERATIONS, data: Data = CLIP_VAE_DATA,
    log: Log = print,
) -> Path:  # fmt: skip
    """Train the VAE of moving scenes and save it in half precision as `<out>/vae`.

    Arguments and result are those of `research.scenes.build.build_vae_weights`.

    Raises:
        RMDError: a file cannot be written, or a checkpoint in the cache cannot be read.
    """
    check_writable(out)
    checkpoint = checkpoint_path(cache, "clip-vae", renderer_key(), seed, iterations, data)
    clips = make_clips(data.count, seed=data.seed, training=data.training)
    with seeded(seed):
        vae = build_clip_vae()
    seconds = train_clip_vae(vae, clips, iterations=iterations, seed=seed, checkpoint=checkpoint, log=log)
    folder = save_halved(out, "vae", vae, [vae])
    record(out, "vae", Part(seed, iterations, (data,), seconds))
    checkpoint.unlink(missing_ok=True)
    return folder


def load_clip_vae(folder: Path) -> AutoencoderKLWan:
    """Load a trained VAE of moving scenes, frozen and in float32; raise RMDError if the folder contains none."""
    if not (folder / "config.json").is_file():
        raise RMDError(
            f"{folder} holds no VAE: give the folder that "
            "`python -m research.scenes train-vae --world moving-scenes` wrote"
        )
    vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(folder)
    return vae.float().eval().requires_grad_(False)


def build_clip_teacher(
    out: Path, *, cache: Path, seed: int = 0, vae: Path | None = None, curriculum: Curriculum = CLIP_CURRICULUM,
    clean: Data = CLEAN_CLIPS, poor: Data = POOR_CLIPS, still: Data = STILL_CLIPS, log: Log = print,
) -> Path:  # fmt: skip
    """Train the teacher of moving scenes and save it in half precision as `<out>/teacher`, a diffusers pipeline.

    Args:
        out: folder for the result.
        cache: folder for encoded clips and checkpoints.
        seed: seed of the initial weights and of the degradation of clips.
        vae: folder of a trained VAE; by default, one is trained first and saved as `<out>/vae`.
        curriculum: settings of the training.
        clean, poor: clips for the high and the low resolution.
        still: clips of which only the first frames are used.
        log: receives progress messages.

    Returns:
        The folder `<out>/teacher`.

    Raises:
        RMDError: `vae` contains no VAE, a file cannot be written, or a checkpoint cannot be read.
    """
    if vae is not None:
        encoder = load_clip_vae(vae)
    check_writable(out)
    if vae is None:
        encoder = load_clip_vae(build_clip_vae_weights(out, cache=cache, seed=seed, log=log))
    encoder_key = weights_key(nn.ModuleList([encoder.encoder, encoder.quant_conv]))
    checkpoint = checkpoint_path(cache, "clip-teacher", renderer_key(), curriculum, clean, poor, still, encoder_key)
    with seeded(seed):
        backbone = build_wan(encoder)
    path = checkpoint_path(cache, "clip-latents", renderer_key(), seed, clean, poor, still, encoder_key)

    def encoded() -> LatentSets:
        log(f"encoding {clean.count + poor.count} clips and {still.count} first frames")
        return clip_latents(encoder, clean, poor, still, seed=seed)

    latents = kept_latents(path, encoded)
    seconds = train_teacher(backbone, latents, curriculum, checkpoint=checkpoint, log=log)
    folder = save_halved(out, "teacher", backbone.pipe, backbone.pipe.components.values())
    record(out, "teacher", Part(seed, curriculum.iterations, (clean, poor, still), seconds))
    checkpoint.unlink(missing_ok=True)
    return folder


def build_frame_judge(
    out: Path, *, cache: Path, seed: int = 0, iterations: int = CLIP_JUDGE_ITERATIONS, data: Data = CLIP_JUDGE_DATA,
    test: Data = CLIP_JUDGE_TEST, log: Log = print,
) -> dict[str, Measured]:  # fmt: skip
    """Train the judge of moving scenes and save it in `out`.

    Arguments are those of `research.scenes.build.build_judge`.

    Returns:
        The judge's measurements of unseen renders, all of which are correct.

    Raises:
        RMDError: a file cannot be written, or a checkpoint in the cache cannot be read.
    """
    check_writable(out)
    checkpoint = checkpoint_path(cache, "frame-judge", renderer_key(), seed, iterations, data)
    clips = make_clips(data.count, seed=data.seed, training=data.training)
    with seeded(seed):
        judge = FrameJudge()
    seconds = train_frame_judge(judge, clips, iterations=iterations, seed=seed, checkpoint=checkpoint, log=log)
    with disk_errors(out):
        save_judge(judge, out / FILE_NAME)
    unseen = make_clips(test.count, seed=test.seed, training=test.training)
    videos = unseen.pixels(torch.arange(len(unseen)))
    measures = measure_clips(videos, load_frame_judge(out).follow(videos), unseen.attributes)
    record(out, "judge", Part(seed, iterations, (data, test), seconds, _values(measures)))
    checkpoint.unlink(missing_ok=True)
    return measures


def build_clip_references(
    out: Path, *, cache: Path, teacher: Path | None = None, judge: Path | None = None, data: Data = CLIP_REFERENCES,
    steps: int = TEACHER_STEPS, log: Log = print,
) -> References:  # fmt: skip
    """Compute features of fresh renders and of teacher samples, and save them as `<out>/clip-references.safetensors`.

    Arguments are those of `research.scenes.build.build_references`.

    Raises:
        RMDError: the teacher or the judge does not exist, or the file cannot be written.
    """
    began = time.perf_counter()
    network = load_frame_judge(out if judge is None else judge)
    backbone = load_backbone(teacher_folder_at(out / "teacher" if teacher is None else teacher))
    check_writable(out)
    clips = make_clips(data.count, seed=data.seed, training=data.training)
    videos = clips.pixels(torch.arange(len(clips)))
    captions = clip_captions(data.count, seed=data.seed, training=data.training)
    recipe = load_recipe("scenes-wan")
    plan = full_plan(backbone, HIGH, steps, frames=recipe.frames)
    samples = sample_images(
        backbone, backbone.denoiser, plan, captions, seed=data.seed, guidance=recipe.method.guidance, batch_size=16,
        progress=log_samples(data.count, log),
    )  # fmt: skip
    render_tracks, sample_tracks = network.follow(videos), network.follow(samples)
    features = {
        "render_frames": frame_features(render_tracks),
        "render_changes": change_features(render_tracks),
        "teacher_frames": frame_features(sample_tracks),
        "teacher_changes": change_features(sample_tracks),
    }
    references = References(features, high_frequency(videos.transpose(1, 2).flatten(0, 1)))
    with disk_errors(out):
        save_references(references, out, moving=True)
    requested = torch.tensor([clip.to_tuple() for text in captions if (clip := parse_clip(text)) is not None])
    renders = _values(measure_clips(videos, render_tracks, clips.attributes))
    teachers = _values(measure_clips(samples, sample_tracks, requested))
    results: dict[str, int | float] = {f"renders_{name}": value for name, value in renders.items()}
    results |= {f"teacher_{name}": value for name, value in teachers.items()}
    results |= {"steps": steps, "guidance": recipe.method.guidance}
    record(out, "references", Part(data.seed, 0, (data,), time.perf_counter() - began, results))
    return references


def _values(measures: Mapping[str, Measured]) -> dict[str, float]:
    return {name: measured.value for name, measured in measures.items()}
