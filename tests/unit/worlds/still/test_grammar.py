"""The grammar: parsing inverts wording, held-out objects stay out of training, and draws are uniform."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.scenes.tokenizer import vocabulary
from rmd.core.randomness import generator
from rmd.worlds.still.grammar import (
    ATTRIBUTE_NAMES,
    ATTRIBUTE_SIZES,
    BACKGROUNDS,
    COLOURS,
    LAYOUTS,
    NONE,
    PAIR_SHARE,
    SHAPES,
    SIZES,
    TEXTURES,
    Attributes,
    caption,
    draw_attributes,
    has_held_out,
    parse,
)
from rmd.worlds.wording import held_out

OBJECTS = list(itertools.product(range(len(SHAPES)), range(len(COLOURS)), range(len(TEXTURES))))
HELD_OUT = {thing for thing in OBJECTS if held_out(*thing)}
an_object = st.sampled_from(OBJECTS)


def draws(count: int, *, training: bool) -> list[Attributes]:
    return [draw_attributes(generator(7, i), training=training) for i in range(count)]


def objects(scene: Attributes) -> list[tuple[int, int, int]]:
    first = (scene.shape_a, scene.colour_a, scene.texture_a)
    return [first, (scene.shape_b, scene.colour_b, scene.texture_b)] if scene.is_pair else [first]


def test_every_caption_of_one_object_is_parsed_back() -> None:
    words = set()
    for thing in OBJECTS:
        for layout, background, size in itertools.product(range(5), range(len(BACKGROUNDS)), range(len(SIZES))):
            scene = Attributes(layout, background, *thing, size_a=size)
            words.add(caption(scene))
            assert parse(caption(scene)) == scene
    assert len(words) == len(OBJECTS) * 5 * len(BACKGROUNDS) * len(SIZES)  # every scene has a caption of its own


@given(
    first=an_object, second=an_object, layout=st.sampled_from([5, 6]), background=st.integers(0, 5), flip=st.booleans()
)
def test_both_wordings_of_a_pair_mean_the_same(
    first: tuple[int, int, int], second: tuple[int, int, int], layout: int, background: int, flip: bool
) -> None:
    scene = Attributes(layout, background, *first, NONE, *second)
    assert parse(caption(scene, flipped=flip)) == scene
    assert caption(scene, flipped=True) != caption(scene)


def test_wording_as_a_person_writes_it() -> None:
    single = Attributes(4, 2, SHAPES.index("ring"), COLOURS.index("white"), TEXTURES.index("dotted"), size_a=0)
    assert caption(single) == "a small white dotted ring in the middle, at night"
    pair = Attributes(6, 0, 0, 0, 0, NONE, 1, 3, 1)
    assert caption(pair) == "a red plain ball above a blue striped box, on sand"
    assert caption(pair, flipped=True) == "a blue striped box below a red plain ball, on sand"
    assert parse("  A Small WHITE dotted ring in the middle, at night ") == single


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a cat",
        "a big red striped ball on the left",  # no background
        "a big red striped ball, on sand",  # no place
        "a red striped ball on the left, on sand",  # no size
        "a big red striped ball on the left, on the moon",
        "a big red striped cube on the left, on sand",
        "a big pink striped ball on the left, on sand",
        "a huge red striped ball on the left, on sand",
        "the big red striped ball on the left, on sand",
        "a big red striped ball above a blue plain box, on sand",  # objects of a pair have no size
        "a red striped ball above, on sand",
        "a red striped ball above a blue plain box above a green plain star, on sand",
        "a big red striped ball on the left, on sand, on sand",
    ],
)
def test_foreign_text_is_not_parsed(text: str) -> None:
    assert parse(text) is None


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    parsed = parse(text)
    assert parsed is None or parse(caption(parsed)) == parsed


def test_one_object_in_eleven_is_held_out() -> None:
    assert len(HELD_OUT) == pytest.approx(len(OBJECTS) / 11, abs=1)
    # Every single value remains in training, so a held-out object is a new combination of known words.
    for column, size in enumerate((len(SHAPES), len(COLOURS), len(TEXTURES))):
        assert {thing[column] for thing in OBJECTS if thing not in HELD_OUT} == set(range(size))


def test_training_never_draws_what_is_held_out() -> None:
    training = draws(3000, training=True)
    assert not any(has_held_out(scene) for scene in training)
    assert {thing for scene in training for thing in objects(scene)} == set(OBJECTS) - HELD_OUT


def test_other_draws_hold_it() -> None:
    scenes = draws(3000, training=False)
    assert {thing for scene in scenes for thing in objects(scene)} == set(OBJECTS)
    share = sum(has_held_out(scene) for scene in scenes) / len(scenes)
    one = len(HELD_OUT) / len(OBJECTS)
    assert share == pytest.approx((1 - PAIR_SHARE) * one + PAIR_SHARE * (1 - (1 - one) ** 2), abs=0.025)


def test_either_object_makes_a_pair_held_out() -> None:
    kept = next(thing for thing in OBJECTS if thing not in HELD_OUT)
    left_out = min(HELD_OUT)
    for first, second, expected in ((kept, kept, False), (left_out, kept, True), (kept, left_out, True)):
        assert has_held_out(Attributes(5, 0, *first, NONE, *second)) is expected


@pytest.mark.parametrize("training", [True, False])
def test_values_are_drawn_uniformly(training: bool) -> None:
    scenes = draws(4000, training=training)
    pairs = [scene for scene in scenes if scene.is_pair]
    assert len(pairs) / len(scenes) == pytest.approx(PAIR_SHARE, abs=0.03)
    for name, size in ATTRIBUTE_SIZES.items():
        for kind, group in (("pair", pairs), ("single", [scene for scene in scenes if not scene.is_pair])):
            counts = Counter(getattr(scene, name) for scene in group)
            asked = {
                "layout": range(5, 7) if kind == "pair" else range(5),
                "size_a": [NONE] if kind == "pair" else range(size),
            }.get(name, [NONE] if kind == "single" and name.endswith("_b") else range(size))
            assert set(counts) == set(asked)
            for count in counts.values():
                # Five standard deviations, plus the tenth by which holding out can shift a value's share.
                expected = len(group) / len(asked)
                assert abs(count - expected) < 5 * expected**0.5 + 0.1 * expected * training


def test_draws_are_a_function_of_the_generator() -> None:
    assert draws(20, training=True) == draws(20, training=True)
    assert len(set(draws(20, training=True))) > 15


def test_attributes_as_a_tuple() -> None:
    scene = Attributes(0, 1, 2, 3, 4, size_a=1)
    assert scene.to_tuple() == (0, 1, 2, 3, 4, 1, NONE, NONE, NONE)
    assert Attributes(*scene.to_tuple()) == scene
    assert list(ATTRIBUTE_SIZES) == list(ATTRIBUTE_NAMES)
    assert ATTRIBUTE_SIZES["layout"] == len(LAYOUTS)


def test_the_vocabulary_covers_every_caption() -> None:
    known = vocabulary()
    assert known == sorted(set(known))
    used = set()
    for index, scene in enumerate(draws(2000, training=False)):
        used |= set(caption(scene, flipped=index % 2 == 1).replace(",", " , ").split())
    assert used == set(known)


def test_the_generator_alone_is_used() -> None:
    state = torch.get_rng_state()
    draws(3, training=True)
    assert torch.equal(torch.get_rng_state(), state)
