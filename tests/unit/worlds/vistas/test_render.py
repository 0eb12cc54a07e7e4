"""The vistas' renderer: repeatable, independent of the batch, and with everything where the caption says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.worlds.batch import NONE, Batch
from rmd.worlds.vistas.canvas import CANVAS, GRAIN, natural_fields
from rmd.worlds.vistas.dataset import make_vistas
from rmd.worlds.vistas.grammar import (
    ATTRIBUTE_NAMES,
    COLOURS,
    FORMS,
    HOURS,
    KINDS,
    LANDS,
    LAYOUTS,
    PATTERNS,
    Attributes,
    attributes_of,
)
from rmd.worlds.vistas.render import CUT, DOUBLED, object_places, render, sample_vistas, vistas_of

BALLOON = Attributes(LAYOUTS.index("middle"), LANDS.index("sea"), HOURS.index("noon"), 0, 0, 0, size_a=1)


def render_alike(*vistas: Attributes, seed: int = 3) -> Tensor:
    """Render several vistas with the same draws of everything that the captions leave open."""
    batch = vistas_of(list(vistas), seed=seed)
    uniform, grain = batch.uniform[:1].expand(len(vistas), -1), batch.grain[:1].expand(len(vistas), -1, -1, -1)
    return render(Batch(batch.attributes, batch.captions, uniform.contiguous(), grain.contiguous()))


def difference(one: Attributes, other: Attributes) -> Tensor:
    """Return (128, 128), where two vistas with the same draws differ."""
    pictures = render_alike(one, other)
    return (pictures[0] - pictures[1]).abs().amax(0)


def test_pictures_are_repeatable_and_in_range() -> None:
    pictures = [render(sample_vistas(range(8), seed=1, training=True)) for _ in range(2)]
    assert torch.equal(*pictures)
    assert pictures[0].shape == (8, 3, 128, 128) and 0 <= float(pictures[0].min()) <= float(pictures[0].max()) <= 1


def test_a_vista_does_not_depend_on_its_batch() -> None:
    whole = sample_vistas(range(10), seed=2, training=False)
    alone = sample_vistas([7], seed=2, training=False)
    assert alone.captions == whole.captions[7:8]
    torch.testing.assert_close(render(alone), render(whole)[7:8], atol=1e-5, rtol=0)
    torch.testing.assert_close(render(whole, chunk=3), render(whole), atol=1e-5, rtol=0)


def test_half_the_size_is_the_mean_of_blocks_and_twice_the_size_shows_the_same() -> None:
    batch = sample_vistas(range(6), seed=4, training=False)
    usual = render(batch)
    torch.testing.assert_close(render(batch, 64), F.avg_pool2d(usual, 2))
    assert float((F.avg_pool2d(render(batch, 256), 2) - usual).abs().mean()) < 0.02


@pytest.mark.parametrize("name", [name for name in ATTRIBUTE_NAMES if not name.endswith("_b")])
def test_every_attribute_changes_the_picture(name: str) -> None:
    pictures = render_alike(BALLOON, replace(BALLOON, **{name: (getattr(BALLOON, name) + 1) % 2}))
    assert float((pictures[0] - pictures[1]).abs().mean()) > 0.004


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_colours_and_patterns_are_where_the_object_is(kind: int) -> None:
    plain = replace(BALLOON, kind_a=kind)
    place = object_places(vistas_of([plain], seed=3))[0, 0]
    axis = torch.arange(128) + 0.5
    far = torch.hypot(axis - place[0], axis[:, None] - place[1]) > 1.75 * place[2]
    for change in ({"colour_a": COLOURS.index("green")}, {"pattern_a": PATTERNS.index("striped")}):
        changed = difference(plain, replace(plain, **change))
        assert float(changed[far].max()) < 1e-6
        assert float((changed > 0.2).float().sum()) > 100


@pytest.mark.parametrize(("layout", "where"), [("left", -1), ("right", 1), ("middle", 0)])
def test_singles_are_at_their_places(layout: str, where: int) -> None:
    batch = vistas_of([replace(BALLOON, layout=LAYOUTS.index(layout), size_a=i % 2) for i in range(20)], seed=0)
    places = object_places(batch)
    x, y, radius = places[:, 0].unbind(1)
    side = torch.where((x - CANVAS / 2).abs() < 8, 0, (x - CANVAS / 2).sign())
    assert side.tolist() == [where] * 20 and bool((places[:, 1, 2] == 0).all())
    assert bool(((y - radius > 0) & (y + radius < CANVAS)).all())
    assert bool(radius[1::2].min() > 1.3 * radius[::2].max())


@pytest.mark.parametrize(("layout", "axis"), [("beside", 0), ("above", 1)])
def test_pairs_are_in_their_relation_and_apart(layout: str, axis: int) -> None:
    pair = Attributes(LAYOUTS.index(layout), 0, 1, 0, 0, 0, NONE, 1, 1, 1)
    first, second = object_places(vistas_of([pair] * 40, seed=1)).unbind(1)
    apart = second[:, axis] - first[:, axis]
    assert bool((apart > 1.2 * first[:, 2]).all())
    assert bool((torch.hypot(*(first - second)[:, :2].T) > 0.95 * (first[:, 2] + second[:, 2])).all())


def test_poor_pictures_are_wrong_in_their_structure() -> None:
    count = 600
    clean, poor = (sample_vistas(range(count), seed=5, training=True, poor=p) for p in (False, True))
    column = {name: poor.attributes[:, i] for i, name in enumerate(ATTRIBUTE_NAMES)}
    pair = column["kind_b"] != NONE
    assert torch.equal(clean.attributes[pair], poor.attributes[pair]) and bool((clean.attributes[:, -1] == 0).all())
    shares = [float((column["form"][~pair] == i).float().mean()) for i in range(len(FORMS))]
    assert shares == pytest.approx([1 - DOUBLED - CUT, DOUBLED, CUT], abs=0.06)
    upright = column["layout"] != LAYOUTS.index("above")
    for i, text in enumerate(poor.captions):
        shown = Attributes(*poor.attributes[i, :-1].tolist())
        assert attributes_of(text) == (shown if upright[i] else shown.exchanged())


def test_doubled_and_cut_objects_can_be_seen() -> None:
    whole, doubled, cut = (replace(BALLOON, form=i) for i in range(3))
    change = difference(whole, doubled) > 0.1
    (place,) = object_places(vistas_of([whole], seed=3))[:, 0]
    near = torch.hypot(torch.arange(128) - place[0], torch.arange(128)[:, None] - place[1]) < 1.1 * place[2]
    assert 800 < int((change & ~near).sum()) < 4000
    assert object_places(vistas_of([cut], seed=3))[0, 0, 0] in (0, CANVAS)


def test_random_fields_have_the_power_of_clouds_and_of_natural_pictures() -> None:
    grain = torch.randn((64, *GRAIN), generator=torch.Generator().manual_seed(0))
    fields = natural_fields(grain, 128)
    torch.testing.assert_close(fields.std((-2, -1)), torch.ones(64, 2))
    power = torch.fft.rfft2(fields).abs().square().mean(0)
    for field, exponent in ((0, 3.5), (1, 2.0)):
        slope = torch.log2(power[field, 0, 32] / power[field, 0, 4]) / 3
        assert float(slope) == pytest.approx(-exponent, abs=0.35)
    assert natural_fields(grain[:2], 256).shape == (2, 2, 256, 256)


def test_sets_of_vistas() -> None:
    vistas = make_vistas(20, seed=6, training=True)
    assert vistas.images.shape == (20, 3, 128, 128) and vistas.images.dtype == torch.uint8
    assert [attributes_of(text).to_tuple() for text in vistas.captions] == [
        tuple(a) for a in vistas.attributes.tolist()
    ]
    assert torch.equal(vistas.places[:, 1, 2] > 0, vistas.attributes[:, ATTRIBUTE_NAMES.index("kind_b")] >= 0)
