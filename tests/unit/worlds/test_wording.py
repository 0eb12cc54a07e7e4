"""The shared words for objects and relations: parsing inverts them, and draws leave out what training never shows."""

from __future__ import annotations

import pytest

from rmd.core.randomness import generator
from rmd.worlds.batch import NONE
from rmd.worlds.wording import Arrangement, Wording, held_out

WORDS = Wording(
    ("cat", "dog"), ("red", "blue", "green"), ("plain", "striped"), ("small", "big"), {"left": "on the left"},
    {"above": ("above", "below")}, 0.5,
)  # fmt: skip


def test_words_and_their_meaning() -> None:
    single, pair = Arrangement(0, (1, 0, 1), size=1), Arrangement(1, (0, 1, 0), second=(1, 2, 1))
    assert WORDS.layouts == ("left", "above") and pair.size == NONE
    assert WORDS.words(single, flipped=False) == "a big red striped dog on the left"
    assert WORDS.words(pair, flipped=False) == "a blue plain cat above a green striped dog"
    assert WORDS.words(pair, flipped=True) == "a green striped dog below a blue plain cat"
    for arrangement in (single, pair):
        for flipped in (False, True):
            assert WORDS.parse(WORDS.words(arrangement, flipped=flipped)) == arrangement


@pytest.mark.parametrize(
    "text",
    ["", "a", "a big red cat on the left", "a red plain cat on the left", "a big red plain cat above a red plain dog"],
)
def test_other_words_mean_nothing(text: str) -> None:
    assert WORDS.parse(text) is None


def test_draws_have_both_forms_and_leave_out_held_out_objects() -> None:
    drawn = [WORDS.draw(generator(1, i), training=True) for i in range(400)]
    things = {thing for each in drawn for thing in (each.first, each.second) if thing is not None}
    everything = {(k, c, p) for k in range(2) for c in range(3) for p in range(2)}
    assert things == {thing for thing in everything if not held_out(*thing)} != everything
    assert sum(each.second is not None for each in drawn) / 400 == pytest.approx(0.5, abs=0.08)
    assert all((each.size == NONE) == (each.second is not None) == (each.layout == 1) for each in drawn)
