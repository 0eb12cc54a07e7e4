"""ImageReward with small random networks, against arithmetic that is written out, from picture and prompt to score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blip_reference import MED, SIDE, VOCABULARY, random_state, reference
from PIL import Image
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.files import parse_model
from rmd.scores.imagereward import BERT, CONFIG, IMAGEREWARD, LENGTH, WEIGHTS, TextEncoder, from_published
from rmd.scores.metrics import METRICS, Place

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "two", "on", "grass", ",", "red"]
PROMPTS = ["A red cat", "two cats, on grass, with [ENC]", "a " * 50]
CONFIGURATION = parse_model(json.dumps(MED), TextEncoder, CONFIG)


def write_published(root: Path) -> dict[str, Tensor]:
    """Write a small network as its authors publish it, and return its tensors."""
    state = random_state()
    for repository in (IMAGEREWARD, BERT):
        (root / repository).mkdir(parents=True)
    torch.save(state, root / IMAGEREWARD / WEIGHTS)
    (root / IMAGEREWARD / CONFIG).write_text(json.dumps(MED), encoding="utf-8")
    words = WORDS + [f"w{number}" for number in range(VOCABULARY - 2 - len(WORDS))]
    (root / BERT / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return state


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.effect_noise(size, 80).convert("RGB") for size in ((40, 40), (60, 36), (30, 54))]


def pixels_of(image: Image.Image) -> Tensor:
    """Scale the shorter side, cut out the middle, and normalise; torchvision rounds to the same pixels."""
    width, height = image.size
    scale = SIDE / min(width, height)
    size = (SIDE, int(height * scale)) if width < height else (int(width * scale), SIDE)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    cut = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    values = torch.from_numpy(np.array(cut)).float() / 255
    mean, spread = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((values - mean) / spread).permute(2, 0, 1)


def test_from_pictures_and_prompts_to_scores(tmp_path: Path, pictures: list[Image.Image]) -> None:
    state = write_published(tmp_path)
    scorer = METRICS["imagereward"].load(Place(tmp_path, tmp_path / "converted"))
    rows = [
        [2, 5, 12, 6, 3],
        [2, 8, 6, 7, 11, 9, 10, 11, 1, VOCABULARY - 1, 3],  # "with" is unknown, and [ENC] comes last of all
        [2, *[5] * (LENGTH - 2), 3],
    ]
    ids = torch.tensor([[*row, *[0] * (LENGTH - len(row))] for row in rows])
    pixels = torch.stack([pixels_of(image) for image in pictures])
    expected = reference(state, pixels, ids, (ids > 0).long())
    assert expected.std() > 0.05
    torch.testing.assert_close(scorer(pictures, PROMPTS), expected, atol=1e-5, rtol=0)
    first, second = scorer.preparation.networks
    assert (first.name, second.name) == (IMAGEREWARD, BERT) and set(first.files) == {WEIGHTS, CONFIG}
    assert set(second.files) == {"vocab.txt"} and scorer.preparation.settings["side"] == SIDE


def test_a_score_does_not_depend_on_its_batch(tmp_path: Path, pictures: list[Image.Image]) -> None:
    write_published(tmp_path)
    scorer = METRICS["imagereward"].load(Place(tmp_path, tmp_path / "converted"))
    alone = torch.cat([scorer([image], [prompt]) for image, prompt in zip(pictures, PROMPTS, strict=True)])
    torch.testing.assert_close(scorer(pictures, PROMPTS), alone, atol=1e-5, rtol=0)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path)
    (tmp_path / BERT / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    with pytest.raises(RMDError, match=rf"has 15 tokens with BLIP's, but ImageReward has {VOCABULARY}: download vocab"):
        METRICS["imagereward"].load(Place(tmp_path, tmp_path / "converted"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blip.visual_encoder.cls_token": None}, "vision transformer of ImageReward: 1 tensors, such as embeddings.c"),
        ({"blip.visual_encoder.pos_embed": None}, "checkpoint of ImageReward: the tensor 'pos_embed' is missing"),
        ({"blip.visual_encoder.blocks.0.gamma": torch.ones(1)}, "vision transformer of ImageReward: 1 tensors, such a"),
        ({"blip.text_encoder.embeddings.LayerNorm.bias": torch.ones(3)}, "text encoder of ImageReward: 1 tensors, suc"),
        ({"decoder.weight": torch.ones(1)}, "checkpoint of ImageReward: it has a tensor called decoder.weight"),
    ],
)
def test_another_checkpoint_is_refused(change: dict[str, Tensor | None], sentence: str) -> None:
    state = {name: value for name, value in {**random_state(), **change}.items() if value is not None}
    with pytest.raises(RMDError) as error:
        from_published(state, CONFIGURATION)
    assert str(error.value).startswith(f"this is no {sentence}")


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path)
    (tmp_path / IMAGEREWARD / CONFIG).write_text('{"vocab_size": 3}', encoding="utf-8")
    with pytest.raises(RMDError, match=r"med_config\.json: hidden_size"):
        METRICS["imagereward"].load(Place(tmp_path, tmp_path / "converted"))
