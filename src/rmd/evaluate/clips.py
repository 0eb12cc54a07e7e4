"""Judges a video sampler's clips against captions, fresh renders and the teacher's own samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rmd.core.metrics import high_frequency, kernel_distance, standardise
from rmd.evaluate.protocol import SAMPLES_PER_PROMPT, Contender, Samples, row_of
from rmd.evaluate.rows import Motion, Row
from rmd.worlds.moving.grammar import parse_clip
from rmd.worlds.moving.judge import FrameJudge
from rmd.worlds.moving.metrics import SHOWN, change_features, frame_features, measure_clips
from rmd.worlds.moving.references import ClipReferences
from rmd.worlds.still.accuracy import Accuracy


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
    changes, usual = standardise(change_features(track), references.render_changes)
    of_changes = kernel_distance(changes, usual, per_prompt=(SAMPLES_PER_PROMPT, 1))
    detail = high_frequency(samples.images.transpose(1, 2).flatten(0, 1))
    return row_of(
        contender,
        samples,
        right=Accuracy(measured.attributes, measured.attributes_by_name),
        features=(frame_features(track), references.render_frames, references.teacher_frames),
        detail=detail / references.high_frequency,
        teacher_seconds=teacher_seconds,
        frames=len(SHOWN),
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
