"""Training of the judges: some pictures are shown as samples of half the size are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from research.scenes import judge as trained
from rmd.worlds.vistas.dataset import make_vistas
from rmd.worlds.vistas.world import WORLD


def test_an_enlarged_picture_has_no_more_than_half_the_size_holds() -> None:
    images = torch.rand(2, 3, 16, 16)
    soft = trained.enlarged(images)
    assert soft.shape == images.shape
    torch.testing.assert_close(soft.mean((2, 3)), images.mean((2, 3)), atol=0.02, rtol=0)
    checks = torch.ones(1, 1, 8, 8)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1
    torch.testing.assert_close(trained.enlarged(checks), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_pictures_is_blurred(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(images: Tensor) -> Tensor:
        counts.append(len(images))
        return images

    monkeypatch.setattr(trained, "enlarged", counted)
    vistas = make_vistas(64, seed=1, training=True)
    trained.train_judge(WORLD.untrained_judge(), vistas, iterations=3, blurred=share, log=lambda _: None)
    assert sum(counts) == 192 * share if share in (0.0, 1.0) else 28 < sum(counts) < 68
