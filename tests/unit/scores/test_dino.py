"""Diversity of the pictures of one prompt: closed forms, and a small network from pictures to values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from rmd.scores import dino
from rmd.scores.dino import DINO, IMAGENET, mean_distances
from rmd.scores.metrics import METRICS, Place
from rmd.scores.pixels import squashed_pixels


def test_distances_in_closed_form() -> None:
    """Directions of the axes are 1 from each other, whatever their lengths; opposite ones are 2, and equal ones 0."""
    axes = torch.diag(torch.tensor([1.0, 5.0, 0.1]))
    torch.testing.assert_close(mean_distances(axes), torch.ones(3, dtype=torch.float64))
    pair = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    torch.testing.assert_close(mean_distances(pair), torch.full((2,), 2.0, dtype=torch.float64))
    assert mean_distances(pair[[0, 0, 0]]).abs().max() < 1e-12


def test_the_mean_is_that_of_all_pairs() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [
        1 - float(torch.nn.functional.cosine_similarity(features[i], features[j], dim=0))
        for i in range(7)
        for j in range(i)
    ]
    assert float(mean_distances(features).mean()) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_from_pictures_to_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=2, image_size=32)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / DINO)
    images = [Image.effect_noise((40, 30), 80).convert("RGB") for _ in range(5)]
    pixels = torch.stack([squashed_pixels(image, 32, statistics=IMAGENET) for image in images])
    with torch.no_grad():
        features = model(pixels).last_hidden_state[:, 0]
    scorer = METRICS["diversity"].load(Place(tmp_path))
    expected = mean_distances(features).float()
    torch.testing.assert_close(scorer(images, ["p"] * 5), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(dino, "MOST", 2)
    torch.testing.assert_close(scorer(images, ["p"] * 5), expected, atol=1e-5, rtol=0)
    assert METRICS["diversity"].together and "1 - cosine" in str(scorer.preparation.settings["distance"])
    assert scorer.preparation.networks[0].name == DINO
