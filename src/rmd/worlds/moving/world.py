"""The world `moving-scenes`: short clips of one object with a known path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from rmd.common.clips import save_clip
from rmd.common.errors import RMDError
from rmd.common.files import check_new_folder
from rmd.common.pictures import comparison_picture, to_uint8
from rmd.core.metrics import high_frequency
from rmd.worlds.assets import own_teachers
from rmd.worlds.base import Assessment, Demo, Features, PackagedTeacher, Target
from rmd.worlds.moving.grammar import CLIP_ATTRIBUTES, clip_attributes_of, clip_captions
from rmd.worlds.moving.judge import FrameJudge, load_frame_judge
from rmd.worlds.moving.metrics import SHOWN, change_features, frame_features, measure_clips
from rmd.worlds.moving.render import clips_of, render_clips, sample_clips
from rmd.worlds.pictures import FPS, save_grid, write_samples
from rmd.worlds.references import References, load_references

COMPARED = 8
"""Number of captions in the animation that shows all samplers side by side."""
DEMO = Demo(
    rows=("teacher", "teacher-4", "cascade-undistilled", "tdm", "rmd"),
    targets=(
        Target("motion over the teacher's", "at least 0.9", "motion", 0.9, least=True, over="teacher"),
        Target("attributes over the teacher's", "at least 0.9", "attributes", 0.9, least=True, over="teacher"),
        Target("distance to renders over the undistilled cascade's", "below 1", "kernel_distance", 1,
               over="cascade-undistilled"),
        Target("denoiser speed-up over as many full-resolution steps", "at least 1.4", "gain", 1.4, least=True),
    ),
    prompts=16,
)  # fmt: skip


@dataclass(frozen=True)
class ClipJudge:
    """The moving scenes' judge with the reference statistics of their teacher."""

    network: FrameJudge
    references: References

    def assess(self, images: Tensor, prompts: Sequence[str], *, samples_per_prompt: int) -> Assessment:
        """Judge clips (n, 3, T, 64, 64) in [-1, 1] against their captions; see `rmd.worlds.base.Judge`."""
        asked = torch.tensor([clip_attributes_of(text).to_tuple() for text in prompts])
        track, its = self.network.follow(images), self.references
        detail = high_frequency(images.transpose(1, 2).flatten(0, 1))
        return Assessment(
            count=len(images),
            samples_per_prompt=samples_per_prompt,
            right=(track.named == asked[:, None, :3]).all(2).all(1),
            counted=measure_clips(images, track, asked),
            features=Features(frame_features(track), its["render_frames"], its["teacher_frames"], rows=len(SHOWN)),
            detail=detail / its.high_frequency,
            changes=Features(change_features(track), its["render_changes"], its["teacher_changes"]),
        )


class MovingScenes:
    """Moving scenes; see `rmd.worlds.base.World`."""

    name, noun, moving, side, demo = "moving-scenes", "clips", True, 64, DEMO
    metrics = (
        "attributes", "motion", "speed", "dynamics", "flicker", "kernel_distance", "kernel_distance_to_teacher",
        "change_distance", "frechet_distance", "high_frequency", "diversity",
    )  # fmt: skip

    @property
    def teachers(self) -> Mapping[str, PackagedTeacher]:
        """The packaged Wan teacher by its name."""
        return own_teachers("scenes-wan")

    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions of clips; `training` leaves out the held-out combinations."""
        return clip_captions(count, seed=seed, training=training)

    def renders(self, count: int, *, seed: int, size: int) -> NoReturn:
        """Raise RMDError: this world renders clips, and the caller needs single pictures."""
        raise RMDError("moving-scenes renders clips, but single pictures are needed here: choose another source")

    def judge(self, teacher: str | None = None) -> ClipJudge:
        """Load the judge with the teacher's reference statistics; see `rmd.worlds.base.World`."""
        home = self.teachers["scenes-wan" if teacher is None else teacher].home
        return ClipJudge(load_frame_judge(home), load_references(home, moving=True))

    def draw(self, count: int, *, seed: int, text: str | None, folder: Path, size: int) -> Path:
        """Render clips into a new folder and return their contact sheet; see `rmd.worlds.base.World`."""
        check_new_folder(folder)
        clips = (
            sample_clips(range(count), seed=seed, training=False)
            if text is None
            else clips_of([clip_attributes_of(text)] * count, seed=seed)
        )
        videos = to_uint8(render_clips(clips, size, chunk=max(1, 32 * 64**2 // size**2)), low=0)
        return write_samples(clips, videos, CLIP_ATTRIBUTES, folder, sheet=32, width=128)

    def save_samples(
        self, grids: Mapping[str, Tensor], labels: Mapping[str, str], prompts: Sequence[str], folder: Path
    ) -> None:
        """Write one animation per sampler, and one that shows the first clips of all samplers side by side."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, videos in grids.items():
            save_grid(videos, prompts, folder / f"{name}.webp", scale=2)
        first = {name: videos[:COMPARED] for name, videos in grids.items()}
        frames = [
            comparison_picture({name: videos[:, :, time] for name, videos in first.items()}, labels, columns=2)
            for time in range(next(iter(first.values())).shape[2])
        ]
        save_clip(frames, folder / "comparison.webp", fps=FPS)


WORLD = MovingScenes()
