"""The arithmetic of HPSv3's network (Qwen2-VL with a head), written out, and small networks with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from rmd.scores.hpsv3 import HPSV3, QWEN, REWARD, WEIGHTS, instruction

WIDTH, WIDE, LAYERS, HEADS, SHARED, VISION, VISION_HEADS = 32, 48, 2, 4, 2, 32, 2
PATCH, MERGE, FRAMES = 14, 2, 2
PIXELS = 3 * FRAMES * PATCH**2
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
)  # fmt: skip


def write_published(root: Path) -> tuple[dict[str, Tensor], Tokenizer]:
    """Write a small network as its authors publish it; return its tensors and the tokenizer with the scored token."""
    for repository in (HPSV3, QWEN):
        (root / repository).mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([instruction()], trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(root / QWEN / "tokenizer.json"))
    tokenizer.add_special_tokens([REWARD])
    (root / QWEN / "config.json").write_text(json.dumps(_config(tokenizer)), encoding="utf-8")
    state = random_state(tokenizer.get_vocab_size())
    save_file(state, root / HPSV3 / WEIGHTS)
    return state, tokenizer


def _config(tokenizer: Tokenizer) -> dict[str, object]:
    """Return the configuration as Qwen publishes it, with small sizes."""
    vision = {
        "depth": LAYERS, "embed_dim": VISION, "mlp_ratio": 2, "num_heads": VISION_HEADS, "in_chans": 3,
        "hidden_size": WIDTH, "patch_size": PATCH, "spatial_merge_size": MERGE, "spatial_patch_size": PATCH,
        "temporal_patch_size": FRAMES,
    }  # fmt: skip
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 0, "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|im_end|>"), "hidden_size": WIDTH, "initializer_range": 0.02,
        "intermediate_size": WIDE, "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": SHARED, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_cache": True, "vision_config": vision, "vocab_size": tokenizer.get_vocab_size() + 100,
    }  # fmt: skip


def later(name: str) -> str:
    """Return the name of a tensor in later versions of transformers."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def shapes(tokens: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by the names of the authors' version of transformers."""
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (VISION, 3, FRAMES, PATCH, PATCH), "model.norm.weight": (WIDTH,),
        "model.embed_tokens.weight": (tokens, WIDTH), "lm_head.weight": (tokens, WIDTH),
    }  # fmt: skip
    merged, narrow = MERGE**2 * VISION, WIDTH * SHARED // HEADS
    layers = {"rm_head.0": (16, WIDTH), "rm_head.3": (8, 16), "rm_head.5": (2, 8)}
    layers |= {"visual.merger.mlp.0": (merged, merged), "visual.merger.mlp.2": (WIDTH, merged)}
    norms = ["visual.merger.ln_q"]
    for layer in range(LAYERS):
        at = f"visual.blocks.{layer}"
        norms += [f"{at}.norm1", f"{at}.norm2"]
        layers |= {f"{at}.attn.qkv": (3 * VISION, VISION), f"{at}.attn.proj": (VISION, VISION)}
        layers |= {f"{at}.mlp.fc1": (2 * VISION, VISION), f"{at}.mlp.fc2": (VISION, 2 * VISION)}
        at = f"model.layers.{layer}"
        layers |= {f"{at}.self_attn.{name}_proj": (width, WIDTH) for name, width in _qkv(narrow)}
        found |= {f"{at}.self_attn.o_proj.weight": (WIDTH, WIDTH), f"{at}.mlp.down_proj.weight": (WIDTH, WIDE)}
        found |= {f"{at}.mlp.{name}_proj.weight": (WIDE, WIDTH) for name in ("gate", "up")}
        found |= {f"{at}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    found |= {f"{name}.weight": shape for name, shape in layers.items()}
    found |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return found | {f"{name}.{kind}": (VISION,) for name in norms for kind in ("weight", "bias")}


def _qkv(narrow: int) -> list[tuple[str, int]]:
    return [("q", WIDTH), ("k", narrow), ("v", narrow)]


def random_state(tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random tensors; weights of normalisations are around 1."""
    g = torch.Generator().manual_seed(seed)
    state = {name: 0.3 * torch.randn(shape, generator=g) for name, shape in shapes(tokens).items()}
    return {name: 1 + value if "norm" in name and name.endswith("weight") else value for name, value in state.items()}


def reference(state: dict[str, Tensor], patches: Tensor, grid: tuple[int, int], ids: Tensor, scored: int) -> Tensor:
    """Return mean and spread (2,) of the rating of a picture.

    Args:
        state: the tensors.
        patches: (n, 3 * frames * patch * patch) pixels, those that are merged together one after the other.
        grid: rows and columns of patches.
        ids: (l,) tokens, in which that of the picture occurs as often as there are merged patches.
        scored: the token whose state is scored.
    """
    seen = _vision(state, patches, grid)
    x = state["model.embed_tokens.weight"][ids].clone()
    (picture,) = ids.unique()[torch.tensor([int((ids == each).sum()) == len(seen) for each in ids.unique()])]
    x[ids == picture] = seen
    for layer in range(LAYERS):
        x = _layer(state, f"model.layers.{layer}", x)
    x = _scaled(x, state["model.norm.weight"])[ids == scored][0]
    for number in (0, 3, 5):
        x = _linear(state, f"rm_head.{number}", x if number == 0 else x.relu())
    return x


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    spread = x.var(-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def _scaled(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d / 2) of (heads, l, d) by angles (l, d / 2)."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _vision(state: dict[str, Tensor], patches: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    side = VISION // VISION_HEADS
    # Neighbours that are merged follow each other, so positions are listed in the same order.
    corners = [(r, c) for r in range(0, rows, MERGE) for c in range(0, columns, MERGE)]
    places = torch.tensor([(r + i, c + j) for r, c in corners for i in range(MERGE) for j in range(MERGE)])
    speeds = 10000.0 ** (-torch.arange(0, side // 2, 2) / (side // 2))
    angles = torch.cat([places[:, :1] * speeds, places[:, 1:] * speeds], -1)
    x = patches @ state["visual.patch_embed.proj.weight"].flatten(1).T
    for layer in range(LAYERS):
        at = f"visual.blocks.{layer}"
        joint = _linear(state, f"{at}.attn.qkv", _norm(state, f"{at}.norm1", x))
        q, k, v = joint.view(len(x), 3, VISION_HEADS, side).permute(1, 2, 0, 3)
        weights = (_turned(q, angles) @ _turned(k, angles).transpose(1, 2) / side**0.5).softmax(-1)
        x = x + _linear(state, f"{at}.attn.proj", (weights @ v).transpose(0, 1).flatten(1))
        hidden = _linear(state, f"{at}.mlp.fc1", _norm(state, f"{at}.norm2", x))
        x = x + _linear(state, f"{at}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
    merged = _norm(state, "visual.merger.ln_q", x).reshape(-1, MERGE**2 * VISION)
    hidden = torch.nn.functional.gelu(_linear(state, "visual.merger.mlp.0", merged))
    return _linear(state, "visual.merger.mlp.2", hidden)


def _layer(state: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    length, side = len(x), WIDTH // HEADS
    y = _scaled(x, state[f"{at}.input_layernorm.weight"])
    q, k, v = (_linear(state, f"{at}.self_attn.{n}_proj", y).view(length, -1, side).transpose(0, 1) for n in "qkv")
    angles = torch.arange(length)[:, None] * 1000000.0 ** (-torch.arange(0, side, 2) / side)
    q, k = _turned(q, angles), _turned(k, angles)
    k, v = (each.repeat_interleave(HEADS // SHARED, 0) for each in (k, v))
    later = torch.full((length, length), -torch.inf).triu(1)
    mixed = ((q @ k.transpose(1, 2) / side**0.5 + later).softmax(-1) @ v).transpose(0, 1).flatten(1)
    x = x + _linear(state, f"{at}.self_attn.o_proj", mixed)
    y = _scaled(x, state[f"{at}.post_attention_layernorm.weight"])
    gate, up = (_linear(state, f"{at}.mlp.{name}_proj", y) for name in ("gate", "up"))
    return x + _linear(state, f"{at}.mlp.down_proj", torch.nn.functional.silu(gate) * up)
