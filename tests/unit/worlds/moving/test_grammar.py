"""Captions of moving scenes: parsing inverts wording, every motion is visible, and combinations are held out."""

from __future__ import annotations

import itertools

import pytest
import torch

from research.scenes.tokenizer import clip_vocabulary
from rmd.worlds.moving.grammar import (
    MOTIONS,
    SPEEDS,
    ClipAttributes,
    can_move,
    clip_caption,
    draw_clip_attributes,
    held_out,
    parse_clip,
)
from rmd.worlds.still.grammar import COLOURS, SHAPES

ALL = [
    clip
    for values in itertools.product(range(2), range(len(SHAPES)), range(len(COLOURS)), range(len(MOTIONS)), range(2))
    if can_move((clip := ClipAttributes(*values)).shape, clip.motion)
]


def test_every_caption_reads_back_and_is_of_the_vocabulary() -> None:
    words = set(clip_vocabulary())
    for attributes in ALL:
        text = clip_caption(attributes)
        assert parse_clip(text) == attributes
        assert set(text.replace(",", " ,").split()) <= words
    assert len({clip_caption(attributes) for attributes in ALL}) == len(ALL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red star moves right fast",
        "a red star moves right, on sand",
        "a red ball spins fast, on sand",
        "a red star flies fast, on sand",
        "the red star spins fast, on sand",
        "a red star spins fast, on mars",
        "a striped star spins fast, on sand",
    ],
)
def test_other_texts_are_not_of_the_grammar(text: str) -> None:
    assert parse_clip(text) is None


def test_what_is_held_out_is_never_trained_on_and_is_one_in_eleven() -> None:
    share = sum(map(held_out, ALL)) / len(ALL)
    assert 0.07 < share < 0.12
    g = torch.Generator().manual_seed(0)
    drawn = [draw_clip_attributes(g, training=True) for _ in range(500)]
    assert not any(map(held_out, drawn)) and all(can_move(a.shape, a.motion) for a in drawn)
    free = [draw_clip_attributes(g, training=False) for _ in range(500)]
    assert any(map(held_out, free)) and {a.motion for a in free} == set(range(len(MOTIONS)))
    assert {a.speed for a in drawn} == set(range(len(SPEEDS)))
