"""The fitted upsampler recovers the filter that made the data."""

from __future__ import annotations

import pytest
import torch

from rmd.common.errors import RMDError
from rmd.core.crossing import upsample
from rmd.core.taps import fit_taps, tap_count, upsampling_error


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("low", "ratio"), [((8, 6), 2), ((5, 5), 3)])
def test_bilinear_data_give_bilinear_taps(low: tuple[int, int], ratio: int) -> None:
    x = latents(3, 2, *low)
    y = upsample(x, (ratio * low[0], ratio * low[1]), "bilinear")
    taps = fit_taps(x, y)
    assert len(taps) == tap_count(low, (ratio * low[0], ratio * low[1]))
    if ratio == 2:
        assert taps == pytest.approx((0.0, 0.0, 0.25, 0.75, 0.75, 0.25, 0.0, 0.0), abs=1e-6)
    assert upsampling_error(x, y, "taps", taps) < 1e-10


def test_another_filter_is_found_from_bilinear_interpolation() -> None:
    wanted = (0.02, -0.1, 0.2, 0.9, 0.9, 0.2, -0.1, 0.02)
    x = latents(4, 2, 8, 8)
    assert fit_taps(x, upsample(x, (16, 16), "taps", wanted)) == pytest.approx(wanted, abs=1e-6)


def test_no_other_kind_has_a_smaller_error_than_the_fitted_filter() -> None:
    y = upsample(latents(6, 2, 6, 6), (16, 16), "dct")
    x = torch.nn.functional.avg_pool2d(y, 2)
    errors = {mode: upsampling_error(x, y, mode) for mode in ("nearest", "bilinear", "bicubic", "dct")}
    assert upsampling_error(x, y, "taps", fit_taps(x, y)) <= min(errors["nearest"], errors["bilinear"])


def test_there_are_no_taps_for_other_ratios() -> None:
    assert tap_count((4, 4), (8, 8)) == 8 and tap_count((4, 4), (12, 12)) == 11
    assert [tap_count((4, 4), size) for size in ((6, 6), (8, 12), (4, 4))] == [None] * 3
    with pytest.raises(RMDError, match="no filter enlarges latents of 4x4 to 6x6"):
        fit_taps(latents(1, 1, 4, 4), latents(1, 1, 6, 6))
