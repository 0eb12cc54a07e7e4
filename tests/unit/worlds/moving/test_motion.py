"""Motion from tracks: right for every true path, wrong for paths of another motion, direction or speed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rmd.worlds.batch import Batch
from rmd.worlds.moving.grammar import MOTIONS, SYMMETRY
from rmd.worlds.moving.judge import Track
from rmd.worlds.moving.motion import judge_motion, read_motion
from rmd.worlds.moving.path import FRAMES, Path
from rmd.worlds.moving.render import clip_path, sample_clips


@pytest.fixture(scope="module")
def clips() -> Batch:
    return sample_clips(range(600), seed=3, training=False)


def track_of(path: Path, attributes: Tensor, noise: float = 0.0) -> Track:
    """Return the track of a judge that errs by `noise`, in canvas units and correspondingly in other units."""
    g = torch.Generator().manual_seed(0)

    def error(like: Tensor) -> Tensor:
        return noise * torch.randn(like.shape, generator=g)

    fold = torch.tensor(SYMMETRY)[attributes[:, 1]][:, None]
    n, frames = path.radius.shape
    phase = torch.where(fold > 0, fold * path.angle, 6 * torch.rand(n, frames, generator=g))
    return Track(
        torch.zeros(n, frames, 3, dtype=torch.int64),
        path.centre + error(path.centre),
        path.radius * (1 + 0.1 * error(path.radius)),
        phase + 0.3 * error(phase),
        torch.zeros(n, frames, 4),
    )


@pytest.mark.parametrize(("noise", "least"), [(0.0, 1.0), (0.5, 0.99)])
def test_every_true_path_is_read_as_asked(noise: float, least: float, clips: Batch) -> None:
    reading = read_motion(track_of(clip_path(clips), clips.attributes, noise), clips.attributes[:, 1])
    judged = judge_motion(reading, clips.attributes)
    assert float(judged.motion.float().mean()) >= least
    assert float(judged.speed.float().mean()) >= least - 0.01
    assert float(judged.amount.mean()) == pytest.approx(1, abs=0.03)
    assert float((judged.amount - 1).abs().max()) < (0.2 if noise == 0 else 0.5)


def test_another_motion_or_direction_is_wrong(clips: Batch) -> None:
    reading = read_motion(track_of(clip_path(clips), clips.attributes), clips.attributes[:, 1])
    for shift in range(1, len(MOTIONS)):
        other = clips.attributes.clone()
        other[:, 3] = (other[:, 3] + shift) % len(MOTIONS)
        assert not judge_motion(reading, other).motion.any()


def test_another_speed_is_the_right_motion_at_the_wrong_speed(clips: Batch) -> None:
    reading = read_motion(track_of(clip_path(clips), clips.attributes), clips.attributes[:, 1])
    other = clips.attributes.clone()
    other[:, 4] = 1 - other[:, 4]
    judged = judge_motion(reading, other)
    assert judged.motion.all() and not judged.speed.any()


def test_what_stands_still_does_not_move_as_asked(clips: Batch) -> None:
    path = clip_path(clips)
    first = Path(*(part[:, :1].expand_as(part) for part in (path.centre, path.radius, path.angle)))
    judged = judge_motion(read_motion(track_of(first, clips.attributes), clips.attributes[:, 1]), clips.attributes)
    assert not judged.motion.any() and float(judged.amount.max()) < 0.05


def test_frames_that_turn_at_random_are_no_turning(clips: Batch) -> None:
    track = track_of(clip_path(clips), clips.attributes)
    wild = replace(track, phase=6.28 * torch.rand(track.phase.shape, generator=torch.Generator().manual_seed(1)))
    spins = clips.attributes[:, 3] == MOTIONS.index("spin")
    judged = judge_motion(read_motion(wild, clips.attributes[:, 1]), clips.attributes)
    assert float(judged.motion[spins].float().mean()) < 0.2
    assert float(judged.motion[~spins].float().mean()) > 0.9


def test_a_path_has_the_asked_motion_alone(clips: Batch) -> None:
    path, motion = clip_path(clips), clips.attributes[:, 3]
    change = {
        "travel": (path.centre[:, -1] - path.centre[:, 0]).norm(dim=1),
        "growth": (path.radius[:, -1] / path.radius[:, 0]).log(),
        "turn": (path.angle[:, -1] - path.angle[:, 0]).abs(),
    }
    moves = motion < MOTIONS.index("bounce")
    assert torch.equal(change["travel"] > 1e-3, moves)
    assert torch.equal(change["growth"] > 1e-5, motion == MOTIONS.index("grow"))
    assert torch.equal(change["turn"] > 1e-5, motion == MOTIONS.index("spin"))
    risen = path.centre[:, 0, 1] - path.centre[:, FRAMES // 4, 1]
    assert torch.equal((risen > 5) & (change["travel"] < 1e-3), motion == MOTIONS.index("bounce"))


def test_an_object_stays_in_the_picture(clips: Batch) -> None:
    path = clip_path(clips)
    for edge in (path.centre - path.radius[..., None], 64 - path.centre - path.radius[..., None]):
        assert float(edge.min()) > -3
