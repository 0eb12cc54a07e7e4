"""CLIP networks in transformers' classes, also from checkpoints in open_clip's format, and their embeddings.

HPSv2 and DMD2's CLIP score come as checkpoints of open_clip, whose package needs torchvision. Their networks are those
of transformers' `CLIPModel` under other names, so their tensors are renamed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from rmd.common.errors import RMDError
from rmd.scores.weights import fill

LENGTH = 77
"""Number of tokens of a text, with those of its start and end."""
START, END = 49406, 49407
"""Tokens of the start and the end of a text."""
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_RENAMED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_IN_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_DROPPED = ("attn_mask",)


@dataclass(frozen=True)
class Heads:
    """Widths of the attention heads, which the tensors of a checkpoint do not tell, and the activation."""

    vision: int
    text: int = 64
    activation: str = "gelu"


VIT_L14 = Heads(64, activation="quick_gelu")
"""OpenAI's ViT-L/14."""
VIT_H14 = Heads(80)
"""open_clip's ViT-H-14, of which HPSv2 is."""
VIT_G14 = Heads(88)
"""open_clip's ViT-g-14, with which DMD2 measures."""


def from_open_clip(state: Mapping[str, Tensor], heads: Heads) -> CLIPModel:
    """Return a network from the tensors of a checkpoint of open_clip, in float32 and in evaluation mode.

    Args:
        state: the tensors by open_clip's names; the sizes of the network follow from their shapes.
        heads: widths of the attention heads.

    Raises:
        RMDError: a tensor is missing, unknown or of another shape.
    """
    try:
        renamed = _renamed(state)
        model = CLIPModel(_config(state, heads)).eval()
    except KeyError as error:
        raise RMDError(f"this is no CLIP network of open_clip: the tensor {error} is missing") from error
    what = f"CLIP network of open_clip with heads of {heads.vision} and {heads.text}"
    fill(model, {name: value.float() for name, value in renamed.items()}, what)
    return model.requires_grad_(False)


def tokens(ids: Sequence[Sequence[int]]) -> tuple[Tensor, list[bool]]:
    """Return texts as a batch of token numbers, (n, 77), padded with zeros as open_clip does, and which were cut.

    Padding does not matter: attention is causal, and the end's state is the text's embedding.

    Args:
        ids: token numbers of each text, without those of its start and end.
    """
    batch = torch.zeros(len(ids), LENGTH, dtype=torch.long)
    cut = []
    for row, text in zip(batch, ids, strict=True):
        kept = [START, *text[: LENGTH - 2], END]
        row[: len(kept)] = torch.tensor(kept)
        cut.append(len(text) > LENGTH - 2)
    return batch, cut


@torch.no_grad()
def embed_images(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return the normalised embeddings (n, d) of normalised pixels (n, 3, s, s)."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


@torch.no_grad()
def embed_texts(model: CLIPModel, ids: Tensor) -> Tensor:
    """Return the normalised embeddings (n, d) of texts (n, 77)."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def _config(state: Mapping[str, Tensor], heads: Heads) -> CLIPConfig:
    """Return the configuration of a network, from the shapes of its tensors."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    length, text_width = state["positional_embedding"].shape
    return CLIPConfig(
        text_config={
            "vocab_size": state["token_embedding.weight"].shape[0], "hidden_size": text_width,
            "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _layers(state, ""), "num_attention_heads": text_width // heads.text,
            "max_position_embeddings": length, "hidden_act": heads.activation, "eos_token_id": END,
            "bos_token_id": START, "projection_dim": state["text_projection"].shape[1],
        },
        vision_config={
            "hidden_size": width, "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _layers(state, "visual."), "num_attention_heads": width // heads.vision,
            "image_size": grid * patch, "patch_size": patch, "hidden_act": heads.activation,
            "projection_dim": state["visual.proj"].shape[1],
        },
        projection_dim=state["text_projection"].shape[1],
    )  # fmt: skip


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    found = (match for match in map(_BLOCK.fullmatch, state) if match and (match[1] or "") == tower)
    return 1 + max(int(match[2]) for match in found)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by transformers' names; unknown ones keep theirs."""
    renamed = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T
        elif block is not None:
            renamed |= _block(block, value)
        elif name not in _DROPPED:
            renamed[_RENAMED.get(name, name)] = value
    return renamed


def _block(match: re.Match[str], value: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a layer; open_clip keeps queries, keys and values in one."""
    tower, number, rest = match.groups()
    place = f"{'vision_model' if tower else 'text_model'}.encoder.layers.{number}."
    part, _, kind = rest.rpartition(".")
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{place}self_attn.{name}_proj.{kind}": each for name, each in zip("qkv", value.chunk(3), strict=True)}
    return {f"{place}{_IN_BLOCK.get(part, part)}.{kind}": value}
