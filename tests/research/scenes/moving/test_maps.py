"""Labels of tokens, against a clip laid out by hand and against renders."""

from __future__ import annotations

import math

import pytest
import torch

from research.scenes.moving.dataset import make_clips
from research.scenes.moving.maps import clip_maps
from rmd.worlds.moving.grammar import MOTIONS, SPEEDS
from rmd.worlds.moving.path import FRAMES, Path
from rmd.worlds.still.grammar import BACKGROUNDS, COLOURS, SHAPES

NAMED = len(SHAPES) + len(COLOURS) + len(MOTIONS) * len(SPEEDS)


def test_labels_of_a_clip_laid_out_by_hand() -> None:
    # A blue star (fivefold symmetry) of radius 8 moves right by 4 per frame, on grass; the canvas has 64 units.
    shape, colour, motion = SHAPES.index("star"), COLOURS.index("blue"), MOTIONS.index("right")
    attributes = torch.tensor([[BACKGROUNDS.index("grass"), shape, colour, motion, 1]])
    centre = torch.stack([12.0 + 4 * torch.arange(5.0), torch.full((5,), 20.0)], -1)[None]
    path = Path(centre, torch.full((1, 5), 8.0), torch.full((1, 5), 0.1))
    result = clip_maps(attributes, path, 8)
    assert result.dtype == torch.float16
    maps = result.float().view(3, 8, 8, -1)  # frames 0, 2 and 4
    for t, column in enumerate((1, 2, 3)):  # the object is centred on a token: row 2, one column further each time
        token = maps[t, 2, column]
        named = [shape, len(SHAPES) + colour, len(SHAPES) + len(COLOURS) + 2 * motion + 1]
        assert token[:NAMED].nonzero().flatten().tolist() == named and bool((token[named] == 1).all())
        expected = [1, math.log(8), math.cos(0.5), math.sin(0.5), 8, 0, 0, 0]
        assert token[NAMED : NAMED + 8].tolist() == pytest.approx(expected, abs=2e-3)
        right = maps[t, 2, column + 1]  # one radius away: half inside
        assert right[NAMED].item() == 0.5 and right[NAMED + 6 : NAMED + 8].tolist() == [0.5, 0]
        assert not maps[t, 6, :, :-6].any()  # nothing far below
    around = maps[..., -len(BACKGROUNDS) :]
    assert bool((around.argmax(-1) == BACKGROUNDS.index("grass")).all()) and bool((around.sum(-1) == 1).all())


@pytest.mark.parametrize("side", [4, 8])
def test_the_object_of_a_render_is_where_its_labels_are(side: int) -> None:
    clips = make_clips(12, seed=3, training=True)
    maps = clip_maps(clips.attributes, clips.path, side).float().view(12, 5, side, side, -1)
    assert maps.shape[-1] == NAMED + 8 + len(BACKGROUNDS)
    # Frames differ only where the object is in one of them.
    pixels = clips.pixels(torch.arange(12))[:, :, :FRAMES:2]
    change = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().amax(1)
    tokens = torch.nn.functional.avg_pool2d(change, 64 // side)
    inside = maps[..., NAMED]
    either = torch.maximum(inside[:, 1:], inside[:, :-1])
    assert float(tokens[either > 0.5].mean()) > 10 * float(tokens[either == 0].mean())


def test_a_round_shape_has_no_rotation() -> None:
    attributes = torch.tensor([[0, SHAPES.index("ball"), 0, 0, 0]])
    path = Path(torch.full((1, 3, 2), 32.0), torch.full((1, 3), 20.0), torch.full((1, 3), 0.7))
    turned = clip_maps(attributes, path, 4)[..., NAMED + 2 : NAMED + 4]
    assert not turned.any()
