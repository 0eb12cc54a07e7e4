"""The aesthetic score: layers without activations are one linear function, and other weights are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.scores.aesthetic import folded


def published(width: int = 12) -> nn.Sequential:
    """Return layers as the second version has them, which are dropout in between, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 10), nn.Dropout(0.2), nn.Linear(10, 8), nn.Dropout(0.2), nn.Linear(8, 6), nn.Dropout(0.1),
        nn.Linear(6, 4), nn.Linear(4, 1),
    ).eval()  # fmt: skip


def named(layers: nn.Sequential) -> dict[str, Tensor]:
    return {f"layers.{name}": value for name, value in layers.state_dict().items()}


def test_five_layers_are_one() -> None:
    layers = published()
    assert sorted({int(name.split(".")[1]) for name in named(layers)}) == [0, 2, 4, 6, 7]
    embeddings = nn.functional.normalize(torch.randn(50, 12), dim=-1)
    torch.testing.assert_close(folded(named(layers))(embeddings), layers(embeddings)[:, 0], atol=1e-6, rtol=0)


def test_the_first_version_has_one_layer() -> None:
    layer = nn.Linear(12, 1)
    embeddings = torch.randn(5, 12)
    torch.testing.assert_close(folded(layer.state_dict())(embeddings), layer(embeddings)[:, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"layers.7.bias": None}, {"more": torch.zeros(1)}, {"layers.2.weight": torch.zeros(8, 3)},
        {"layers.7.weight": torch.zeros(2, 4), "layers.7.bias": torch.zeros(2)},
    ],
)  # fmt: skip
def test_other_weights_are_refused(change: dict[str, Tensor | None]) -> None:
    state = {name: value for name, value in {**named(published()), **change}.items() if value is not None}
    with pytest.raises(RMDError, match=r"^these are no weights of an aesthetic score: "):
        folded(state)
    with pytest.raises(RMDError, match=r"they are called $"):
        folded({})
