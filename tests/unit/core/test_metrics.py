"""Metrics against closed forms, naive loops and distributions whose distance is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.metrics import (
    KERNEL_SCALE,
    Z95,
    Interval,
    diversity,
    frechet_distance,
    high_frequency,
    kernel_distance,
    kernel_distance_gap,
    standardise,
    wilson,
)
from rmd.worlds.judge import accuracy
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, NONE


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return features ~ N(0, I) in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


# --- standardise -----------------------------------------------------------------------------------------


def test_standardised_reference_has_zero_mean_and_unit_deviation() -> None:
    scale, shift = torch.tensor([1.0, 20.0, 0.5]).double(), torch.tensor([3.0, -1.0, 100.0]).double()
    x, reference = normal(7, 3), normal(50, 3, seed=1) * scale + shift
    z, z_reference = standardise(x * scale + shift, reference)
    torch.testing.assert_close(z_reference.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z_reference.std(0), torch.ones(3).double())
    torch.testing.assert_close(z, (x * scale + shift - reference.mean(0)) / reference.std(0))


def test_a_dimension_constant_in_the_reference_is_bounded() -> None:
    reference = torch.cat([normal(50, 1), torch.full((50, 1), 2.0).double()], 1)
    x = torch.tensor([[0.0, 2.0], [0.0, 2.5]])
    z, z_reference = standardise(x, reference)
    assert torch.equal(z_reference[:, 1], torch.zeros(50).double())
    floor = 0.01 * float(reference[:, 0].std()) / 2
    torch.testing.assert_close(z[:, 1], torch.tensor([0.0, 0.5 / floor]).double())


@pytest.mark.parametrize(
    ("x", "reference", "message"),
    [
        (normal(3, 2), torch.full((5, 2), 0.1), "all reference samples have the same features"),
        (normal(3, 2), torch.zeros(5, 2), "all reference samples have the same features"),
        (normal(3, 2), normal(5, 3), r"\(3, 2\) and \(5, 3\)"),
        (normal(3, 2), normal(1, 2), "2 samples or more"),
        (torch.full((3, 2), math.nan), normal(5, 2), "not finite"),
    ],
)
def test_standardise_refuses_invalid_values(x: Tensor, reference: Tensor, message: str) -> None:
    with pytest.raises(RMDError, match=message):
        standardise(x, reference)


# --- kernel distance -------------------------------------------------------------------------------------


def naive_mmd(x: Tensor, y: Tensor, a: int = 1, b: int = 1) -> float:
    """Return the squared MMD by its definition, one kernel value at a time, without pairs of one prompt."""

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = [k(x[i], x[j]) for i in range(n) for j in range(n) if i // a != j // a]
    within_y = [k(y[i], y[j]) for i in range(m) for j in range(m) if i // b != j // b]
    crossed = [k(x[i], y[j]) for i in range(n) for j in range(m)]
    return mean(within_x) + mean(within_y) - 2 * mean(crossed)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def leave_out(x: Tensor, index: int, run: int = 1) -> Tensor:
    """Remove the rows of one prompt."""
    return torch.cat([x[: index * run], x[(index + 1) * run :]])


def jackknife_variance(values: list[float]) -> float:
    """Return the jackknife variance of the leave-one-out values of one set."""
    return (len(values) - 1) * mean([(value - mean(values)) ** 2 for value in values])


def scaled(value: float, variance: float) -> list[float]:
    half = Z95 * math.sqrt(variance)
    return [KERNEL_SCALE * result for result in (value, value - half, value + half)]


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 1), (3, 2)])
def test_kernel_distance_is_the_naive_jackknife(a: int, b: int) -> None:
    x, y = normal(4 * a, 3), normal(5 * b, 3, seed=1) + 0.7
    result = kernel_distance(x, y, per_prompt=(a, b))
    variance = jackknife_variance([naive_mmd(leave_out(x, i, a), y, a, b) for i in range(4)])
    variance += jackknife_variance([naive_mmd(x, leave_out(y, i, b), a, b) for i in range(5)])
    expected = scaled(naive_mmd(x, y, a, b), variance)
    assert [result.value, result.low, result.high] == pytest.approx(expected, rel=1e-10)


def test_equal_distributions_are_at_zero_and_inside_the_interval() -> None:
    result = [kernel_distance(normal(60, 8, seed=2 * s), normal(50, 8, seed=2 * s + 1)) for s in range(300)]
    values = torch.tensor([interval.value for interval in result])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(300)
    assert (values < 0).any()
    assert sum(covers(interval, 0.0) for interval in result) / 300 >= 0.95


def test_a_known_distance_is_estimated_and_covered_by_the_interval() -> None:
    # With d = 1 the kernel compares the first three moments: MMD^2 = 3 dm1^2 + 3 dm2^2 + dm3^2.
    mu = 0.8
    truth = KERNEL_SCALE * (3 * mu**2 + 3 * mu**4 + (mu**3 + 3 * mu) ** 2)
    result = []
    for seed in range(300):
        x, other = normal(150, 1, seed=2 * seed), normal(150, 1, seed=2 * seed + 1)
        result.append(kernel_distance(x, mu + other))
    values = torch.tensor([interval.value for interval in result])
    assert abs(float(values.mean()) - truth) < 3 * float(values.std()) / math.sqrt(300)
    assert 0.90 <= sum(covers(interval, truth) for interval in result) / 300 <= 0.99


def test_samples_of_one_prompt_bias_the_estimate_unless_per_prompt_is_given() -> None:
    naive, told = [], []
    for seed in range(100):
        prompts = normal(20, 1, 6, seed=3 * seed)
        x = (0.8 * prompts + 0.6 * normal(20, 2, 6, seed=3 * seed + 1)).view(40, 6)
        y = normal(40, 6, seed=3 * seed + 2)  # the same distribution, each sample of a prompt of its own
        naive.append(kernel_distance(x, y).value)
        told.append(kernel_distance(x, y, per_prompt=(2, 1)).value)
    result = torch.tensor(told)
    assert abs(float(result.mean())) < 3 * float(result.std()) / 10
    assert float((torch.tensor(naive) - result).mean()) > 25


@given(seed=st.integers(0, 10_000), n=st.integers(3, 9), m=st.integers(3, 9), d=st.integers(1, 5))
@settings(max_examples=25)
def test_kernel_distance_is_symmetric_and_independent_of_order(seed: int, n: int, m: int, d: int) -> None:
    x, y = normal(n, d, seed=seed), normal(m, d, seed=seed + 1)
    forward, backward = kernel_distance(x, y), kernel_distance(y.flip(0), x)
    assert [forward.value, forward.low, forward.high] == pytest.approx(
        [backward.value, backward.low, backward.high], rel=1e-9, abs=1e-9
    )


def test_the_distance_grows_with_a_shift() -> None:
    x, y = normal(100, 8), normal(100, 8, seed=1)
    near, far = kernel_distance(x, y + 0.5), kernel_distance(x, y + 1.0)
    assert 0 < near.low < near.high < far.low


def test_the_gap_of_two_distances_is_the_naive_jackknife() -> None:
    z, y = normal(7, 4, seed=1), normal(9, 4, seed=2)
    x = z + 0.5 * normal(7, 4, seed=3)

    def gap(x: Tensor, z: Tensor, y: Tensor) -> float:
        return kernel_distance(x, y).value - kernel_distance(z, y).value

    variance = jackknife_variance([gap(leave_out(x, i), leave_out(z, i), y) for i in range(7)])
    variance += jackknife_variance([gap(x, z, leave_out(y, i)) for i in range(9)])
    result, half = kernel_distance_gap(x, z, y), Z95 * math.sqrt(variance)
    value = gap(x, z, y)
    assert [result.value, result.low, result.high] == pytest.approx([value, value - half, value + half])
    assert kernel_distance_gap(x, x, y) == Interval(0.0, 0.0, 0.0)
    reverse = kernel_distance_gap(z, x, y)
    assert (reverse.value, reverse.low) == pytest.approx((-result.value, -result.high))


def test_the_gap_is_surer_than_its_two_distances_and_covers_the_truth() -> None:
    """Two sets have the same noise, and one of them is moved, so the difference of their distances is nearly known."""
    hits, widths = 0, []
    moved = torch.full((6,), 0.4, dtype=torch.float64)
    truth = kernel_distance(normal(4000, 6, seed=1) + moved, normal(4000, 6, seed=2)).value
    for seed in range(200):
        z, y = normal(60, 6, seed=10 + 2 * seed), normal(60, 6, seed=11 + 2 * seed)
        gap, far, near = kernel_distance_gap(z + moved, z, y), kernel_distance(z + moved, y), kernel_distance(z, y)
        hits += covers(gap, truth)
        widths.append((gap.high - gap.low) / (far.high - far.low + near.high - near.low))
    assert 180 <= hits <= 200
    assert sum(widths) / len(widths) < 0.75 and max(widths) < 1.0


def test_the_gap_needs_samples_of_the_same_prompts() -> None:
    with pytest.raises(RMDError, match=r"^samples of the same prompts are compared, but there are 4 and 5$"):
        kernel_distance_gap(normal(4, 3), normal(5, 3), normal(6, 3))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (normal(2, 3), normal(9, 3), "3 samples or more"),
        (normal(5, 3), normal(5, 4), r"\(5, 3\) and \(5, 4\)"),
        (normal(5), normal(5, 4), "two feature sets"),
        (normal(5, 3), torch.full((5, 3), math.inf), "not finite"),
    ],
)
def test_kernel_distance_refuses_sets_of_other_shapes(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(RMDError, match=message):
        kernel_distance(x, y)


@pytest.mark.parametrize(
    ("per_prompt", "message"),
    [((2, 1), "7 samples are not three or more prompts of 2"), ((1, 4), "8 samples .* of 4"), ((0, 1), "of 0")],
)
def test_kernel_distance_refuses_incomplete_prompts(per_prompt: tuple[int, int], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        kernel_distance(normal(7, 3), normal(8, 3), per_prompt=per_prompt)


# --- Frechet distance ------------------------------------------------------------------------------------


def with_moments(mean: Tensor, covariance: Tensor, *, seed: int) -> Tensor:
    """Return samples with exactly the given mean and covariance."""
    raw = normal(40, len(mean), seed=seed)
    centred = raw - raw.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T.cov())).T
    samples: Tensor = white @ torch.linalg.cholesky(covariance).T + mean
    return samples


def test_frechet_distance_of_diagonal_gaussians() -> None:
    means = torch.tensor([[0.0, 1.0, -2.0], [1.0, 1.0, 0.5]]).double()
    stds = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.1, 0.5]]).double()
    x, y = (with_moments(means[i], stds[i].square().diag(), seed=i) for i in range(2))
    expected = float((means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    a = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double()
    b = torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    # For 2 x 2: (tr (AB)^(1/2))^2 = tr AB + 2 sqrt(det A det B).
    root = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(a.det() * b.det())))
    expected = float(a.trace() + b.trace()) - 2 * root
    x, y = with_moments(torch.zeros(2).double(), a, seed=0), with_moments(torch.zeros(2).double(), b, seed=1)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [4, 100])
def test_frechet_distance_is_zero_to_itself_and_a_squared_shift(count: int) -> None:
    x = normal(count, 8)  # four samples: a covariance of rank three
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-7)
    assert frechet_distance(x, x + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)


def test_frechet_distance_of_one_dimension_is_symmetric() -> None:
    x, y = normal(20, 1), 2 * normal(30, 1, seed=1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y) == pytest.approx(float(expected))
    assert frechet_distance(y, x) == pytest.approx(float(expected))


def test_frechet_distance_refuses_invalid_values() -> None:
    with pytest.raises(RMDError, match="2 samples or more"):
        frechet_distance(normal(1, 3), normal(5, 3))


# --- fine detail -----------------------------------------------------------------------------------------


def checkerboard(side: int, cell: int) -> Tensor:
    """Return a checkerboard (1, 3, side, side) of +1 and -1 squares of `cell` pixels."""
    index = torch.arange(side) // cell
    return (1.0 - 2.0 * ((index[:, None] + index) % 2)).expand(1, 3, side, side)


def test_high_frequency_of_a_constant_and_of_single_pixel_squares() -> None:
    assert high_frequency(torch.full((2, 3, 8, 8), 0.3)) == pytest.approx(0, abs=1e-14)
    assert high_frequency(checkerboard(16, 1)) == pytest.approx(1)
    assert high_frequency(0.5 * checkerboard(16, 1)) == pytest.approx(0.25)


def test_high_frequency_of_an_enlarged_picture_is_nearly_nothing() -> None:
    small = normal(4, 3, 8, 8).clamp(-1, 1)
    smooth = torch.nn.functional.interpolate(small, size=(64, 64), mode="bicubic")
    assert high_frequency(smooth) < 0.01 * high_frequency(normal(4, 3, 64, 64).clamp(-1, 1))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: high_frequency(torch.zeros(1, 3, 7, 8)), "even sides"),
        (lambda: high_frequency(torch.zeros(3, 8, 8)), r"\(3, 8, 8\)"),
        (lambda: high_frequency(torch.zeros(0, 3, 8, 8)), r"\(0, 3, 8, 8\)"),
        (lambda: high_frequency(torch.full((1, 3, 8, 8), math.nan)), "not finite"),
    ],
)
def test_high_frequency_refuses_invalid_values(measure: Callable[[], float], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        measure()


# --- diversity -------------------------------------------------------------------------------------------


def test_diversity_is_the_mean_over_prompts_of_the_mean_distance() -> None:
    features = torch.tensor([[0.0, 0.0], [10.0, 10.0], [3.0, 4.0], [0.0, 0.0], [10.0, 11.0]])
    prompts = torch.tensor([7, 2, 7, 7, 2])
    # Prompt 7: distances 5, 0, 5; prompt 2: 1. Prompts have equal weight, however many samples they have.
    assert diversity(features, prompts) == pytest.approx((10 / 3 + 1) / 2)


def test_diversity_of_copies_is_zero() -> None:
    assert diversity(normal(1, 5).expand(4, 5), torch.tensor([0, 0, 1, 1])) == 0


@pytest.mark.parametrize(
    ("features", "prompts", "message"),
    [
        (normal(3, 2), torch.tensor([0, 0, 4]), "prompt 4 has one"),
        (normal(3, 2), torch.tensor([0, 0]), r"\(3, 2\) and \(2,\)"),
        (normal(0, 2), torch.zeros(0), r"\(0, 2\)"),
        (torch.full((2, 2), math.nan), torch.tensor([0, 0]), "not finite"),
    ],
)
def test_diversity_refuses_invalid_values(features: Tensor, prompts: Tensor, message: str) -> None:
    with pytest.raises(RMDError, match=message):
        diversity(features, prompts)


# --- accuracy --------------------------------------------------------------------------------------------


def test_accuracy_counts_only_requested_attributes() -> None:
    attributes = torch.zeros(4, 9, dtype=torch.long)
    attributes[:, 6:] = NONE
    attributes[3, 5] = NONE
    right = torch.ones(4, 9, dtype=torch.bool)
    right[0, 0] = False  # layout
    right[1, 8] = False  # not requested, so not wrong
    right[3, 5] = True  # not requested, so not right either
    right[2, 5] = False  # size_a, requested in three scenes
    result = accuracy(right, attributes, ATTRIBUTE_NAMES)
    whole = wilson(2, 4)
    assert (result.value, result.low, result.high) == (whole.value, whole.low, whole.high)
    assert result.parts == pytest.approx(
        {"layout": 0.75, "background": 1, "shape_a": 1, "colour_a": 1, "texture_a": 1, "size_a": 2 / 3}
    )
    assert list(result.parts) == list(ATTRIBUTE_NAMES[:6])


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(hits: int, total: int, low: float, high: float) -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion (1998), Table I.
    result = wilson(hits, total)
    assert (round(result.low, 4), round(result.high, 4)) == (low, high)


@given(total=st.integers(1, 3000), data=st.data())
def test_wilson_stays_within_0_and_1_and_covers_the_proportion(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    result, mirrored = wilson(hits, total), wilson(total - hits, total)
    assert 0 <= result.low <= result.value == hits / total <= result.high <= 1
    assert result.high - result.low > 0
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((result.low, result.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_invalid_values(hits: int, total: int) -> None:
    with pytest.raises(RMDError, match=f"got {hits} of {total}"):
        wilson(hits, total)


@pytest.mark.parametrize("shape", [(0, 9), (4, 8), (9,)])
def test_accuracy_refuses_invalid_values(shape: tuple[int, ...]) -> None:
    with pytest.raises(RMDError, match="9 attributes per sample"):
        accuracy(torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long), ATTRIBUTE_NAMES)
