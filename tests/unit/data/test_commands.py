"""Prompts of an image service: every form of its commands goes, and what is no command stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.data.commands import strip_commands
from rmd.data.sources import Source, read_source

EXAMPLES = {
    "a castle --ar 3:2 --v 5 --no people": "a castle",
    "https://s.mj.run/abc a castle, dusk --niji": "a castle, dusk",
    "<https://x.y/z.png> a well-lit castle -- grand": "a well-lit castle -- grand",
    "a plain one": "a plain one",
    "a castle --style raw --no text, watermark": "a castle",
    "a castle --no text, watermark --ar 3:2": "a castle",
    "a castle --sref https://a.b/c https://a.b/d --sw 20": "a castle",
    "a castle --p abc12 zz9xy --sref 123::2 456": "a castle",
    "a castle —ar 3:2 –v 5": "a castle",
    "a castle —no people, text –ar 2:3": "a castle",
    "a car —fast and red": "a car —fast and red",
    "a car —fast —v 5": "a car",
    "a castle --ar 3:2, at dusk": "a castle at dusk",
    "castle--ar 16:9 --q .5": "castle",
    "--ar 3:2 a castle": "a castle",
    "a castle --ASPECT 16:9 --Version 5.1": "a castle",
    "the dog--very big--runs": "the dog--very big--runs",
    "pen — 5 cm, state-of-the-art": "pen — 5 cm, state-of-the-art",
    "cat::2 dog::-1": "cat",
    "cat::2 dog::.5": "cat, dog",
    "hot:: dog": "hot, dog",
    "::": "",
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_commands_of_an_image_service_are_taken_off(text: str, tmp_path: Path) -> None:
    assert strip_commands(text) == EXAMPLES[text]
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": text}) + '\n{"prompt": "another"}\n', encoding="utf-8")
    expected = [EXAMPLES[text]] if EXAMPLES[text] else []
    assert read_source(Source(str(path), journeydb=True)).texts == [*expected, "another"]


_WORDS = st.sampled_from(["a cat", "--ar", "3:2", "—v 5", "--no", "text,", "::", "::-1", "--style raw", "https://x.y"])


@given(st.lists(_WORDS, max_size=8).map(" ".join))
def test_nothing_of_a_command_is_left(text: str) -> None:
    found = strip_commands(text)
    assert "--" not in found and "::" not in found and "http" not in found
    assert strip_commands(found) == found
