"""CLIP networks of open_clip: the same embeddings as its own arithmetic, which is written out here."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.scores.clip import END, LENGTH, START, Heads, embed_images, embed_texts, from_open_clip, tokens

VISION, TEXT, LAYERS, PATCH, GRID, SIZE, VOCABULARY = 32, 24, 2, 4, 3, 20, END + 1
HEADS = Heads(vision=8, text=12)


def random_state() -> dict[str, Tensor]:
    """Return the tensors of a small network by open_clip's names."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(shape, generator=g)

    state = {
        "visual.class_embedding": normal(VISION), "visual.positional_embedding": normal(GRID**2 + 1, VISION),
        "visual.conv1.weight": normal(VISION, 3, PATCH, PATCH), "visual.proj": normal(VISION, SIZE),
        "positional_embedding": normal(LENGTH, TEXT), "text_projection": normal(TEXT, SIZE),
        "token_embedding.weight": normal(VOCABULARY, TEXT), "logit_scale": torch.tensor(4.6),
        "attn_mask": torch.zeros(LENGTH, LENGTH),
    }  # fmt: skip
    for norm, width in (("visual.ln_pre", VISION), ("visual.ln_post", VISION), ("ln_final", TEXT)):
        state |= {f"{norm}.weight": 1 + normal(width), f"{norm}.bias": normal(width)}
    for tower, width in (("visual.", VISION), ("", TEXT)):
        for layer in range(LAYERS):
            at = f"{tower}transformer.resblocks.{layer}."
            state |= {
                f"{at}ln_1.weight": 1 + normal(width), f"{at}ln_1.bias": normal(width),
                f"{at}ln_2.weight": 1 + normal(width), f"{at}ln_2.bias": normal(width),
                f"{at}attn.in_proj_weight": normal(3 * width, width), f"{at}attn.in_proj_bias": normal(3 * width),
                f"{at}attn.out_proj.weight": normal(width, width), f"{at}attn.out_proj.bias": normal(width),
                f"{at}mlp.c_fc.weight": normal(4 * width, width), f"{at}mlp.c_fc.bias": normal(4 * width),
                f"{at}mlp.c_proj.weight": normal(width, 4 * width), f"{at}mlp.c_proj.bias": normal(width),
            }  # fmt: skip
    return state


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def transformer(x: Tensor, state: dict[str, Tensor], tower: str, head: int, activation: str, *, causal: bool) -> Tensor:
    """Pre-norm blocks of attention and an MLP."""
    count, length, width = x.shape
    mask = torch.full((length, length), -math.inf).triu(1) if causal else torch.zeros(length, length)
    for layer in range(LAYERS):
        at = f"{tower}transformer.resblocks.{layer}."
        joint = F.linear(
            norm(x, state, f"{at}ln_1"), state[f"{at}attn.in_proj_weight"], state[f"{at}attn.in_proj_bias"]
        )
        q, k, v = (part.view(count, length, width // head, head).transpose(1, 2) for part in joint.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(head) + mask).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(count, length, width)
        x = x + F.linear(mixed, state[f"{at}attn.out_proj.weight"], state[f"{at}attn.out_proj.bias"])
        hidden = F.linear(norm(x, state, f"{at}ln_2"), state[f"{at}mlp.c_fc.weight"], state[f"{at}mlp.c_fc.bias"])
        hidden = F.gelu(hidden) if activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        x = x + F.linear(hidden, state[f"{at}mlp.c_proj.weight"], state[f"{at}mlp.c_proj.bias"])
    return x


def image_reference(pixels: Tensor, state: dict[str, Tensor], activation: str) -> Tensor:
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + state["visual.positional_embedding"]
    x = transformer(norm(x, state, "visual.ln_pre"), state, "visual.", HEADS.vision, activation, causal=False)
    return F.normalize(norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"], dim=-1)


def text_reference(ids: Tensor, state: dict[str, Tensor], activation: str) -> Tensor:
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    x = norm(transformer(x, state, "", HEADS.text, activation, causal=True), state, "ln_final")
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"], dim=-1)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_embeddings_are_those_of_open_clip(activation: str) -> None:
    state = random_state()
    model = from_open_clip(state, Heads(HEADS.vision, HEADS.text, activation))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    pixels = torch.randn(3, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        embed_images(model, pixels), image_reference(pixels, state, activation), atol=1e-5, rtol=0
    )
    ids, cut = tokens([[5, 7, 9], [11], list(range(100, 200))])
    assert cut == [False, False, True]
    torch.testing.assert_close(embed_texts(model, ids), text_reference(ids, state, activation), atol=1e-5, rtol=0)


def test_padding_does_not_matter() -> None:
    model = from_open_clip(random_state(), HEADS)
    ids, _ = tokens([[5, 7, 9]])
    other = torch.where(ids == 0, END, ids)
    torch.testing.assert_close(embed_texts(model, ids), embed_texts(model, other), atol=1e-6, rtol=0)


def test_texts_have_a_start_and_an_end() -> None:
    ids, cut = tokens([[1, 2], list(range(1, 76)), list(range(1, 77))])
    assert ids.shape == (3, LENGTH) and ids[0, :4].tolist() == [START, 1, 2, END] and not ids[0, 4:].any()
    assert ids[:, 0].tolist() == [START] * 3 and ids[1:, -1].tolist() == [END, END]
    assert cut == [False, False, True] and ids[1].tolist() == ids[2].tolist()


def test_another_checkpoint_is_refused() -> None:
    state = random_state()
    without = {name: value for name, value in state.items() if name != "visual.proj"}
    with pytest.raises(RMDError, match=r"^this is no CLIP network of open_clip: the tensor 'visual\.proj' is missing$"):
        from_open_clip(without, HEADS)
    for change in ({"more": torch.zeros(1)}, {"ln_final.bias": torch.zeros(3)}):
        with pytest.raises(
            RMDError, match=r"^this is no CLIP network of open_clip with heads of 8 and 12: 1 tensors, "
        ):
            from_open_clip(state | change, HEADS)
