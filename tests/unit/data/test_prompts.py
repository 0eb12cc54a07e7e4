"""Prompt sources: what a file may hold, and the order that a seed puts prompts in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.data.prompts import Prompts, load_prompts, read_prompts
from rmd.recipes.schema import DataConfig
from rmd.worlds.still.grammar import has_held_out, parse, scene_captions, vocabulary

SCENES = DataConfig(prompts="scenes")


def take(prompts: Prompts, count: int, batch_size: int = 1) -> list[str]:
    """The first `count` prompts."""
    return [text for i in range(-(-count // batch_size)) for text in prompts.batch(i, batch_size)[0]][:count]


@given(n=st.integers(1, 30), seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_every_epoch_shows_every_prompt_once(n: int, seed: int, epochs: int) -> None:
    texts = [f"prompt {i}" for i in range(n)]
    order = take(Prompts(texts, seed), n * epochs)
    for epoch in range(epochs):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == sorted(texts)


@given(n=st.integers(1, 20), batch_size=st.integers(1, 50), seed=st.integers(0, 99))
def test_the_order_does_not_depend_on_the_batch_size(n: int, batch_size: int, seed: int) -> None:
    prompts = Prompts([str(i) for i in range(n)], seed)
    assert take(prompts, 60, batch_size) == take(prompts, 60)


def test_a_batch_is_a_function_of_seed_and_position() -> None:
    texts = [str(i) for i in range(50)]
    later = Prompts(texts, 3).batch(7, 4)
    assert Prompts(texts, 3).batch(7, 4) == later
    assert Prompts(texts, 4).batch(7, 4)[0] != later[0]
    assert take(Prompts(texts, 3), 50) != take(Prompts(texts, 3), 100)[50:]  # another order each epoch


def test_samples_are_numbered_through_the_run() -> None:
    prompts = Prompts(["a", "b", "c"], 0)
    assert [prompts.batch(i, 2)[1] for i in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_lines_are_stripped_and_kept_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffzwei Bälle \r\n\n  ein Ball\nzwei Bälle\n\t\n".encode())
    assert read_prompts(path) == ["zwei Bälle", "ein Ball"]
    assert load_prompts(DataConfig(prompts=str(path)), seed=4) == Prompts(["zwei Bälle", "ein Ball"], 4)


def test_scenes_are_a_prompt_source_of_the_grammars_words() -> None:
    prompts = load_prompts(SCENES, seed=1)
    assert prompts.texts == load_prompts(SCENES, seed=1).texts
    assert prompts.texts != load_prompts(SCENES, seed=2).texts
    words = {word for text in prompts.texts[:200] for word in text.replace(",", "").split()}
    assert words <= {*vocabulary(), ""}


def test_training_captions_leave_out_the_held_out_combinations() -> None:
    def held_out(training: bool) -> int:
        scenes = [parse(text) for text in scene_captions(300, seed=0, training=training)]
        return sum(has_held_out(scene) for scene in scenes if scene is not None)

    assert held_out(training=True) == 0
    assert held_out(training=False) > 0


def test_captions_of_a_shorter_list_begin_the_longer_one() -> None:
    assert scene_captions(20, seed=5, training=True)[:8] == scene_captions(8, seed=5, training=True)


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "prompts.txt"
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "blank":
            path.write_bytes(b" \n\t\n\n")
        case "latin":
            path.write_bytes("ein Bär\n".encode("latin-1"))
        case "directory":
            path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "there is no prompt file {path}: give a text file with one prompt a line"),
        ("empty", "{path} gives no prompts (it is empty): look at the file, or change data's filters"),
        ("blank", "{path} gives no prompts (3 empty): look at the file, or change data's filters"),
        ("latin", "{path} is not UTF-8 (byte 5): save it as UTF-8 text"),
        ("directory", "{path} is a folder: give a file in it, or a pattern such as {path}/*.txt"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(kind: str, sentence: str, tmp_path: Path) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(RMDError) as caught:
        load_prompts(DataConfig(prompts=str(path)), seed=0)
    assert str(caught.value) == sentence.format(path=path)
