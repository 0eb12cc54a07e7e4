"""ImageReward: BLIP's text encoder reads the prompt while it looks at the picture, and a linear head scores the result.

Source: Xu et al., ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (NeurIPS 2023),
https://github.com/THUDM/ImageReward (Apache-2.0). Its networks are those of transformers' BLIP under other names, so
their tensors are renamed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import ConfigDict
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.typed import Strict
from rmd.scores.aesthetic import Aesthetic, folded
from rmd.scores.pixels import clip_pixels
from rmd.scores.result import Preparation, Settings
from rmd.scores.weights import Source, fill

IMAGEREWARD, WEIGHTS, CONFIG = "THUDM/ImageReward", "ImageReward.pt", "med_config.json"
BERT = "google-bert/bert-base-uncased"
"""The repository of the tokenizer."""
MARKS = ("[DEC]", "[ENC]")
"""Tokens that BLIP adds to those of BERT, in this order."""
LENGTH = 35
"""Number of tokens of a prompt, with those of its start and end."""
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""The head's mean and deviation on its authors' data, by which scores are normalised."""
HEAD_WIDTH = 64
"""Width of the vision transformer's attention heads, which its tensors do not tell."""
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")
"""Tensors of BLIP's training that a score does not use."""
_RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
_IN_BLOCK = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
}  # fmt: skip


class TextEncoder(Strict):
    """The settings of the text encoder that its tensors do not tell, from the authors' file, which has others, too."""

    model_config = ConfigDict(extra="ignore")

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float


@dataclass(frozen=True)
class Networks:
    """The networks of a score.

    Attributes:
        vision: encodes pixels.
        text: encodes a prompt, with attention to the encoded picture.
        head: scores the state of a prompt's first token.
    """

    vision: BlipVisionModel
    text: BlipTextModel
    head: Aesthetic

    @torch.no_grad()
    def __call__(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the scores (n,) in float32 of pixels (n, 3, s, s) for tokens (n, l), whose mask is 0 for padding."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        everywhere = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        states = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=everywhere
        ).last_hidden_state
        return (self.head(states[:, 0].float().cpu()) - MEAN) / DEVIATION


@dataclass(frozen=True)
class ImageRewardScore:
    """ImageReward, ready to score.

    Attributes:
        networks: the networks.
        tokenizer: BERT's, with BLIP's tokens.
        side: side in pixels of the pictures that the networks see.
        preparation: everything that decides a value.
    """

    networks: Networks
    tokenizer: BertTokenizer
    side: int
    preparation: Preparation

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks that see pictures and prompts; the head stays where it is."""
        return self.networks.vision, self.networks.text

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the scores (n,) of n pictures for their prompts, about -2 to 2."""
        first = next(self.networks.vision.parameters())
        pixels = torch.stack([clip_pixels(image, self.side) for image in images]).to(first)
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=LENGTH)
        ids, mask = (torch.tensor(tokens[name], device=first.device) for name in ("input_ids", "attention_mask"))
        return self.networks(pixels, ids, mask)


def image_reward(source: Source, words: Source, device: torch.device, dtype: torch.dtype) -> ImageRewardScore:
    """Load ImageReward.

    Args:
        source: the files of ImageReward.
        words: the files of BERT, of which `vocab.txt` is read.
        device, dtype: where and in which type the networks compute.

    Raises:
        RMDError: a file is missing or damaged, or holds something else.
    """
    config = read_model(source.path(CONFIG), TextEncoder)
    networks = from_published(source.tensors(WEIGHTS), config)
    for network in (networks.vision, networks.text):
        network.to(device, dtype)
    side = int(networks.vision.config.image_size)
    tokenizer = _tokenizer(words.path("vocab.txt").parent, config.vocab_size)
    settings: Settings = {"pixels": "shorter side, middle", "side": side, "tokens": LENGTH}
    return ImageRewardScore(
        networks, tokenizer, side, Preparation(networks=(source.network, words.network), settings=settings)
    )


def from_published(state: Mapping[str, Tensor], config: TextEncoder) -> Networks:
    """Return the networks in float32 and in evaluation mode, from the published tensors.

    Args:
        state: the tensors by their published names.
        config: the text encoder's settings.

    Raises:
        RMDError: a tensor is missing, unknown or of another shape.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in (_VISION, _TEXT, _HEAD)}
    for name, value in state.items():
        part = next((part for part in parts if name.startswith(part)), None)
        if part is not None and not name.endswith("position_ids"):
            parts[part][name.removeprefix(part)] = value.float()
        elif part is None and not name.startswith(_UNUSED):
            raise RMDError(f"this is no checkpoint of ImageReward: it has a tensor called {name}")
    try:
        vision = BlipVisionModel(_vision_config(parts[_VISION]))
    except KeyError as error:
        raise RMDError(f"this is no checkpoint of ImageReward: the tensor {error} is missing") from error
    text = BlipTextModel(
        BlipTextConfig(**config.model_dump(), encoder_hidden_size=vision.config.hidden_size), add_pooling_layer=False
    )
    fill(vision, {_renamed(name): value for name, value in parts[_VISION].items()}, "vision transformer of ImageReward")
    fill(text, parts[_TEXT], "text encoder of ImageReward")
    return Networks(
        vision.eval().requires_grad_(False), text.eval().requires_grad_(False), folded(parts[_HEAD])
    )  # fmt: skip


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    """Return the configuration of the vision transformer, from the shapes of its tensors."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    grid = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    layers = {match[1] for match in map(_BLOCK.fullmatch, state) if match}
    return BlipVisionConfig(
        hidden_size=width, intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0], num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_WIDTH, image_size=grid * patch, patch_size=patch, hidden_act="gelu",
        layer_norm_eps=1e-6,
    )  # fmt: skip


def _renamed(name: str) -> str:
    """Return transformers' name of a tensor of the vision transformer; unknown ones keep theirs."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _RENAMED.get(name, name)
    number, part, kind = block.groups()
    return f"encoder.layers.{number}.{_IN_BLOCK.get(part, part)}.{kind}"


def _tokenizer(folder: Path, size: int) -> BertTokenizer:
    """Return BERT's tokenizer with BLIP's tokens.

    Raises:
        RMDError: it does not have as many tokens as the network.
    """
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    if len(tokenizer) != size:
        raise RMDError(
            f"the vocabulary in {folder} has {len(tokenizer)} tokens with BLIP's, but ImageReward has {size}: download "
            f"vocab.txt of {BERT}"
        )
    return tokenizer
