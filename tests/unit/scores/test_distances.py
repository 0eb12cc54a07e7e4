"""Distances of sets of pictures: closed forms, written-out estimates, and small networks from picture to value."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_reference import random_network
from PIL import Image
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from rmd.common.errors import RMDError
from rmd.core.metrics import frechet_distance, kernel_distance
from rmd.scores.clip import VIT_L14, Heads, embed_images, from_open_clip
from rmd.scores.dino import IMAGENET
from rmd.scores.distances import DISTANCES, cmmd, measure_distances
from rmd.scores.metrics import Place, chosen
from rmd.scores.pixels import squashed_pixels

CLIP, DINO = "openai/clip-vit-large-patch14-336", "facebook/dinov2-large"


def normalised(count: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift
    return torch.nn.functional.normalize(rows, dim=-1)


def test_cmmd_in_closed_form() -> None:
    """Two single points at a distance d have 2 - 2 exp(-d^2 / 200), times 1000."""
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)))
    same = normalised(20)
    assert cmmd(same, same) == pytest.approx(0, abs=1e-9)


def test_cmmd_is_the_published_estimate() -> None:
    x, y = normalised(12), normalised(15, shift=1.0, seed=1)

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [math.exp(-float((p - q).square().sum()) / (2 * 10**2)) for p in a for q in b]
        return sum(pairs) / len(pairs)

    assert cmmd(x, y) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-5)


def test_kid_is_the_unbiased_cubic_mmd() -> None:
    x, y = normalised(10).double(), normalised(14, shift=0.5, seed=2).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    own = [(kernel(z, z).sum() - kernel(z, z).diagonal().sum()) / (len(z) * (len(z) - 1)) for z in (x, y)]
    expected = own[0] + own[1] - 2 * kernel(x, y).sum() / (n * m)
    value, low, high = DISTANCES["kid-dinov2"].measure(x.float(), y.float())
    assert value == pytest.approx(1000 * float(expected), rel=1e-4)
    assert low is not None and high is not None and low < value < high


def write_pictures(folder: Path, count: int, *, bright: float = 0.0) -> list[Image.Image]:
    folder.mkdir()
    random = np.random.default_rng(int(10 * bright))
    images = []
    for number in range(count):
        values = (random.normal(100 + 60 * bright, 40, (20, 28, 3))).clip(0, 255).astype(np.uint8)
        images.append(Image.fromarray(values))
        images[-1].save(folder / f"{number}.png")
    return images


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("weights")
    network = random_network(64, 64, VIT_L14, seed=5)
    from_open_clip(network.state, Heads(64, 64, "quick_gelu")).save_pretrained(root / CLIP)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=2, image_size=32)
    Dinov2Model(config).save_pretrained(root / DINO)
    return Place(root)


def test_from_pictures_to_distances(place: Place, tmp_path: Path) -> None:
    ours, theirs = write_pictures(tmp_path / "a", 6), write_pictures(tmp_path / "b", 8, bright=1.0)
    done: list[tuple[str, int, int]] = []
    wanted = chosen(["cmmd", "kid-dinov2", "fd-dinov2", "cmmd"], DISTANCES)
    found = measure_distances(
        str(tmp_path / "a"), str(tmp_path / "b"), wanted, place, batch_size=4, progress=lambda *each: done.append(each)
    )
    assert list(found) == ["cmmd", "kid-dinov2", "fd-dinov2"]
    assert place.folder is not None
    clip = from_open_clip(random_network(64, 64, VIT_L14, seed=5).state, VIT_L14)
    sets = [embed_images(clip, torch.stack([squashed_pixels(i, 12) for i in images])) for images in (ours, theirs)]
    assert found["cmmd"].value == pytest.approx(cmmd(*sets), rel=1e-3, abs=1e-3)
    dino = Dinov2Model.from_pretrained(place.folder / DINO).eval()
    with torch.no_grad():
        sets = [
            dino(torch.stack([squashed_pixels(i, 32, statistics=IMAGENET) for i in images])).last_hidden_state[:, 0]
            for images in (ours, theirs)
        ]
    assert found["fd-dinov2"].value == pytest.approx(frechet_distance(*sets), rel=1e-3)
    assert found["kid-dinov2"].value == pytest.approx(kernel_distance(*sets).value, rel=1e-3)
    assert found["cmmd"].count == 6 and found["cmmd"].reference == 8 and found["cmmd"].low is None
    assert found["fd-dinov2"].preparation.networks[0].files.keys() == {"config.json", "model.safetensors"}
    titles = {title for title, _, _ in done}
    assert titles == {"CMMD", "KID of DINOv2, x1000"}  # the features of DINOv2 are computed once


def test_sets_that_are_too_small_and_unknown_names(place: Place, tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 2)
    write_pictures(tmp_path / "b", 3)
    with pytest.raises(RMDError, match=r"a has 2 pictures: a distance needs 3 to 100000$"):
        measure_distances(str(tmp_path / "a"), str(tmp_path / "b"), chosen(["cmmd"], DISTANCES), place)
    with pytest.raises(RMDError, match=r"^unknown metric 'cmd' \(did you mean 'cmmd'\?\)"):
        chosen(["cmd"], DISTANCES)
    with pytest.raises(RMDError, match=r"^no metric is named: use some of cmmd, kid-dinov2, fd-dinov2$"):
        chosen([], DISTANCES)
