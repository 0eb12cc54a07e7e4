"""The tokenizer: one token per word, and the same tokenizer after saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from research.scenes.tokenizer import MAX_LENGTH, build_tokenizer, vocabulary
from rmd.worlds.still.grammar import scene_captions


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_every_word_is_one_token_of_its_own(tokenizer: CLIPTokenizer) -> None:
    result = {word: tokenizer(word)["input_ids"] for word in vocabulary()}
    assert {len(ids) for ids in result.values()} == {3}  # start, the word, end
    assert len({ids[1] for ids in result.values()}) == len(result)
    assert tokenizer.unk_token_id not in {ids[1] for ids in result.values()}


def test_captions_are_start_token_words_and_end_token(tokenizer: CLIPTokenizer) -> None:
    for text in scene_captions(300, seed=1, training=False):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.replace(",", " ,").split()) + 2 <= MAX_LENGTH
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.decode(ids[1:-1]).replace(" ,", ",").strip() == text


def test_unknown_letters_do_not_fail(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a photo of a zebra, 4k!", truncation=True)["input_ids"]
    assert len(ids) <= MAX_LENGTH and max(ids) < len(tokenizer)


def test_padding_and_length_are_those_of_clip(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length == MAX_LENGTH
    padded = tokenizer("a big red", padding="max_length", truncation=True)["input_ids"]
    assert len(padded) == MAX_LENGTH
    assert padded[5:] == [tokenizer.pad_token_id] * (MAX_LENGTH - 5)


def test_the_tokenizer_is_the_same_every_time(tokenizer: CLIPTokenizer) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == MAX_LENGTH
    for text in [*scene_captions(20, seed=2, training=False), "", "something else"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
