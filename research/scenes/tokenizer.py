"""The tokenizers of the teachers: stock classes of transformers, in which every word of the grammar is one token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from rmd.worlds.moving.grammar import MOTION_WORDS, SPEEDS
from rmd.worlds.still.grammar import (
    BACKGROUND_WORDS,
    COLOURS,
    PLACE_WORDS,
    RELATION_WORDS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from rmd.worlds.vistas import grammar as vistas

MAX_LENGTH = 20
"""Number of tokens of the longest caption with its start and end tokens, rounded up."""


def vocabulary() -> list[str]:
    """Return every word and punctuation mark that captions of still scenes use, sorted."""
    relations = (word for pair in RELATION_WORDS.values() for word in pair)
    return _words(SHAPES, COLOURS, TEXTURES, SIZES, PLACE_WORDS.values(), BACKGROUND_WORDS.values(), relations)


def vista_vocabulary() -> list[str]:
    """Return every word and punctuation mark that captions of vistas use, sorted."""
    g = vistas
    relations = (word for pair in g.RELATION_WORDS.values() for word in pair)
    things = (g.KINDS, g.COLOURS, g.PATTERNS, g.SIZES, g.PLACE_WORDS.values())
    return _words(*things, g.LAND_WORDS.values(), ("at", *g.HOURS), relations)


def clip_vocabulary() -> list[str]:
    """Return every word and punctuation mark that captions of moving scenes use, sorted."""
    return _words(SHAPES, COLOURS, SPEEDS, MOTION_WORDS.values(), BACKGROUND_WORDS.values())


def _words(*groups: Iterable[str]) -> list[str]:
    return sorted({"a", ",", *(word for group in groups for phrase in group for word in phrase.split())})


def build_tokenizer(words: Sequence[str] | None = None) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose merges are learned from words, by default the scenes'; always the same."""
    words = vocabulary() if words is None else words
    letters = sorted({c for w in words for c in w})
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        # Listing the final letters fixes their numbers, which decide the order of merges with equal counts.
        special_tokens=[f"{letter}</w>" for letter in letters],
        show_progress=False,
    )
    learner.train_from_iterator(words, trainer)
    learned = json.loads(learner.to_str())["model"]
    vocab = dict(learned["vocab"])
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocab[mark] = len(vocab)
    merges: Any = [tuple(m) for m in learned["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def build_t5_tokenizer(words: Sequence[str] | None = None) -> T5Tokenizer:
    """Return a T5 tokenizer with one piece per word (by default, of the grammar), and letters for all other words."""
    words = vocabulary() if words is None else words
    letters = sorted({c for word in words for c in word})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -1.0) for word in words]
    pieces += [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_LENGTH)
