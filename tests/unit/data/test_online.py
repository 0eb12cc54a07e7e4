"""Encoding prompts when they are needed: the same bits for any state of the cache, bounded memory, offloading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import TINY
from helpers import PROMPTS
from hypothesis import given
from hypothesis import strategies as st

from rmd.data.online import OnlineEncoder
from rmd.models import Backbone, Cond

families = pytest.mark.parametrize("family", sorted(TINY))


def watched(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return a list to which every batch is added that the backbone encodes from now on."""
    asked: list[list[str]] = []
    usual = backbone.encode

    def encode(prompts: Any) -> Cond:
        asked.append(list(prompts))
        return usual(prompts)

    monkeypatch.setattr(backbone, "encode", encode)
    return asked


@families
def test_it_gives_what_the_backbone_gives(family: str) -> None:
    backbone = TINY[family]()
    encoder = OnlineEncoder(backbone, cache_bytes=10**9, offload=False)
    for prompts in (PROMPTS[:3], [PROMPTS[1], PROMPTS[3], PROMPTS[1]]):
        cond, wanted = encoder.encode(prompts), backbone.encode(prompts)
        assert cond.tensors.keys() == wanted.tensors.keys()
        for name, tensor in wanted.tensors.items():
            torch.testing.assert_close(cond.tensors[name], tensor.detach(), rtol=0, atol=1e-5)
    for name, tensor in backbone.null(2).tensors.items():
        torch.testing.assert_close(encoder.null(2).tensors[name], tensor.detach(), rtol=0, atol=1e-5)


@given(batches=st.lists(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4), min_size=1, max_size=6))
def test_what_is_remembered_changes_no_bit(batches: list[list[str]]) -> None:
    remembering, forgetful = (OnlineEncoder(BACKBONE, cache_bytes=size, offload=False) for size in (10**9, 0))
    for prompts in batches:
        first, second = remembering.encode(prompts), forgetful.encode(prompts)
        assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    assert forgetful.held == 0


BACKBONE = TINY["sdxl"]()


def test_a_prompt_is_encoded_once_and_those_used_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TINY["pixart"]()
    one = sum(tensor.nbytes for tensor in backbone.encode(["a ball"]).tensors.values())
    asked = watched(backbone, monkeypatch)
    encoder = OnlineEncoder(backbone, cache_bytes=2 * one, offload=False)
    for prompts in (["a"], ["b", "a"], ["b"]):
        encoder.encode(prompts)
    assert asked == [["a"], ["b"]] and encoder.held == 2 * one
    encoder.encode(["c"])  # a was used before b
    encoder.encode(["b", "c", "a"])
    assert asked == [["a"], ["b"], ["c"], ["a"]] and encoder.held == 2 * one


def test_encoders_are_on_the_device_only_while_they_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TINY["sd3"]()
    moves: list[tuple[str, str]] = []
    backbone.computes_on(torch.device("meta"))
    for name, part in zip("abc", backbone.text_encoders, strict=True):
        monkeypatch.setattr(part, "to", lambda device, name=name: moves.append((name, device.type)))
    monkeypatch.setattr(backbone, "encode", lambda prompts: moves.append(("encode", prompts[0])) or fail())
    encoder = OnlineEncoder(backbone, cache_bytes=0, offload=True)
    away = [(name, "cpu") for name in "abc"]
    assert moves == away
    with pytest.raises(RuntimeError):
        encoder.encode(["x"])
    assert moves == [*away, *((name, "meta") for name in "abc"), ("encode", "x"), *away]


def fail() -> Cond:
    raise RuntimeError
