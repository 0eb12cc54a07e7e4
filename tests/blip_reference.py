"""The arithmetic of ImageReward's networks, written out, and small networks with random weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, TEXT, PATCH, GRID, LAYERS, HEADS, VOCABULARY = 128, 24, 8, 4, 2, 3, 60
SIDE = PATCH * GRID
MED = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": TEXT, "initializer_range": 0.02, "intermediate_size": 2 * TEXT,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": VOCABULARY,
    "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip
"""The authors' file about the text encoder, with small sizes."""


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a small network by the authors' names."""
    g = torch.Generator().manual_seed(seed)
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    state = {
        f"{vision}.cls_token": torch.randn(1, 1, WIDTH, generator=g),
        f"{vision}.pos_embed": torch.randn(1, GRID**2 + 1, WIDTH, generator=g),
        f"{vision}.patch_embed.proj.weight": 0.2 * torch.randn(WIDTH, 3, PATCH, PATCH, generator=g),
        f"{vision}.patch_embed.proj.bias": torch.randn(WIDTH, generator=g),
        f"{text}.embeddings.word_embeddings.weight": torch.randn(VOCABULARY, TEXT, generator=g),
        f"{text}.embeddings.position_embeddings.weight": torch.randn(64, TEXT, generator=g),
        f"{text}.embeddings.position_ids": torch.arange(64)[None],
    }  # fmt: skip
    for name, (width, inputs) in linears().items():
        state[f"{name}.weight"] = 0.3 * torch.randn(width, inputs, generator=g)
        state[f"{name}.bias"] = 0.3 * torch.randn(width, generator=g)
    for name, width in norms().items():
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=g)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=g)
    return state


def linears() -> dict[str, tuple[int, int]]:
    """Return the widths of outputs and inputs of all linear layers by their names."""
    found = {"blip.vision_proj": (8, WIDTH), "blip.text_proj": (8, TEXT)}
    for number, sizes in zip((0, 2, 4, 6, 7), ((16, TEXT), (12, 16), (8, 12), (4, 8), (1, 4)), strict=True):
        found[f"mlp.layers.{number}"] = sizes
    for layer in range(LAYERS):
        at = f"blip.visual_encoder.blocks.{layer}"
        found |= {f"{at}.attn.qkv": (3 * WIDTH, WIDTH), f"{at}.attn.proj": (WIDTH, WIDTH)}
        found |= {f"{at}.mlp.fc1": (2 * WIDTH, WIDTH), f"{at}.mlp.fc2": (WIDTH, 2 * WIDTH)}
        at = f"blip.text_encoder.encoder.layer.{layer}"
        found |= {f"{at}.intermediate.dense": (2 * TEXT, TEXT), f"{at}.output.dense": (TEXT, 2 * TEXT)}
        for kind, inputs in (("attention", TEXT), ("crossattention", WIDTH)):
            found |= {f"{at}.{kind}.self.{name}": (TEXT, inputs) for name in ("key", "value")}
            found |= {f"{at}.{kind}.self.query": (TEXT, TEXT), f"{at}.{kind}.output.dense": (TEXT, TEXT)}
    return found


def norms() -> dict[str, int]:
    """Return the widths of all normalisations by their names."""
    found = {"blip.visual_encoder.norm": WIDTH, "blip.text_encoder.embeddings.LayerNorm": TEXT}
    for layer in range(LAYERS):
        found |= {f"blip.visual_encoder.blocks.{layer}.{name}": WIDTH for name in ("norm1", "norm2")}
        at = f"blip.text_encoder.encoder.layer.{layer}"
        parts = ("attention.output", "crossattention.output", "output")
        found |= {f"{at}.{part}.LayerNorm": TEXT for part in parts}
    return found


def reference(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the scores (n,) of pixels (n, 3, s, s) for tokens and mask (n, l)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        spread = x.var(-1, unbiased=False, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    at = "blip.visual_encoder"
    patches = F.conv2d(pixels, state[f"{at}.patch_embed.proj.weight"], state[f"{at}.patch_embed.proj.bias"], PATCH)
    x = torch.cat([state[f"{at}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + state[f"{at}.pos_embed"]
    for layer in range(LAYERS):
        block = f"{at}.blocks.{layer}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, WIDTH // 64), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    seen = norm(x, f"{at}.norm", 1e-6)

    at = "blip.text_encoder"
    positions = state[f"{at}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = state[f"{at}.embeddings.word_embeddings.weight"][ids] + positions
    x = norm(x, f"{at}.embeddings.LayerNorm", 1e-12)
    hidden = -10000.0 * (1 - mask[:, None, None].float())
    for layer in range(LAYERS):
        block = f"{at}.encoder.layer.{layer}"
        for kind, source, bias in (("attention", None, hidden), ("crossattention", seen, 0.0)):
            inner, keys = f"{block}.{kind}.self", x if source is None else source
            q, k, v = linear(x, f"{inner}.query"), linear(keys, f"{inner}.key"), linear(keys, f"{inner}.value")
            mixed = linear(attend(q, k, v, HEADS, bias), f"{block}.{kind}.output.dense")
            x = norm(mixed + x, f"{block}.{kind}.output.LayerNorm", 1e-12)
        wide = linear(F.gelu(linear(x, f"{block}.intermediate.dense")), f"{block}.output.dense")
        x = norm(wide + x, f"{block}.output.LayerNorm", 1e-12)
    score = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(score, f"mlp.layers.{number}")
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072
