"""Paired samples: bands, rings, power, coherence and distances in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.agreement import (
    coherence,
    low_band,
    paired_kernel_distance,
    picture_difference,
    power_ratio,
    ring_edges,
    rings,
)
from rmd.core.crossing import cosine_basis, upsample


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mode(row: int, column: int, *, side: int = 8, scale: float = 1.0) -> Tensor:
    """A field (1, 1, side, side) that is one mode of the cosine transform."""
    basis = cosine_basis(side)
    return (scale * basis[row][:, None] * basis[column][None, :])[None, None]


def test_low_band_undoes_upsampling_by_the_cosine_transform() -> None:
    low = noise(2, 3, 5, 6).double()
    torch.testing.assert_close(low_band(upsample(low, (10, 9), "dct"), (5, 6)), low)


def test_low_band_keeps_a_constant_and_drops_what_is_too_fine() -> None:
    torch.testing.assert_close(low_band(torch.full((1, 2, 8, 8), 3.0), (4, 4)), torch.full((1, 2, 4, 4), 3.0).double())
    assert float(low_band(mode(5, 1), (4, 4)).abs().max()) < 1e-12


def test_every_mode_has_a_ring_and_rings_grow_outwards() -> None:
    index = rings((16, 16))
    assert (int(index[0, 0]), int(index[15, 15]), int(index[0, 4])) == (0, 7, 2)
    assert sorted(set(index.flatten().tolist())) == list(range(8))
    assert set(rings((2, 6)).flatten().tolist()) == {0, 1}
    assert ring_edges((16, 16))[2] == (0.25, 0.375) and ring_edges((1, 4)) == [(0.0, 1.0)]


def test_power_of_a_known_field_is_in_its_ring_alone() -> None:
    flat = torch.cat([mode(0, 0) + mode(0, 3), mode(0, 0) - mode(0, 3), mode(0, 0) + mode(0, 3)]).expand(3, 2, 8, 8)
    louder = flat + torch.cat([mode(0, 3), -mode(0, 3), mode(0, 3)])  # mode (0, 3) has twice its amplitude
    ratios = power_ratio(louder, flat)
    assert ratios[0].value == pytest.approx(1.0) and ratios[3].value == pytest.approx(4.0)
    assert ratios[3].low == pytest.approx(4.0) and ratios[3].high == pytest.approx(4.0)


def test_intervals_cover_the_ratio_of_noise() -> None:
    x, y = 2.0 * noise(40, 4, 16, 16), noise(40, 4, 16, 16, seed=1)
    off = [abs(ratio.value - 4.0) / (ratio.high - ratio.value) for ratio in power_ratio(x, y)]
    assert max(off) < 2.0 and sum(each > 1.0 for each in off) <= 1


def test_coherence_of_equal_independent_and_mixed_samples() -> None:
    x, y = noise(32, 4, 16, 16), noise(32, 4, 16, 16, seed=1)
    assert all(each.value == pytest.approx(1.0) for each in coherence(x, 3.0 * x + 1.0))
    assert all(abs(each.value) < 0.1 for each in coherence(x, y))
    assert all(abs(each.value - math.sqrt(0.5)) < 0.1 for each in coherence(x, x + y))


def test_clips_count_frame_by_frame() -> None:
    x, y = noise(4, 2, 3, 8, 8), noise(4, 2, 3, 8, 8, seed=1)
    frames = [each.transpose(1, 2).flatten(0, 1) for each in (x, y)]
    assert power_ratio(x, y)[4].value == pytest.approx(power_ratio(*frames, per_prompt=3)[4].value)


def test_paired_kernel_distance_is_zero_for_equal_sets_and_grows_with_a_shift() -> None:
    x = noise(40, 6)
    assert paired_kernel_distance(x, x).value == pytest.approx(0.0, abs=1e-9)
    near, far = (paired_kernel_distance(x, x + shift, per_prompt=2) for shift in (0.5, 1.0))
    assert 0 < near.low < near.value < far.value


def test_paired_kernel_distance_is_unbiased_although_pairs_resemble_each_other() -> None:
    values = []
    for seed in range(60):
        shared = noise(10, 4, seed=seed)
        x, y = (shared + 0.1 * noise(10, 4, seed=offset + seed) for offset in (1000, 2000))
        values.append(paired_kernel_distance(x, y))
    mean = sum(each.value for each in values) / len(values)
    assert abs(mean) < 3 * torch.tensor([each.value for each in values]).std() / math.sqrt(len(values))


def test_picture_difference_is_zero_for_pairs_and_one_for_strangers() -> None:
    x = noise(60, 3, 4, 4)
    assert picture_difference(x, x).value == pytest.approx(0.0, abs=1e-9)
    assert picture_difference(x, noise(60, 3, 4, 4, seed=1), per_prompt=2).value == pytest.approx(1.0, abs=0.1)


def test_sets_that_are_not_pairs_are_refused() -> None:
    with pytest.raises(RMDError, match="have one shape"):
        power_ratio(noise(4, 1, 4, 4), noise(4, 1, 8, 8))
    with pytest.raises(RMDError, match="5 samples are not 3 or more prompts of 2"):
        coherence(noise(5, 1, 4, 4), noise(5, 1, 4, 4), per_prompt=2)
