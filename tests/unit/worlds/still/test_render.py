"""The renderer: repeatable, independent of the batch, anti-aliased, and with every attribute at its place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.core.metrics import high_frequency
from rmd.worlds.batch import Batch
from rmd.worlds.still.grammar import (
    ATTRIBUTE_NAMES,
    BACKGROUNDS,
    COLOURS,
    LAYOUTS,
    NONE,
    SHAPES,
    TEXTURES,
    Attributes,
    caption,
    has_held_out,
    parse,
)
from rmd.worlds.still.render import _PALETTE, object_masks, object_places, render, sample_scenes, scenes_of

BALL = Attributes(LAYOUTS.index("middle"), BACKGROUNDS.index("night"), 0, COLOURS.index("red"), 0, size_a=1)
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}


def render_all(*scenes: Attributes, seed: int = 3) -> Tensor:
    """Render several scenes with the same draws of everything that the captions leave open."""
    batch = scenes_of(list(scenes), seed=seed)
    first = batch.uniform[:1].expand(len(scenes), -1).contiguous()
    grain = batch.grain[:1].expand(len(scenes), -1, -1, -1).contiguous()
    return render(Batch(batch.attributes, batch.captions, first, grain))


def many(scene: Attributes, count: int = 12) -> Tensor:
    return render(scenes_of([scene] * count, seed=5))


def difference(scene: Attributes, other: Attributes) -> Tensor:
    """Return (64, 64) bool, where two scenes with the same draws differ."""
    pictures = render_all(scene, other)
    return (pictures[0] - pictures[1]).abs().amax(0)


def centre_of(change: Tensor) -> tuple[float, float]:
    """Return the centre of mass (x, y) of a (64, 64) map, from -1 at the left and top to 1."""
    axis = torch.linspace(-1, 1, 64)
    weight = change / change.sum()
    return float((weight.sum(0) * axis).sum()), float((weight.sum(1) * axis).sum())


def test_pictures_are_repeatable_and_in_range() -> None:
    pictures = [render(sample_scenes(range(16), seed=1, training=True)) for _ in range(2)]
    assert torch.equal(*pictures)
    assert pictures[0].shape == (16, 3, 64, 64) and pictures[0].dtype == torch.float32
    assert 0 <= float(pictures[0].min()) < 0.1 and 0.9 < float(pictures[0].max()) <= 1


def test_a_scene_depends_on_its_seed_and_index_alone() -> None:
    together = sample_scenes(range(8), seed=1, training=False)
    apart = sample_scenes([5, 2], seed=1, training=False)
    assert apart.captions == [together.captions[5], together.captions[2]]
    assert torch.equal(apart.uniform, together.uniform[[5, 2]])
    # Equal up to rounding: vectorised kernels may sum in another order.
    assert torch.allclose(render(apart), render(together)[[5, 2]], atol=1e-6)
    assert torch.allclose(render(together, chunk=3), render(together), atol=1e-6)
    other = sample_scenes(range(8), seed=2, training=False)
    assert other.captions != together.captions


def test_captions_name_the_attributes() -> None:
    scenes = sample_scenes(range(60), seed=4, training=False)
    assert scenes.attributes.shape == (60, len(ATTRIBUTE_NAMES)) and len(scenes) == 60
    for text, row in zip(scenes.captions, scenes.attributes.tolist(), strict=True):
        scene = parse(text)
        assert scene is not None and scene.to_tuple() == tuple(row)


def test_training_scenes_hold_no_held_out_object() -> None:
    held = {
        training: sum(has_held_out(Attributes(*row)) for row in scenes.attributes.tolist())
        for training in (True, False)
        for scenes in [sample_scenes(range(200), seed=9, training=training)]
    }
    assert held[True] == 0 and held[False] > 5


@pytest.mark.parametrize("size", [32, 128])
def test_sizes_agree_when_averaged(size: int) -> None:
    scenes = sample_scenes(range(12), seed=6, training=True)
    small, large = sorted((64, size))
    averaged = F.avg_pool2d(render(scenes, large), large // small)
    assert float((averaged - render(scenes, small)).abs().mean()) < 0.012


def test_edges_are_anti_aliased() -> None:
    scenes = scenes_of([replace(BALL, shape_a=shape) for shape in range(len(SHAPES))], seed=2)
    fine = render(scenes, 256)
    exact, aliased = F.avg_pool2d(fine, 4), fine[:, :, 2::4, 2::4]
    ours = (render(scenes) - exact).square().mean()
    assert float(ours) < 0.2 * float((aliased - exact).square().mean())


@pytest.mark.parametrize("colour", range(len(COLOURS)))
def test_the_object_has_its_colour(colour: int) -> None:
    pictures = many(replace(BALL, shape_a=SHAPES.index("box"), colour_a=colour))
    colours = pictures[:, :, 28:36, 28:36].mean((2, 3))
    nearest = torch.cdist(colours, _PALETTE).argmin(1)
    assert nearest.tolist() == [colour] * len(pictures)


@pytest.mark.parametrize("place", PLACES)
def test_a_single_object_is_at_its_place(place: str) -> None:
    scene = replace(BALL, layout=LAYOUTS.index(place), size_a=0)
    # The pictures differ only in the colour of the object, so the difference shows where it is.
    x, y = centre_of(difference(scene, replace(scene, colour_a=COLOURS.index("white"))))
    dx, dy = PLACES[place]
    assert x == pytest.approx(14 / 32 * dx, abs=0.12) and y == pytest.approx(14 / 32 * dy, abs=0.12)


@pytest.mark.parametrize(("layout", "axis"), [("beside", 0), ("above", 1)])
def test_two_objects_are_in_their_relation(layout: str, axis: int) -> None:
    pair = Attributes(LAYOUTS.index(layout), 2, 0, COLOURS.index("red"), 0, NONE, 1, COLOURS.index("blue"), 0)
    white = COLOURS.index("white")
    first = centre_of(difference(pair, replace(pair, colour_a=white)))
    second = centre_of(difference(pair, replace(pair, colour_b=white)))
    assert first[axis] < -0.3 and second[axis] > 0.3
    assert abs(first[1 - axis] - second[1 - axis]) < 0.5


@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_objects_lie_in_their_masks(pair: bool) -> None:
    scenes = sample_scenes(range(120), seed=4, training=False)
    column = ATTRIBUTE_NAMES.index("shape_b")
    scenes = _those(scenes, (scenes.attributes[:, column] >= 0) == pair)
    repainted = scenes.attributes.clone()
    for which in "ab" if pair else "a":  # only the inside of an object's outline changes
        at = ATTRIBUTE_NAMES.index(f"colour_{which}")
        repainted[:, at] = (repainted[:, at] + 1) % len(COLOURS)
    change = render(scenes) - render(Batch(repainted, scenes.captions, scenes.uniform, scenes.grain))
    painted = (change.abs().amax(1, keepdim=True) > 0.02).float()
    masks = object_masks(object_places(scenes), 64).float()
    assert float((painted * masks).sum() / painted.sum()) > 0.999
    assert float(painted.sum() / masks.sum()) > 0.3  # the masks are not much wider
    half = object_masks(object_places(scenes), 32).float()
    assert float((F.avg_pool2d(masks, 2) - half).abs().mean()) < 0.02


def _those(scenes: Batch, keep: Tensor) -> Batch:
    captions = [text for text, kept in zip(scenes.captions, keep.tolist(), strict=True) if kept]
    return Batch(scenes.attributes[keep], captions, scenes.uniform[keep], scenes.grain[keep])


def test_a_pair_and_its_flipped_caption_are_one_picture() -> None:
    scenes = sample_scenes(range(40), seed=8, training=False)
    pairs = [i for i in range(40) if scenes.attributes[i, ATTRIBUTE_NAMES.index("shape_b")] >= 0]
    worded = [scenes.captions[i] == caption(Attributes(*scenes.attributes[i].tolist())) for i in pairs]
    assert True in worded and False in worded  # both wordings occur


def test_a_big_object_covers_more() -> None:
    white = COLOURS.index("white")
    small, big = (replace(BALL, size_a=size) for size in (0, 1))
    areas = [(difference(scene, replace(scene, colour_a=white)) > 0.1).sum() for scene in (small, big)]
    assert float(areas[1] / areas[0]) == pytest.approx((17.75 / 11.5) ** 2, rel=0.25)


def test_every_shape_is_another_one() -> None:
    pictures = render_all(*(replace(BALL, shape_a=shape) for shape in range(len(SHAPES))))
    apart = torch.cdist(pictures.flatten(1), pictures.flatten(1)) + 1e3 * torch.eye(len(SHAPES))
    assert float(apart.min()) > 3
    # Only the ring shows the background through its middle.
    bare = pictures[SHAPES.index("ring"), :, 31:33, 31:33].mean()
    assert bare < 0.5 * pictures[: SHAPES.index("ring"), :, 31:33, 31:33].mean((1, 2, 3)).min()


def test_every_background_is_another_one() -> None:
    corners = render_all(*(replace(BALL, background=index, size_a=0) for index in range(len(BACKGROUNDS))))[:, :, :10]
    apart = torch.cdist(corners.mean((2, 3)), corners.mean((2, 3))) + torch.eye(len(BACKGROUNDS))
    assert float(apart.min()) > 0.05


@pytest.mark.parametrize("texture", [name for name in TEXTURES if name != "plain"])
def test_a_texture_is_detail_that_half_resolution_loses(texture: str) -> None:
    scene = replace(BALL, shape_a=SHAPES.index("box"), colour_a=COLOURS.index("yellow"))
    inner = (slice(None), slice(None), slice(24, 40), slice(24, 40))
    plain = many(scene)[inner]
    marked = many(replace(scene, texture_a=TEXTURES.index(texture)))[inner]
    assert high_frequency(2 * marked - 1) > 20 * high_frequency(2 * plain - 1)
    halved = F.interpolate(F.avg_pool2d(marked, 2), scale_factor=2, mode="bilinear")
    assert high_frequency(2 * halved - 1) < 0.4 * high_frequency(2 * marked - 1)


def test_scenes_of_given_attributes_vary_in_the_rest() -> None:
    scenes = scenes_of([BALL] * 3, seed=0)
    assert scenes.captions == [caption(BALL)] * 3
    pictures = render(scenes)
    assert float((pictures[0] - pictures[1]).abs().mean()) > 0.01
    assert torch.equal(render(scenes_of([BALL] * 2, seed=0)), pictures[:2])


def test_parts_keep_scenes_together() -> None:
    scenes = sample_scenes(range(5), seed=1, training=True)
    parts = scenes.split(2)
    assert [part.captions for part in parts] == [scenes.captions[:2], scenes.captions[2:4], scenes.captions[4:]]
    assert torch.allclose(render(parts[1]), render(scenes)[2:4], atol=1e-6)
