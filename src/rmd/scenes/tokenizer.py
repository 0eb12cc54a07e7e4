"""The scenes' tokenizer: a stock CLIPTokenizer whose byte-pair merges make every word of the grammar one token."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from rmd.scenes.grammar import vocabulary

MAX_LENGTH = 20
"""Tokens of the longest caption with its start and end marks, rounded up."""


def build_tokenizer() -> CLIPTokenizer:
    """Learn the merges from the grammar's vocabulary; the same tokenizer every time."""
    words = vocabulary()
    letters = sorted({c for w in words for c in w})
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        # named here, last letters get the same numbers every time, which also decide which of two merges comes first
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
