"""Crossings by exact linear algebra: renoise is linear, so its matrices give the exact covariance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.crossing import cosine_basis, cross, low_part, renoise, upsample
from rmd.core.plan import Crossing, NoiseRule, Upsample

MODES: list[Upsample] = ["bilinear", "nearest", "bicubic", "dct"]
RULES: list[NoiseRule] = ["plain", "corrected", "block"]
BETAS = [0.0, 0.2, 0.5, 1.0]
RATIOS = [((6, 6), (12, 12)), ((4, 6), (6, 9)), ((4, 4), (12, 8)), ((5, 3), (7, 9))]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return noise ~ N(0, I) in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices(low: tuple[int, int], high: tuple[int, int], crossing: Crossing) -> tuple[Tensor, Tensor]:
    """Return the two linear maps of renoise: (high pixels, low pixels) and (high pixels, high pixels)."""
    n, m = math.prod(low), math.prod(high)
    basis_low = torch.eye(n, dtype=torch.float64).reshape(n, 1, *low)
    basis_high = torch.eye(m, dtype=torch.float64).reshape(m, 1, *high)
    zero_low = torch.zeros(m, 1, *low, dtype=torch.float64)
    zero_high = torch.zeros(n, 1, *high, dtype=torch.float64)
    of_eps = renoise(basis_low, zero_high, crossing).reshape(n, m).T
    of_noise = renoise(zero_low, basis_high, crossing).reshape(m, m).T
    return of_eps, of_noise


def covariance(low: tuple[int, int], high: tuple[int, int], crossing: Crossing) -> Tensor:
    """Return the exact covariance of renoise for white eps_hat and white noise."""
    of_eps, of_noise = matrices(low, high, crossing)
    return of_eps @ of_eps.T + of_noise @ of_noise.T


@pytest.mark.parametrize(("low", "high"), RATIOS)
@pytest.mark.parametrize("beta", BETAS)
def test_block_noise_is_exactly_white_at_every_beta(low: tuple[int, int], high: tuple[int, int], beta: float) -> None:
    result = covariance(low, high, Crossing(rule="block", beta=beta))
    torch.testing.assert_close(result, torch.eye(math.prod(high), dtype=torch.float64), rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    low=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    beta=st.floats(0.0, 1.0),
)
def test_block_noise_is_white_for_any_sizes(low: tuple[int, int], extra: tuple[int, int], beta: float) -> None:
    high = (low[0] + extra[0], low[1] + extra[1])
    result = covariance(low, high, Crossing(rule="block", beta=beta))
    torch.testing.assert_close(result, torch.eye(math.prod(high), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), RATIOS)
def test_block_embedding_is_orthonormal_and_leaves_the_rest_of_the_noise_alone(
    low: tuple[int, int], high: tuple[int, int]
) -> None:
    embedding, rest = matrices(low, high, Crossing(rule="block", beta=1.0))
    identity = torch.eye(math.prod(low), dtype=torch.float64)
    torch.testing.assert_close(embedding.T @ embedding, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        rest, torch.eye(math.prod(high), dtype=torch.float64) - embedding @ embedding.T, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("ratio", [2, 3])
@pytest.mark.parametrize("beta", BETAS)
def test_block_means_are_the_predicted_noise_mixed_with_fresh_means(ratio: int, beta: float) -> None:
    eps, fresh = noise(2, 3, 4, 5), noise(2, 3, 4 * ratio, 5 * ratio, seed=1)
    means = torch.nn.functional.avg_pool2d(renoise(eps, fresh, Crossing(rule="block", beta=beta)), ratio)
    expected = beta * eps / ratio + math.sqrt(1 - beta**2) * torch.nn.functional.avg_pool2d(fresh, ratio)
    torch.testing.assert_close(means, expected)


def test_block_embedding_of_a_constant_is_a_constant_at_every_ratio() -> None:
    # A known mean of the low-resolution values must become the mean of the high-resolution values.
    for low, high in RATIOS:
        embedded = renoise(torch.ones(1, 1, *low), torch.zeros(1, 1, *high), Crossing(rule="block"))
        value = math.sqrt(math.prod(low) / math.prod(high))
        torch.testing.assert_close(embedded, torch.full((1, 1, *high), value))


def test_block_embedding_keeps_low_frequencies_in_place_at_a_ratio_of_one_and_a_half() -> None:
    def wave(n: int) -> Tensor:
        return torch.cos(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)

    low, high = wave(8).reshape(1, 1, 1, 8), wave(12).reshape(1, 1, 1, 12)
    embedded = renoise(low, torch.zeros(1, 1, 1, 12, dtype=torch.float64), Crossing(rule="block"))
    torch.testing.assert_close(embedded, high * math.sqrt(8 / 12))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), RATIOS)
@pytest.mark.parametrize("beta", BETAS)
def test_corrected_noise_has_exactly_unit_variance(
    mode: Upsample, low: tuple[int, int], high: tuple[int, int], beta: float
) -> None:
    result = covariance(low, high, Crossing(mode, "corrected", beta)).diagonal()
    torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_plain_noise_has_the_covariance_of_its_two_parts(mode: Upsample) -> None:
    low, high = (4, 6), (6, 9)
    up = upsample(torch.eye(24, dtype=torch.float64).reshape(24, 1, *low), high, mode).reshape(24, 54).T
    for beta in BETAS:
        expected = beta**2 * up @ up.T + (1 - beta**2) * torch.eye(54, dtype=torch.float64)
        torch.testing.assert_close(covariance(low, high, Crossing(mode, "plain", beta)), expected)


def neighbour(result: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """Return the variance and the correlation with the right neighbour, averaged over the interior."""
    grid = result.reshape(*size, *size)
    rows, columns = range(2, size[0] - 2), range(2, size[1] - 3)
    variances, correlations = [], []
    for i in rows:
        for j in columns:
            variances.append(float(grid[i, j, i, j]))
            scale = math.sqrt(float(grid[i, j, i, j] * grid[i, j + 1, i, j + 1]))
            correlations.append(float(grid[i, j, i, j + 1]) / scale)
    return sum(variances) / len(variances), sum(correlations) / len(correlations)


@pytest.mark.parametrize("beta", BETAS)
def test_bilinear_noise_at_twice_the_size_has_the_known_variance_and_correlation(beta: float) -> None:
    # In one dimension each value weighs its two nearest 3/4 and 1/4: variance 10/16; two values on the same
    # source pixel share 9/16, two on neighbouring ones 6/16. Two dimensions multiply.
    plain = covariance((6, 6), (12, 12), Crossing("bilinear", "plain", beta)).reshape(12, 12, 12, 12)
    assert float(plain[4, 4, 4, 4]) == pytest.approx(beta**2 * (10 / 16) ** 2 + 1 - beta**2)
    assert float(plain[4, 4, 4, 5]) == pytest.approx(beta**2 * (10 / 16) * (9 / 16))
    assert float(plain[4, 5, 4, 6]) == pytest.approx(beta**2 * (10 / 16) * (6 / 16))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
def test_no_predicted_noise_means_the_fresh_noise_itself(rule: NoiseRule, mode: Upsample) -> None:
    fresh = noise(1, 2, 12, 12)
    torch.testing.assert_close(renoise(noise(1, 2, 6, 6, seed=1), fresh, Crossing(mode, rule, 0.0)), fresh)


def test_only_block_noise_removes_the_correlation() -> None:
    size = (12, 12)
    variance, correlation = neighbour(covariance((6, 6), size, Crossing(rule="plain")), size)
    assert variance == pytest.approx(0.39, abs=0.001)
    assert correlation > 0.7
    corrected = neighbour(covariance((6, 6), size, Crossing(rule="corrected")), size)
    assert corrected == pytest.approx((1.0, correlation), abs=1e-9)
    block = neighbour(covariance((6, 6), size, Crossing(rule="block")), size)
    assert block == pytest.approx((1.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("beta", BETAS)
def test_samples_of_the_renoised_state_have_the_exact_statistics(rule: NoiseRule, beta: float) -> None:
    crossing = Crossing(rule=rule, beta=beta)
    state = cross(
        torch.full((256, 4, 6, 6), 3.0, dtype=torch.float64),
        noise(256, 4, 6, 6),
        noise(256, 4, 12, 12, seed=1),
        alpha=0.6,
        sigma=0.8,
        crossing=crossing,
    )
    inner = state[..., 2:-2, 2:-2] - 0.6 * 3.0
    variance, correlation = neighbour(covariance((6, 6), (12, 12), crossing), (12, 12))
    assert float(inner.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(inner.var()) == pytest.approx(0.64 * variance, rel=0.04)
    measured = torch.corrcoef(torch.stack([inner[..., :-1].flatten(), inner[..., 1:].flatten()]))[0, 1]
    assert float(measured) == pytest.approx(correlation, abs=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_upsampling_keeps_constants_and_does_nothing_at_the_same_size(mode: Upsample) -> None:
    x = noise(2, 3, 4, 6)
    assert upsample(x, (4, 6), mode) is x
    up = upsample(torch.full((1, 1, 4, 6), 2.5), (6, 15), mode)
    torch.testing.assert_close(up, torch.full((1, 1, 6, 15), 2.5))


def test_upsampling_in_closed_form() -> None:
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4)
    inner = upsample(ramp, (1, 8), "bilinear")[0, 0, 0, 1:-1]
    torch.testing.assert_close(inner, torch.arange(0.25, 3.0, 0.5))
    assert upsample(ramp, (1, 8), "nearest").flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Centred at non-integer ratios too: symmetric input gives symmetric output.
    for mode in MODES:
        up = upsample(torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 1, 3), (1, 5), mode)
        torch.testing.assert_close(up, up.flip(-1))


@pytest.mark.parametrize("size", [(8, 12), (4, 12), (8, 6)])
def test_four_taps_are_bilinear_interpolation_and_two_are_nearest(size: tuple[int, int]) -> None:
    x = noise(2, 3, 4, 6)
    for taps, mode in (((0.25, 0.75, 0.75, 0.25), "bilinear"), ((1.0, 1.0), "nearest")):
        torch.testing.assert_close(upsample(x, size, "taps", taps), upsample(x, size, mode))
    assert upsample(x, (4, 6), "taps", (0.25, 0.75, 0.75, 0.25)) is x


def test_taps_of_odd_length_enlarge_by_odd_ratios() -> None:
    x = noise(1, 2, 3, 4)
    third = (1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3)
    torch.testing.assert_close(upsample(x, (9, 12), "taps", third), upsample(x, (9, 12), "bilinear"))


@pytest.mark.parametrize("size", [(8, 12), (6, 9), (5, 7)])
def test_dct_keeps_the_amplitude_of_every_cosine_and_adds_none(size: tuple[int, int]) -> None:
    rows, columns = cosine_basis(4), cosine_basis(6)
    scale = math.sqrt(size[0] * size[1] / 24)  # of the orthonormal cosines, at equal amplitudes in the picture
    for row in range(4):
        for column in range(6):
            wave = rows[row][:, None] * columns[column][None, :]
            up = upsample(wave[None, None], size, "dct")[0, 0]
            expected = scale * cosine_basis(size[0])[row][:, None] * cosine_basis(size[1])[column][None, :]
            torch.testing.assert_close(up, expected)


def test_taps_that_do_not_go_with_the_ratio_are_refused() -> None:
    x = noise(1, 1, 4, 4)
    for taps, size in (
        ((0.25, 0.75, 0.75, 0.25), (6, 6)),  # not a whole ratio
        ((0.5, 1.0, 0.5), (8, 8)),  # odd at an even one
        ((1.0,), (12, 12)),  # fewer than the ratio
    ):
        with pytest.raises(RMDError, match=f"^{len(taps)} taps cannot enlarge a latent side of 4 to {size[0]}: "):
            upsample(x, size, "taps", taps)


def test_a_video_is_upsampled_by_taps_and_dct_frame_by_frame() -> None:
    video = noise(2, 3, 5, 4, 6)
    for mode in ("dct", "taps"):
        taps = (0.25, 0.75, 0.75, 0.25) if mode == "taps" else ()
        up = upsample(video, (8, 12), mode, taps)
        frames = [upsample(video[:, :, i], (8, 12), mode, taps) for i in range(5)]
        torch.testing.assert_close(up, torch.stack(frames, dim=2))


@pytest.mark.parametrize("mode", MODES)
def test_a_video_is_upsampled_frame_by_frame(mode: Upsample) -> None:
    video = noise(2, 3, 5, 4, 6)
    up = upsample(video, (6, 9), mode)
    assert up.shape == (2, 3, 5, 6, 9)
    for frame in range(5):
        torch.testing.assert_close(up[:, :, frame], upsample(video[:, :, frame], (6, 9), mode))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("low", "high"), RATIOS)
def test_a_video_crosses_frame_by_frame(rule: NoiseRule, low: tuple[int, int], high: tuple[int, int]) -> None:
    x0, eps, fresh = noise(2, 3, 4, *low), noise(2, 3, 4, *low, seed=1), noise(2, 3, 4, *high, seed=2)
    crossing = Crossing(rule=rule, beta=0.5)
    whole = cross(x0, eps, fresh, alpha=0.3, sigma=0.7, crossing=crossing)
    assert whole.shape == fresh.shape
    for f in range(4):
        frame = cross(x0[:, :, f], eps[:, :, f], fresh[:, :, f], alpha=0.3, sigma=0.7, crossing=crossing)
        torch.testing.assert_close(whole[:, :, f], frame)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_change_of_size_every_rule_is_the_mixture(rule: NoiseRule) -> None:
    eps, fresh = noise(1, 2, 4, 6), noise(1, 2, 4, 6, seed=1)
    mixed = renoise(eps, fresh, Crossing(rule=rule, beta=0.6))
    torch.testing.assert_close(mixed, 0.6 * eps + 0.8 * fresh)


def test_cross_is_eq_10_in_the_plain_form() -> None:
    x0, eps, fresh = noise(2, 3, 4, 6), noise(2, 3, 4, 6, seed=1), noise(2, 3, 6, 9, seed=2)
    alpha, sigma = torch.tensor([0.3, 0.9]), torch.tensor([0.7, 0.1])
    state = cross(x0, eps, fresh, alpha=alpha, sigma=sigma, crossing=Crossing(beta=0.6))
    for i in range(2):
        up_x0, up_eps = (
            upsample(x0[i : i + 1], (6, 9), "bilinear"),
            upsample(eps[i : i + 1], (6, 9), "bilinear"),
        )
        expected = alpha[i].double() * up_x0 + sigma[i].double() * (0.6 * up_eps + 0.8 * fresh[i : i + 1])
        torch.testing.assert_close(state[i : i + 1], expected)


@pytest.mark.parametrize("rule", RULES)
def test_cross_is_differentiable_in_both_predictions(rule: NoiseRule) -> None:
    x0, eps = noise(1, 1, 4, 4).requires_grad_(), noise(1, 1, 4, 4, seed=1).requires_grad_()
    state = cross(x0, eps, noise(1, 1, 6, 6, seed=2), alpha=0.5, sigma=0.5, crossing=Crossing(rule=rule, beta=0.5))
    state.sum().backward()
    assert x0.grad is not None
    assert eps.grad is not None
    assert float(x0.grad.sum()) == pytest.approx(0.5 * 36)
    assert float(eps.grad.abs().min()) > 0.0


def test_the_state_has_the_dtype_of_x0_and_half_precision_is_mixed_in_float32() -> None:
    x0, eps, fresh = (
        noise(1, 2, 4, 4).half(),
        noise(1, 2, 4, 4, seed=1).half(),
        noise(1, 2, 8, 8, seed=2).half(),
    )
    for rule in RULES:
        crossing = Crossing(rule=rule, beta=0.5)
        half = cross(x0, eps, fresh, alpha=0.3, sigma=0.7, crossing=crossing)
        full = cross(x0.float(), eps.float(), fresh.float(), alpha=0.3, sigma=0.7, crossing=crossing)
        assert half.dtype == torch.float16
        assert torch.equal(half, full.half())


def test_a_smaller_size_is_refused() -> None:
    with pytest.raises(RMDError, match="cannot upsample a latent of 8x8 to 4x8, which is smaller"):
        upsample(torch.zeros(1, 1, 8, 8), (4, 8), "bilinear")
    with pytest.raises(RMDError, match="cannot embed a latent side of 8 in one of 4"):
        renoise(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 8), Crossing(rule="block"))
    with pytest.raises(ValueError, match="4 or 5 dimensions"):
        upsample(torch.zeros(1, 8, 8), (16, 16), "bilinear")


@pytest.mark.parametrize("ratio", [2, 3])
def test_low_part_of_noise_is_its_block_means_times_the_ratio(ratio: int) -> None:
    noise = torch.randn(2, 3, 4 * ratio, 6 * ratio, dtype=torch.float64)
    torch.testing.assert_close(low_part(noise, (4, 6)), ratio * torch.nn.functional.avg_pool2d(noise, ratio))


def test_low_part_of_white_noise_is_white_at_other_ratios() -> None:
    identity = torch.eye(60, dtype=torch.float64).reshape(60, 6, 10)
    map_ = low_part(identity, (4, 7)).flatten(1)
    torch.testing.assert_close(map_.T @ map_, torch.eye(28, dtype=torch.float64))
