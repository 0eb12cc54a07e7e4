"""HPSv3: Qwen2-VL reads an instruction with the prompt and the picture, and a head predicts how much people like it.

Source: Ma et al., HPSv3: Towards Wide-Spectrum Human Preference Score (ICCV 2025), https://github.com/MizzenAI/HPSv3
(MIT). The instruction in `hpsv3.txt` is its authors', word for word, because the network was trained with it
(Copyright (c) 2024 HPSv3 Team, MIT License).

The authors call the language model without the positions of Qwen2-VL's pictures: tokens are counted one by one, those
of a picture too. The network was trained so, and is called so here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from rmd.common.errors import RMDError, shown
from rmd.common.files import read_errors
from rmd.scores.pixels import merged_patches
from rmd.scores.result import Preparation, Settings
from rmd.scores.weights import Source, fill

HPSV3, WEIGHTS = "MizzenAI/HPSv3", "HPSv3.safetensors"
QWEN = "Qwen/Qwen2-VL-7B-Instruct"
"""The repository of the configuration and of the tokenizer."""
AREA = 256 * 28 * 28
"""Area in pixels to which pictures are scaled."""
PICTURE, REWARD, PADDING = "<|image_pad|>", "<|Reward|>", "<|endoftext|>"
"""Tokens: a merged patch of a picture, the one whose state is scored, and padding."""
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>{picture}"
    "<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
)
"""Qwen2-VL's conversation with one picture and one text."""
_HEAD, _UNUSED, _WORDS = "rm_head.", "lm_head.", "language_model.embed_tokens.weight"
_TOKENS = (*re.findall(r"<\|\w+\|>", CHAT), PICTURE, PADDING)


@dataclass(frozen=True)
class HPSv3Score:
    """HPSv3, ready to score.

    Attributes:
        model: Qwen2-VL without its output layer.
        head: the head, which predicts mean and spread of a picture's rating, in float32.
        tokenizer: Qwen2-VL's, with the token that is scored.
        preparation: everything that decides a value.
    """

    model: Qwen2VLModel
    head: nn.Sequential
    tokenizer: PreTrainedTokenizerFast
    preparation: Preparation

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks."""
        return self.model, self.head

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the predicted means (n,) of n pictures for their prompts; its authors call 10 excellent, and 0 poor.

        Raises:
            RMDError: a prompt contains a token that belongs to the score, or a picture is too narrow.
        """
        vision = self.model.config.vision_config
        merge = vision.spatial_merge_size
        shape = {"patch": vision.patch_size, "merge": merge, "frames": vision.temporal_patch_size}
        cut = [merged_patches(image, area=AREA, **shape) for image in images]
        grids = torch.tensor([[1, *grid] for _, grid in cut])
        counts = [int(count) for count in grids.prod(-1) // merge**2]
        rows = [self._ids(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        length = max(map(len, rows))
        padding = self.tokenizer.convert_tokens_to_ids(PADDING)
        ids = torch.tensor([[*row, *[padding] * (length - len(row))] for row in rows])
        mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
        states = self._states(torch.cat([patches for patches, _ in cut]), grids, ids, mask)
        ratings: Tensor = self.head(states.float())  # the mean of a rating, and its spread
        return ratings[:, 0].cpu()

    def _ids(self, prompt: str, count: int) -> list[int]:
        """Return the tokens of a prompt with a picture of `count` merged patches."""
        for token in (PICTURE, REWARD):
            if token in prompt:
                raise RMDError(f"the prompt {shown(prompt)} contains {token}, which has a meaning of its own in HPSv3")
        text = CHAT.format(picture=PICTURE * count, text=instruction().format(text_prompt=prompt))
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _states(self, patches: Tensor, grids: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states (n, d) of the scored token, of patches (p, c), grids (n, 3), tokens and mask (n, l)."""
        first = next(self.model.parameters())
        ids, mask = ids.to(first.device), mask.to(first.device)
        seen = self.model.visual(patches.to(first), grid_thw=grids.to(first.device))
        seen = getattr(seen, "pooler_output", seen)  # earlier versions of transformers return the tensor itself
        inputs = self.model.language_model.get_input_embeddings()(ids)
        pictures = ids == self.tokenizer.convert_tokens_to_ids(PICTURE)
        inputs = inputs.masked_scatter(pictures[..., None], seen.to(inputs))
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        states: Tensor = self.model.language_model(
            inputs_embeds=inputs, attention_mask=mask.long(), position_ids=positions, use_cache=False
        ).last_hidden_state
        return states[ids == self.tokenizer.convert_tokens_to_ids(REWARD)]


def hpsv3(source: Source, words: Source, device: torch.device, dtype: torch.dtype) -> HPSv3Score:
    """Load HPSv3.

    Args:
        source: the files of HPSv3.
        words: the files of Qwen2-VL, of which configuration and tokenizer are read.
        device, dtype: where and in which type the networks compute, except for the head.

    Raises:
        RMDError: a file is missing or damaged, or holds something else.
    """
    config = Qwen2VLConfig.from_json_file(_whole(words.path("config.json")))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(_whole(words.path("tokenizer.json"))))
    missing = sorted(set(_TOKENS) - tokenizer.get_vocab().keys())
    if missing:
        raise RMDError(f"the tokenizer of {QWEN} lacks {missing[0]}: download its tokenizer.json again")
    tokenizer.add_tokens([REWARD], special_tokens=True)
    model, head = from_published(source.tensors(WEIGHTS), config, len(tokenizer))
    settings: Settings = {"area": AREA, "positions": "in order"}
    preparation = Preparation(networks=(source.network, words.network), settings=settings)
    return HPSv3Score(model.to(device, dtype), head.to(device), tokenizer, preparation)


def _whole(path: Path) -> Path:
    """Return the path of a file of JSON, after checking that it is whole.

    Raises:
        RMDError: it is not.
    """
    try:
        with read_errors(path):
            json.loads(path.read_bytes())
    except ValueError as error:
        raise RMDError(f"{path} is damaged: download it again") from error
    return path


@lru_cache(maxsize=1)
def instruction() -> str:
    """Return the authors' instruction, with a place for the prompt."""
    return resources.files("rmd.scores").joinpath("hpsv3.txt").read_text(encoding="utf-8")


def from_published(
    state: Mapping[str, Tensor], config: Qwen2VLConfig, tokens: int
) -> tuple[Qwen2VLModel, nn.Sequential]:
    """Return Qwen2-VL without its output layer, and the head in float32, from the published tensors.

    Args:
        state: the tensors by their published names, those of earlier or of later versions of transformers.
        config: the configuration of Qwen2-VL.
        tokens: the number of tokens of the tokenizer, with the one that is scored.

    Raises:
        RMDError: a tensor is missing, unknown or of another shape, or the network knows fewer tokens.
    """
    head = {name.removeprefix(_HEAD): value.float() for name, value in state.items() if name.startswith(_HEAD)}
    body = {_renamed(name): value for name, value in state.items() if not name.startswith((_HEAD, _UNUSED))}
    words = body.get(_WORDS, torch.empty(0))
    if len(words) < tokens:
        raise RMDError(f"this is no checkpoint of HPSv3: it knows {len(words)} tokens, but the tokenizer has {tokens}")
    config = deepcopy(config)
    config.text_config.vocab_size = len(words)
    with init_empty_weights(include_buffers=False):
        model = Qwen2VLModel(config)
    fill(model, body, "checkpoint of HPSv3")
    return model.eval().requires_grad_(False), _head(head)


def _renamed(name: str) -> str:
    """Return a tensor's name in `Qwen2VLModel`: vision and language parts have changed places between versions."""
    later = name.removeprefix("model.")
    return later if later.startswith(("visual.", "language_model.")) else f"language_model.{later}"


def _head(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Return the head: three layers with ReLU between them, and dropout, which does nothing here, after the first."""
    try:
        widths = [state[f"{number}.weight"].shape for number in (0, 3, 5)]
    except KeyError as error:
        raise RMDError(f"this is no checkpoint of HPSv3: its head lacks the tensor {error}") from error
    layers = [nn.Linear(shape[1], shape[0]) for shape in widths]
    head = nn.Sequential(layers[0], nn.ReLU(), nn.Identity(), layers[1], nn.ReLU(), layers[2])
    fill(head, state, "head of HPSv3")
    return head.eval().requires_grad_(False)
