"""The arithmetic of open_clip's networks, written out, and small networks with random weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.scores.clip import END, LENGTH, START, Heads, from_open_clip
from rmd.scores.metrics import OPENAI

LAYERS, PATCH, GRID, SIZE, VOCABULARY = 2, 4, 3, 20, END + 1
SIDE = PATCH * GRID
HEADS = Heads(8, 12)


@dataclass(frozen=True)
class Network:
    """A small network by open_clip's names, with its heads."""

    state: dict[str, Tensor]
    heads: Heads

    def embed_images(self, pixels: Tensor) -> Tensor:
        return image_reference(pixels, self.state, self.heads)

    def embed_texts(self, ids: Tensor) -> Tensor:
        return text_reference(ids, self.state, self.heads)


def random_network(vision: int = 32, text: int = 24, heads: Heads = HEADS, seed: int = 0) -> Network:
    """Return a network of two layers in each tower, of these widths."""
    return Network(random_state(vision, text, seed), heads)


def random_state(vision: int, text: int, seed: int) -> dict[str, Tensor]:
    """Return the tensors of a small network by open_clip's names."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(shape, generator=g)

    state = {
        "visual.class_embedding": normal(vision), "visual.positional_embedding": normal(GRID**2 + 1, vision),
        "visual.conv1.weight": normal(vision, 3, PATCH, PATCH), "visual.proj": normal(vision, SIZE),
        "positional_embedding": normal(LENGTH, text), "text_projection": normal(text, SIZE),
        "token_embedding.weight": normal(VOCABULARY, text), "logit_scale": torch.tensor(4.6),
        "attn_mask": torch.zeros(LENGTH, LENGTH),
    }  # fmt: skip
    for norm, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        state |= {f"{norm}.weight": 1 + normal(width), f"{norm}.bias": normal(width)}
    for tower, width in (("visual.", vision), ("", text)):
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


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges: every letter is a token."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    vocabulary |= {"<|startoftext|>": START, "<|endoftext|>": END}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def write_openai(root: Path) -> Path:
    """Write a small random network as OpenAI's is published, and return the folder of all networks."""
    network = random_network(64, 64, Heads(64, 64, "quick_gelu"), seed=1)
    from_open_clip(network.state, network.heads).save_pretrained(root / OPENAI)
    write_tokenizer(root / OPENAI)
    return root


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


def image_reference(pixels: Tensor, state: dict[str, Tensor], heads: Heads) -> Tensor:
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + state["visual.positional_embedding"]
    x = transformer(norm(x, state, "visual.ln_pre"), state, "visual.", heads.vision, heads.activation, causal=False)
    return F.normalize(norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"], dim=-1)


def text_reference(ids: Tensor, state: dict[str, Tensor], heads: Heads) -> Tensor:
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    x = norm(transformer(x, state, "", heads.text, heads.activation, causal=True), state, "ln_final")
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"], dim=-1)
