"""Judges a video sampler's clips against captions, fresh renders and the teacher's own samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rmd.report import Motion, Row
from rmd.scenes.compare import SAMPLES_PER_PROMPT, Contender, Samples
from rmd.scenes.metrics import diversity, frechet_distance, high_frequency, kernel_distance, standardise
from rmd.scenes.moving.build import ClipReferences
from rmd.scenes.moving.grammar import parse_clip
from rmd.scenes.moving.judge import FrameJudge
from rmd.scenes.moving.metrics import SHOWN, change_features, frame_features, measure_clips


def measure_clip_row(
    contender: Contender, samples: Samples, prompts: Sequence[str], *, judge: FrameJudge,
    references: ClipReferences, teacher_seconds: float,
) -> Row:  # fmt: skip
    """A contender's row; distances are of frames, `Row.motion` of what moves.

    Args:
        prompts: captions of the moving scenes' grammar, `SAMPLES_PER_PROMPT` samples of each in a row.
        teacher_seconds: denoiser seconds per clip of the teacher's row.
    """
    asked = torch.tensor([found.to_tuple() for text in prompts if (found := parse_clip(text)) is not None])
    track = judge.follow(samples.images)
    measured = measure_clips(samples.images, track, asked)
    ours, renders = standardise(frame_features(track), references.render_frames)
    teacher, _ = standardise(references.teacher_frames, references.render_frames)
    # frames of one clip, and clips of one prompt, are alike, which the estimate must know
    runs = (SAMPLES_PER_PROMPT * len(SHOWN), len(SHOWN))
    to_renders = kernel_distance(ours, renders, per_prompt=runs)
    to_teacher = kernel_distance(ours, teacher, per_prompt=runs)
    changes, usual = standardise(change_features(track), references.render_changes)
    of_changes = kernel_distance(changes, usual, per_prompt=(SAMPLES_PER_PROMPT, 1))
    count = len(prompts)
    seconds = samples.denoiser_seconds / count
    clips = ours.unflatten(0, (count, len(SHOWN))).flatten(1)
    return Row(
        name=contender.name,
        label=contender.label,
        nfe=samples.evaluations / count,
        seconds_per_image=seconds,
        speedup=teacher_seconds / seconds,
        seconds_end_to_end=samples.total_seconds / count,
        attributes=measured.attributes.value,
        attributes_ci=(measured.attributes.low, measured.attributes.high),
        attributes_by_name=measured.attributes_by_name,
        kernel_distance=to_renders.value,
        kernel_distance_ci=(to_renders.low, to_renders.high),
        kernel_distance_to_teacher=to_teacher.value,
        kernel_distance_to_teacher_ci=(to_teacher.low, to_teacher.high),
        frechet_distance=frechet_distance(ours, renders),
        high_frequency=high_frequency(samples.images.transpose(1, 2).flatten(0, 1)) / references.high_frequency,
        diversity=diversity(clips, torch.arange(count) // SAMPLES_PER_PROMPT),
        motion=Motion(
            motion=measured.motion.value,
            motion_ci=(measured.motion.low, measured.motion.high),
            speed=measured.speed.value,
            speed_ci=(measured.speed.low, measured.speed.high),
            dynamics=measured.dynamics,
            flicker=measured.flicker,
            change_distance=of_changes.value,
            change_distance_ci=(of_changes.low, of_changes.high),
        ),
    )
