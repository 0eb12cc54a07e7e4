"""CLIP networks of open_clip: the same embeddings as its own arithmetic, which the tests write out."""

from __future__ import annotations

import pytest
import torch
from clip_reference import HEADS, SIDE, random_network

from rmd.common.errors import RMDError
from rmd.scores.clip import END, LENGTH, START, Heads, embed_images, embed_texts, from_open_clip, tokens


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_embeddings_are_those_of_open_clip(activation: str) -> None:
    network = random_network(heads=Heads(8, 12, activation))
    model = from_open_clip(network.state, network.heads)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(embed_images(model, pixels), network.embed_images(pixels), atol=1e-5, rtol=0)
    ids, cut = tokens([[5, 7, 9], [11], list(range(100, 200))])
    assert cut == [False, False, True]
    torch.testing.assert_close(embed_texts(model, ids), network.embed_texts(ids), atol=1e-5, rtol=0)


def test_padding_does_not_matter() -> None:
    model = from_open_clip(random_network().state, HEADS)
    ids, _ = tokens([[5, 7, 9]])
    other = torch.where(ids == 0, END, ids)
    torch.testing.assert_close(embed_texts(model, ids), embed_texts(model, other), atol=1e-6, rtol=0)


def test_texts_have_a_start_and_an_end() -> None:
    ids, cut = tokens([[1, 2], list(range(1, 76)), list(range(1, 77))])
    assert ids.shape == (3, LENGTH) and ids[0, :4].tolist() == [START, 1, 2, END] and not ids[0, 4:].any()
    assert ids[:, 0].tolist() == [START] * 3 and ids[1:, -1].tolist() == [END, END]
    assert cut == [False, False, True] and ids[1].tolist() == ids[2].tolist()


def test_another_checkpoint_is_refused() -> None:
    state = random_network().state
    without = {name: value for name, value in state.items() if name != "visual.proj"}
    with pytest.raises(RMDError, match=r"^this is no CLIP network of open_clip: the tensor 'visual\.proj' is missing$"):
        from_open_clip(without, HEADS)
    for change in ({"more": torch.zeros(1)}, {"ln_final.bias": torch.zeros(3)}):
        with pytest.raises(
            RMDError, match=r"^this is no CLIP network of open_clip with heads of 8 and 12: 1 tensors, "
        ):
            from_open_clip(state | change, HEADS)
