"""The image metrics: what each needs, how it prepares pictures and texts, and the score of a batch.

A metric is loaded once and then scores batches. Its `Preparation` names every file and setting that decides a value, so
that results with different ones are never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from rmd.common.errors import RMDError, one_of
from rmd.scores.aesthetic import folded
from rmd.scores.clip import VIT_G14, VIT_H14, embed_images, embed_texts, from_open_clip, tokens
from rmd.scores.dino import DINO, diversity
from rmd.scores.hpsv3 import HPSV3, QWEN, hpsv3
from rmd.scores.imagereward import BERT, IMAGEREWARD, image_reward
from rmd.scores.pixels import clip_pixels, padded_pixels, square_pixels
from rmd.scores.result import Preparation, Settings
from rmd.scores.weights import Source

CPU = torch.device("cpu")
Chosen = TypeVar("Chosen")
Scores = TypeVar("Scores")
OPENAI = "openai/clip-vit-large-patch14"
"""OpenAI's network, whose tokenizer all others share."""
_GITHUB = "https://raw.githubusercontent.com/{repository}/main"
_MIDDLE = "shorter side, middle"
AESTHETIC = "sac+logos+ava1-l14-linearMSE.pth"
AESTHETIC_V1 = "sa_0_4_vit_l_14_linear.pth"


class Scorer(Protocol):
    """A metric that is ready to score."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks, all of which must be moved to compute on another device."""

    @property
    def preparation(self) -> Preparation:
        """Everything that decides a value."""

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the scores (n,) in float32 of n pictures for their prompts; NaN where there is none."""


@dataclass(frozen=True)
class Place:
    """The place of networks: a source of their files, a device and a type.

    Attributes:
        folder: folder with repositories as OWNER/NAME; None: the Hub.
        converted: folder for converted checkpoints; None: beside the Hub's cache.
        device, dtype: where and in which type they compute.
    """

    folder: Path | None = None
    converted: Path | None = None
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def source(self, repository: str, url: str = "") -> Source:
        """Return the source of a repository's files, which have an address of their own if they are not on the Hub."""
        return Source(repository, self.folder, self.converted, url)


@dataclass(frozen=True)
class Metric(Generic[Scores]):
    """A metric that gives every picture, or every clip, a value.

    Attributes:
        name: what the command line calls it.
        title: its title in tables.
        load: loads its networks from a place.
        digits: number of decimals that papers print.
        together: whether a value depends on all samples of the prompt, which are then scored together.
    """

    name: str
    title: str
    load: Callable[[Place], Scores]
    digits: int = 2
    together: bool = False


ImageMetric = Metric[Scorer]
"""A metric of pictures."""


@dataclass(frozen=True)
class TextScore:
    """The similarity of pictures with their prompts in a CLIP network.

    Attributes:
        model: the network.
        tokenizer: OpenAI's tokenizer.
        pixels: prepares a picture.
        preparation: everything that decides a value.
        scale: factor of the cosine.
        prefix: words that precede every prompt.
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer
    pixels: Callable[[Image.Image], Tensor]
    preparation: Preparation
    scale: float = 100.0
    prefix: str = ""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks."""
        return (self.model,)

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the scaled cosines (n,) of pictures and prompts."""
        first = next(self.model.parameters())
        pixels = torch.stack([self.pixels(image) for image in images]).to(first)
        ids, _ = tokens(token_ids(self.tokenizer, [self.prefix + text for text in prompts]))
        pair = embed_images(self.model, pixels), embed_texts(self.model, ids.to(first.device))
        return self.scale * (pair[0].float() * pair[1].float()).sum(-1).cpu()


@dataclass(frozen=True)
class AestheticScore:
    """An aesthetic score, which looks at no prompt."""

    model: CLIPModel
    head: Callable[[Tensor], Tensor]
    preparation: Preparation

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks."""
        return (self.model,)

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the scores (n,) of pictures; the prompts are not read."""
        pixels = torch.stack([clip_pixels(image, image_side(self.model)) for image in images])
        return self.head(embed_images(self.model, pixels.to(next(self.model.parameters()))).float().cpu())


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token numbers of texts without those of their start and end, however long they are."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def image_side(model: CLIPModel) -> int:
    """Return the side in pixels of the pictures that a network sees."""
    return int(model.config.vision_config.image_size)


def _openai(place: Place, source: Source) -> CLIPModel:
    """Load OpenAI's network in transformers' format."""
    config, weights = source.path("config.json"), source.path("model.safetensors")
    if config.parent != weights.parent:
        raise RMDError(f"the files of {source.repository} are not in one folder: download them again")
    model = CLIPModel.from_pretrained(weights.parent, local_files_only=True)
    return _ready(model, place)


def _ready(model: CLIPModel, place: Place) -> CLIPModel:
    return model.to(place.device, place.dtype).eval().requires_grad_(False)


def _text_score(
    place: Place, source: Source, model: CLIPModel, prepare: Callable[[Image.Image, int], Tensor], *, pixels: str,
    scale: float = 100.0, prefix: str = "", **more: bool,
) -> TextScore:  # fmt: skip
    """Return the similarity in a network, with OpenAI's tokenizer; `pixels` says in words how pictures are prepared."""
    words, side = place.source(OPENAI), image_side(model)
    folder = words.path("vocab.json").parent
    words.path("merges.txt")
    settings: Settings = {"pixels": pixels, "side": side, "scale": round(scale, 4), "prefix": prefix, **more}
    return TextScore(
        model, CLIPTokenizer.from_pretrained(folder, local_files_only=True), lambda image: prepare(image, side),
        Preparation(networks=(source.network, words.network), settings=settings), scale, prefix,
    )  # fmt: skip


def _clip(place: Place) -> Scorer:
    source = place.source(OPENAI)
    return _text_score(place, source, _openai(place, source), clip_pixels, pixels=_MIDDLE)


def _clip_dmd2(place: Place) -> Scorer:
    source = place.source("laion/CLIP-ViT-g-14-laion2B-s12B-b42K")
    model = _ready(from_open_clip(source.tensors("open_clip_pytorch_model.bin"), VIT_G14), place)
    words = "middle square, Lanczos 256, shorter side"
    return _text_score(place, source, model, square_pixels, pixels=words, prefix="A photo depicts ")


def _hps(name: str, *, antialias: bool) -> Callable[[Place], Scorer]:
    def load(place: Place) -> Scorer:
        source = place.source("xswu/HPSv2")
        model = _ready(from_open_clip(source.tensors(name), VIT_H14), place)
        prepare = partial(padded_pixels, antialias=antialias)
        return _text_score(place, source, model, prepare, pixels="longer side, black margins", antialias=antialias)

    return load


def _aesthetic(repository: str, name: str) -> Callable[[Place], Scorer]:
    def load(place: Place) -> Scorer:
        network, head = place.source(OPENAI), place.source(repository, _GITHUB.format(repository=repository))
        model = _openai(place, network)
        linear = folded(head.tensors(name))
        settings: Settings = {"pixels": _MIDDLE, "side": image_side(model)}
        return AestheticScore(model, linear, Preparation(networks=(network.network, head.network), settings=settings))

    return load


def _pickscore(place: Place) -> Scorer:
    source = place.source("yuvalkirstain/PickScore_v1")
    model = _openai(place, source)
    scale = float(model.logit_scale.exp())
    return _text_score(place, source, model, clip_pixels, pixels=_MIDDLE, scale=scale)


def _image_reward(place: Place) -> Scorer:
    return image_reward(place.source(IMAGEREWARD), place.source(BERT), place.device, place.dtype)


def _hpsv3(place: Place) -> Scorer:
    return hpsv3(place.source(HPSV3), place.source(QWEN), place.device, place.dtype)


def _diversity(place: Place) -> Scorer:
    return diversity(place.source(DINO), place.device, place.dtype)


METRICS = {
    metric.name: metric
    for metric in (
        ImageMetric("hps", "HPSv2.1", _hps("HPS_v2.1_compressed.pt", antialias=True)),
        ImageMetric("hps-legacy", "HPSv2.1, legacy resize", _hps("HPS_v2.1_compressed.pt", antialias=False)),
        ImageMetric("hps-v2.0", "HPSv2.0", _hps("HPS_v2_compressed.pt", antialias=True)),
        ImageMetric("aesthetic", "aesthetic score",
                    _aesthetic("christophschuhmann/improved-aesthetic-predictor", AESTHETIC), digits=3),
        ImageMetric("aesthetic-v1", "aesthetic score, v1", _aesthetic("LAION-AI/aesthetic-predictor", AESTHETIC_V1),
                    digits=3),
        ImageMetric("clip", "CLIP score, L/14", _clip),
        ImageMetric("clip-dmd2", "CLIP score as DMD2's, g/14", _clip_dmd2),
        ImageMetric("pickscore", "PickScore", _pickscore),
        ImageMetric("imagereward", "ImageReward", _image_reward, digits=3),
        ImageMetric("hpsv3", "HPSv3", _hpsv3),
        ImageMetric("diversity", "diversity over seeds", _diversity, digits=3, together=True),
    )
}  # fmt: skip
"""All metrics by name."""


def chosen(names: Sequence[str], known: Mapping[str, Chosen]) -> list[Chosen]:
    """Return metrics by name, each once and in the given order.

    Args:
        names: names of metrics.
        known: all metrics by name.

    Raises:
        RMDError: a name is unknown, or there is none.
    """
    if not names:
        raise RMDError(f"no metric is named: use some of {', '.join(known)}")
    return [known[one_of("metric", name, tuple(known))] for name in dict.fromkeys(names)]
