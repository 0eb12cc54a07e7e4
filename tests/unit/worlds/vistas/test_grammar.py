"""The vistas' grammar: parsing inverts wording, held-out objects stay out of training, and draws cover everything."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.scenes.tokenizer import MAX_LENGTH, build_tokenizer, vista_vocabulary
from rmd.common.errors import RMDError
from rmd.core.randomness import generator
from rmd.worlds.batch import NONE
from rmd.worlds.vistas.grammar import (
    ATTRIBUTE_NAMES,
    ATTRIBUTE_SIZES,
    COLOURS,
    HOURS,
    KINDS,
    LANDS,
    LAYOUTS,
    PAIR_SHARE,
    PATTERNS,
    SIZES,
    Attributes,
    attributes_of,
    caption,
    draw_attributes,
    parse,
    vista_captions,
)
from rmd.worlds.wording import held_out

OBJECTS = list(itertools.product(range(len(KINDS)), range(len(COLOURS)), range(len(PATTERNS))))
an_object = st.sampled_from(OBJECTS)
a_land, an_hour = st.integers(0, len(LANDS) - 1), st.integers(0, len(HOURS) - 1)


def draws(count: int, *, training: bool) -> list[Attributes]:
    return [draw_attributes(generator(7, i), training=training) for i in range(count)]


def test_every_caption_of_one_object_is_parsed_back() -> None:
    words = set()
    for thing in OBJECTS:
        for layout, land, hour, size in itertools.product(range(3), range(len(LANDS)), range(4), range(len(SIZES))):
            scene = Attributes(layout, land, hour, *thing, size_a=size)
            words.add(caption(scene))
            assert parse(caption(scene)) == scene
    assert len(words) == len(OBJECTS) * 3 * len(LANDS) * 4 * len(SIZES)  # every vista has a caption of its own


@given(first=an_object, second=an_object, layout=st.sampled_from([3, 4]), land=a_land, hour=an_hour, flip=st.booleans())
def test_both_wordings_of_a_pair_mean_the_same_and_exchanging_it_another_thing(
    first: tuple[int, int, int], second: tuple[int, int, int], layout: int, land: int, hour: int, flip: bool
) -> None:
    scene = Attributes(layout, land, hour, *first, NONE, *second)
    assert parse(caption(scene, flipped=flip)) == scene
    assert caption(scene, flipped=True) != caption(scene)
    other = scene.exchanged()
    assert other.exchanged() == scene and (other == scene) == (first == second)


def test_wording_as_a_person_writes_it() -> None:
    pair = Attributes(LAYOUTS.index("above"), LANDS.index("sea"), HOURS.index("night"), 2, 0, 0, NONE, 1, 3, 2)
    assert caption(pair) == "a red plain kite above a blue spotted airship, over the sea at night"
    assert caption(pair, flipped=True) == "a blue spotted airship below a red plain kite, over the sea at night"
    single = Attributes(0, 0, 0, 0, 0, 1, 1)
    assert parse("  A big RED striped balloon on the left, over mountains at dawn ") == single


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a big red striped balloon on the left",
        "a red striped balloon on the left, over mountains at dawn",
        "a big red striped balloon on the left, over mountains at dusk",
        "a big red striped kite above a blue plain kite, over mountains at dawn",
        "two big red striped balloons on the left, over mountains at dawn",
    ],
)
def test_other_texts_are_no_captions(text: str) -> None:
    assert parse(text) is None
    with pytest.raises(RMDError, match=r"is not a caption of the vistas: word it like 'a big red striped balloon on"):
        attributes_of(text)


def test_training_leaves_out_a_tenth_of_the_objects() -> None:
    out = {thing for thing in OBJECTS if held_out(*thing)}
    assert len(out) == 11 and len(OBJECTS) == 108
    seen = {(s.kind_a, s.colour_a, s.pattern_a) for s in draws(1500, training=True)}
    assert seen == set(OBJECTS) - out
    assert {(s.kind_a, s.colour_a, s.pattern_a) for s in draws(1500, training=False)} == set(OBJECTS)


def test_draws_are_uniform_and_always_ask_for_a_whole_object() -> None:
    scenes = draws(3000, training=False)
    for name, size in ATTRIBUTE_SIZES.items():
        counts = Counter(getattr(s, name) for s in scenes)
        values = set(counts) - {NONE}
        assert values == ({0} if name == "form" else set(range(size)))
    pairs = sum(s.is_pair for s in scenes) / len(scenes)
    assert pairs == pytest.approx(PAIR_SHARE, abs=0.03)
    for scene in scenes[:100]:
        assert (scene.size_a == NONE) == scene.is_pair == (LAYOUTS[scene.layout] in ("beside", "above"))
        assert len(scene.to_tuple()) == len(ATTRIBUTE_NAMES)


def test_every_caption_fits_the_tokenizer_word_by_word() -> None:
    words, tokenizer = set(vista_vocabulary()), build_tokenizer(vista_vocabulary())
    longest = 0
    for text in vista_captions(500, seed=3, training=False):
        assert set(text.replace(",", " ,").split()) <= words
        longest = max(longest, len(tokenizer(text)["input_ids"]))
    assert longest == 18 <= MAX_LENGTH
