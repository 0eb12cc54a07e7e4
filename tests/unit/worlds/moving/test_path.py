"""Paths: on the canvas, upright unless they spin, with the requested amount of motion for any number of frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS, can_move
from rmd.worlds.moving.path import FRAMES, GROWTH, OFF_CENTRE, TRAVEL, Path, draw_path
from rmd.worlds.still.render import CANVAS

STAR = 4
KINDS = torch.tensor([(0, STAR, 0, m, s) for m in range(len(MOTIONS)) for s in range(len(SPEEDS)) if can_move(STAR, m)])


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Path]:
    """Return every motion and speed with 100 draws each, among them the extremes of what the caption leaves open."""
    uniform = torch.rand(100, 8, generator=torch.Generator().manual_seed(0))
    uniform[:16] = (torch.arange(16)[:, None] >> torch.arange(4) & 1).repeat(1, 2) * (1 - 1e-6)
    attributes = KINDS.repeat_interleave(100, 0)
    return attributes, draw_path(attributes, uniform.repeat(len(KINDS), 1))


def test_an_object_stays_on_the_canvas(drawn: tuple[Tensor, Path]) -> None:
    path = drawn[1]
    assert float((path.centre - path.radius[..., None]).min()) >= -1e-4
    assert float((path.centre + path.radius[..., None]).max()) <= CANVAS + 1e-4


def test_where_there_is_room_the_path_is_anywhere_near_the_middle(drawn: tuple[Tensor, Path]) -> None:
    attributes, path = drawn
    middle = (path.centre.amax(1) + path.centre.amin(1)) / 2 - CANVAS / 2
    assert float(middle.abs().max()) <= OFF_CENTRE + 1e-4
    spins = attributes[:, 3] == MOTIONS.index("spin")
    assert middle[spins].amax(0).tolist() == pytest.approx([OFF_CENTRE] * 2, abs=1e-3)
    assert middle[spins].amin(0).tolist() == pytest.approx([-OFF_CENTRE] * 2, abs=1e-3)


def test_what_does_not_spin_stands_upright(drawn: tuple[Tensor, Path]) -> None:
    attributes, path = drawn
    spins = attributes[:, 3] == MOTIONS.index("spin")
    assert not path.angle[~spins].any() and not path.angle[:, 0].any()
    assert float(path.angle[spins][:, -1].abs().min()) > 0.8


@pytest.mark.parametrize("speed", SPEEDS)
def test_amounts_are_those_of_the_speed(drawn: tuple[Tensor, Path], speed: str) -> None:
    attributes, path = drawn
    asked = attributes[:, 4] == SPEEDS.index(speed)
    right = asked & (attributes[:, 3] == MOTIONS.index("right"))
    moved = (path.centre[right, -1] - path.centre[right, 0]).T
    assert [float(moved[0].min()), float(moved[0].max())] == pytest.approx(list(TRAVEL[speed]), abs=1e-2)
    assert not moved[1].any()
    grown = path.radius[:, -1] / path.radius[:, 0]
    grows = asked & (attributes[:, 3] == MOTIONS.index("grow"))
    assert [float(grown[grows].min()), float(grown[grows].max())] == pytest.approx(list(GROWTH[speed]), abs=1e-2)
    assert torch.equal(path.radius[right], path.radius[right][:, :1].expand(-1, FRAMES))


def test_fewer_frames_are_of_the_same_path(drawn: tuple[Tensor, Path]) -> None:
    attributes, uniform = KINDS, torch.rand(len(KINDS), 8, generator=torch.Generator().manual_seed(1))
    whole = draw_path(attributes, uniform)
    for frames, every in ((1, FRAMES), (5, 2)):
        some = draw_path(attributes, uniform, frames=frames)
        for name in ("centre", "radius", "angle"):
            assert torch.allclose(getattr(some, name), getattr(whole, name)[:, ::every], atol=1e-5)
