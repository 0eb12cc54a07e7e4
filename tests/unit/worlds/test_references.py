"""The reference statistics on disk: one byte per number, with a known error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from research.scenes.references import save_references
from rmd.common.errors import RMDError
from rmd.worlds.references import FILE_NAME, References, load_references


def some(seed: int = 0, count: int = 50, size: int = 7) -> References:
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, size)
    renders, teacher = (torch.randn(count, size, generator=g) * scale + scale for _ in range(2))
    return References({"renders": renders, "teacher": teacher}, 0.0123)


def test_the_error_is_half_a_level(tmp_path: Path) -> None:
    ours = some()
    save_references(ours, tmp_path)
    read = load_references(tmp_path)
    assert read.high_frequency == pytest.approx(ours.high_frequency, rel=1e-6)
    for restored, features in ((read["renders"], ours["renders"]), (read["teacher"], ours["teacher"])):
        level = (features.amax(0) - features.amin(0)) / 255
        error = (restored - features).abs()
        assert bool((error <= 0.501 * level).all())
        assert bool((error.amax(0) > 0.3 * level).all())  # levels are relative to the range of each dimension
        # The error is uniform within a level, which adds this variance to a dimension.
        assert torch.allclose(error.square().mean(0), level**2 / 12, rtol=0.5)


def test_extremes_and_constant_dimensions_survive(tmp_path: Path) -> None:
    features = torch.stack([torch.full((5,), 3.25), torch.tensor([-1.0, 0, 1, 2, 4])], 1)
    save_references(References({"renders": features, "teacher": features}, 1.0), tmp_path)
    read = load_references(tmp_path)["renders"]
    assert torch.equal(read[:, 0], features[:, 0])
    assert torch.allclose(read[[0, -1], 1], features[[0, -1], 1], atol=1e-6)


def test_a_byte_a_number(tmp_path: Path) -> None:
    save_references(some(count=1000, size=40), tmp_path)
    assert (tmp_path / FILE_NAME).stat().st_size < 1.05 * 2 * 1000 * 40


def test_no_references(tmp_path: Path) -> None:
    with pytest.raises(
        RMDError, match=r"no reference statistics in .*: make them with `python -m research.scenes references"
    ):
        load_references(tmp_path)
