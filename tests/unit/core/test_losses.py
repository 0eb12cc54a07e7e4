"""Losses in closed form, with a Gaussian teacher and a Gaussian fake score whose predictions are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.losses import (
    Metric,
    adversarial_fake_loss,
    adversarial_student_loss,
    fake_score_loss,
    generator_loss,
    pseudo_huber,
    pseudo_huber_elements,
    sample_weight,
    snr_weight,
)

METRICS: list[Metric] = ["pseudo_huber", "l2"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior_mean(x_t: Tensor, mean: Tensor, std: float, alpha: float, sigma: float) -> Tensor:
    """Return E[x0 | x_t] for x0 ~ N(mean, std^2 I), the prediction of a perfect score network."""
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return mean + gain * (x_t - alpha * mean)


def gradient(y: Tensor, f_real: Tensor, f_fake: Tensor, metric: Metric) -> Tensor:
    """Return the gradient of the generator loss with respect to y."""
    leaf = y.clone().requires_grad_()
    generator_loss(leaf, f_real, f_fake, metric=metric).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_the_gradient_points_from_the_students_mean_to_the_teachers(metric: Metric, t: float) -> None:
    alpha, sigma, std = 1 - t, t, 0.7
    teacher, student = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1)
    y = student + std * noise(8, 3, 4, 4, seed=2)
    x_t = alpha * y + sigma * noise(8, 3, 4, 4, seed=3)
    f_real = posterior_mean(x_t, teacher, std, alpha, sigma)
    f_fake = posterior_mean(x_t, student, std, alpha, sigma)
    descent = -gradient(y, f_real, f_fake, metric)
    # With equal variances the predictions differ by a multiple of the difference of the means, whatever x_t is.
    factor = sigma**2 / (alpha**2 * std**2 + sigma**2)
    torch.testing.assert_close(f_real - f_fake, (factor * (teacher - student)).expand_as(y))
    cosine = torch.cosine_similarity(descent.flatten(1), (teacher - student).flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize("metric", METRICS)
def test_the_gradient_vanishes_when_student_and_teacher_agree(metric: Metric) -> None:
    y, reading = noise(4, 3, 8, 8), noise(4, 3, 8, 8, seed=1)
    assert torch.equal(gradient(y, reading, reading, metric), torch.zeros_like(y))
    assert float(generator_loss(y, reading, reading, metric=metric)) == 0.0


@pytest.mark.heavy
@pytest.mark.parametrize("metric", METRICS)
def test_descending_the_loss_carries_a_gaussian_student_to_its_teacher(metric: Metric) -> None:
    teacher, std = noise(1, 6, seed=5), 0.5
    mean = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([mean], lr=0.02 if metric == "pseudo_huber" else 3.0)
    start = float((mean - teacher).detach().norm())
    for step in range(200):
        y = mean + std * noise(16, 6, seed=10 + step)
        x_t = 0.5 * y.detach() + 0.5 * noise(16, 6, seed=1000 + step)
        f_real = posterior_mean(x_t, teacher, std, 0.5, 0.5)
        f_fake = posterior_mean(x_t, mean.detach(), std, 0.5, 0.5)
        optimizer.zero_grad()
        generator_loss(y, f_real, f_fake, metric=metric).backward()
        optimizer.step()
    assert float((mean - teacher).detach().norm()) < 0.05 * start


@pytest.mark.parametrize("metric", METRICS)
def test_the_gradient_reaches_y_alone(metric: Metric) -> None:
    y, f_real, f_fake = (noise(2, 3, 4, 4, seed=i).requires_grad_() for i in range(3))
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    generator_loss(y, f_real, f_fake, weight=weight, metric=metric).backward()
    assert y.grad is not None
    assert float(y.grad.abs().sum()) > 0.0
    assert f_real.grad is None
    assert f_fake.grad is None
    assert weight.grad is None


def test_the_generator_loss_is_eq_8_as_written() -> None:
    y, f_real, f_fake = (noise(3, 2, 4, 4, seed=i) for i in range(3))
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    target = y + f_real - f_fake
    huber = (weight * pseudo_huber(y - target)).mean()
    torch.testing.assert_close(generator_loss(y, f_real, f_fake, weight=weight), huber)
    square = (weight * 0.5 * (y - target).square().mean(dim=(1, 2, 3))).mean()
    torch.testing.assert_close(generator_loss(y, f_real, f_fake, weight=weight, metric="l2"), square)


def test_gradients_in_closed_form() -> None:
    y, f_real, f_fake = (noise(3, 2, 4, 4, seed=i) for i in range(3))
    d = f_real - f_fake
    dim, batch = 32, 3
    torch.testing.assert_close(gradient(y, f_real, f_fake, "l2"), -d / dim / batch)
    c = 0.00054 * math.sqrt(dim)
    norm = (d.square().sum(dim=(1, 2, 3), keepdim=True) + c**2).sqrt()
    torch.testing.assert_close(gradient(y, f_real, f_fake, "pseudo_huber"), -d / norm / batch)


def test_a_small_difference_survives_a_large_sample_in_float32_and_bfloat16() -> None:
    d = 1e-4 * noise(1, 64).float()
    y, f_fake = torch.full((1, 64), 1000.0), torch.zeros(1, 64)
    result = gradient(y, d, f_fake, "l2")
    torch.testing.assert_close(result, -d / 64)
    half = gradient(y.bfloat16(), d, f_fake, "l2")
    torch.testing.assert_close(half, (-d / 64).bfloat16())


def test_an_unknown_metric_is_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(RMDError, match="unknown metric 'l1': use pseudo_huber, pseudo_huber_elements or l2"):
        generator_loss(x, x, x, metric="l1")  # type: ignore[arg-type]


def test_pseudo_huber_is_its_formula_with_the_papers_constant() -> None:
    u = noise(4, 3, 8, 8)
    square, c = u.square().sum(dim=(1, 2, 3)), 0.00054 * math.sqrt(3 * 8 * 8)
    torch.testing.assert_close(pseudo_huber(u), (square + c**2).sqrt() - c)
    torch.testing.assert_close(pseudo_huber(u, c=2.0), (square + 4.0).sqrt() - 2.0)


def test_pseudo_huber_is_quadratic_when_small_and_linear_when_large() -> None:
    direction = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(pseudo_huber(1e-5 * direction, c=1.0), torch.tensor([0.5e-10]), rtol=1e-4, atol=0)
    torch.testing.assert_close(pseudo_huber(1e5 * direction, c=1.0), torch.tensor([1e5 - 1]), rtol=1e-5, atol=0)
    assert pseudo_huber(torch.zeros(2, 3)).tolist() == [0.0, 0.0]


@given(scale=st.floats(1e-3, 1e3), c=st.floats(1e-3, 10.0))
def test_pseudo_huber_lies_between_its_limits(scale: float, c: float) -> None:
    u = scale * noise(1, 7)
    norm, value = float(u.norm()), float(pseudo_huber(u, c))
    assert 0.0 <= value <= min(norm, norm**2 / (2 * c)) * (1 + 1e-9)
    assert value >= norm - c - 1e-9 * norm


def test_pseudo_huber_has_a_finite_gradient_at_zero_and_bounded_elsewhere() -> None:
    u = torch.zeros(1, 5, requires_grad=True)
    pseudo_huber(u).sum().backward()
    assert u.grad is not None
    assert torch.equal(u.grad, torch.zeros(1, 5))
    far = (1e6 * noise(1, 5)).requires_grad_()
    pseudo_huber(far).sum().backward()
    assert far.grad is not None
    assert float(far.grad.norm()) == pytest.approx(1.0)


def test_pseudo_huber_scales_with_the_number_of_dimensions() -> None:
    # The same error at every position costs sqrt(dim) times as much, as does the constant.
    low, high = pseudo_huber(torch.full((1, 16), 1e-3)), pseudo_huber(torch.full((1, 64), 1e-3))
    torch.testing.assert_close(high, 2 * low)


@pytest.mark.parametrize("shape", [(4, 64, 64), (16, 21, 6, 4), (2, 3)])
def test_pseudo_huber_of_elements_is_its_formula_with_the_authors_constant(shape: tuple[int, ...]) -> None:
    u, c = noise(3, *shape) * 0.01, 1e-3 * math.sqrt(math.prod(shape) / 16384)
    expected = ((u.square() + c**2).sqrt() - c).flatten(1).mean(1)
    torch.testing.assert_close(pseudo_huber_elements(u), expected, rtol=1e-4, atol=1e-9)


def test_pseudo_huber_of_elements_counts_each_value_by_itself() -> None:
    """Each value's gradient is u / sqrt(u^2 + c^2) over the number of values: about one wherever u is far above c."""
    u = torch.cat([torch.full((1, 8192), 0.1), torch.full((1, 8192), 1e-6)], 1).requires_grad_()
    pseudo_huber_elements(u).sum().backward()
    assert u.grad is not None
    scaled = 16384 * u.grad
    torch.testing.assert_close(scaled[0, 0], torch.tensor(1.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled[0, -1], torch.tensor(1e-3), rtol=1e-4, atol=0)
    assert pseudo_huber_elements(torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    assert pseudo_huber_elements(u.detach().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan])
def test_a_constant_that_is_not_positive_is_refused(c: float) -> None:
    with pytest.raises(RMDError, match="pseudo-Huber constant must be positive"):
        pseudo_huber(torch.ones(1, 2), c)


def test_sample_weight_is_the_inverse_mean_distance_without_gradient() -> None:
    y = torch.zeros(2, 4, requires_grad=True)
    f_real = torch.tensor([[1.0, -1.0, 3.0, -3.0], [0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    weight = sample_weight(y, f_real)
    torch.testing.assert_close(weight, torch.tensor([0.5, 2.0]))
    assert not weight.requires_grad
    assert sample_weight(y, y, floor=1e-3).tolist() == pytest.approx([1000.0, 1000.0])


def test_the_floor_of_the_sample_weight_is_the_smallest_distance_that_counts() -> None:
    y = torch.zeros(3, 2, 4)
    f_real = y + torch.tensor([0.0, 0.1, 0.5])[:, None, None]
    torch.testing.assert_close(sample_weight(y, f_real, 0.2), torch.tensor([5.0, 5.0, 2.0]))
    torch.testing.assert_close(sample_weight(y, f_real), torch.tensor([1e5, 10.0, 2.0]))


def test_sample_weight_makes_the_loss_independent_of_the_scale_of_a_sample() -> None:
    y, f_real, f_fake = (noise(1, 3, 4, 4, seed=i) for i in range(3))

    def loss(scale: float) -> float:
        a, b, c = scale * y, scale * f_real, scale * f_fake
        return float(generator_loss(a, b, c, weight=sample_weight(a, b), metric="l2")) / scale

    assert loss(10.0) == pytest.approx(loss(1.0))


@given(alpha=st.floats(0.0, 1.0), cap=st.floats(0.1, 20.0))
def test_snr_weight_is_the_capped_snr(alpha: float, cap: float) -> None:
    sigma = math.sqrt(1 - alpha**2)
    expected = cap if sigma == 0.0 else min(alpha**2 / sigma**2, cap)
    assert float(snr_weight(torch.tensor(alpha).double(), torch.tensor(sigma).double(), cap)) == pytest.approx(expected)


def test_snr_weight_at_the_ends_and_over_a_batch() -> None:
    alpha, sigma = torch.tensor([0.0, 0.6, 1.0]), torch.tensor([1.0, 0.8, 0.0])
    torch.testing.assert_close(snr_weight(alpha, sigma, 5.0), torch.tensor([0.0, 0.5625, 5.0]))
    assert float(snr_weight(0.6, 0.8, 5.0)) == pytest.approx(0.5625)


def test_fake_score_loss_is_the_weighted_mean_square_and_trains_the_prediction_alone() -> None:
    pred, target = noise(2, 3, 4, 4).requires_grad_(), noise(2, 3, 4, 4, seed=1).requires_grad_()
    weight = torch.tensor([0.5, 3.0], dtype=torch.float64)
    loss = fake_score_loss(pred, target, weight)
    error = (pred - target).detach()
    torch.testing.assert_close(loss.detach(), (weight * error.square().mean(dim=(1, 2, 3))).mean())
    loss.backward()
    torch.testing.assert_close(pred.grad, weight.reshape(2, 1, 1, 1) * 2 * error / 48 / 2)
    assert target.grad is None
    torch.testing.assert_close(
        fake_score_loss(pred, target, torch.tensor(2.0)), 2 * fake_score_loss(pred, target, torch.tensor(1.0))
    )


def test_the_fake_score_loss_is_least_at_the_posterior_mean() -> None:
    alpha, sigma, std = 0.6, 0.8, 0.5
    mean = noise(1, 4)
    y = mean + std * noise(20000, 4, seed=1)
    x_t = alpha * y + sigma * noise(20000, 4, seed=2)
    best = posterior_mean(x_t, mean, std, alpha, sigma)
    one = torch.tensor(1.0)
    floor = float(fake_score_loss(best, y, one))
    assert floor == pytest.approx(std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2), rel=0.03)
    for other in (best + 0.05, 1.1 * best, x_t / alpha, mean.expand_as(y)):
        assert float(fake_score_loss(other, y, one)) > floor


def test_equal_errors_have_equal_weight_at_every_resolution() -> None:
    one = torch.tensor(1.0)
    low = fake_score_loss(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8), one)
    high = fake_score_loss(torch.full((2, 3, 32, 32), 0.5), torch.zeros(2, 3, 32, 32), one)
    torch.testing.assert_close(low, high)


def test_adversarial_losses_in_closed_form() -> None:
    """They are -log D and -log(1 - D) with D = sigmoid(logit); their gradients are D - 1 and D."""
    logits = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    d = torch.sigmoid(logits.detach())
    loss = adversarial_student_loss(logits)
    torch.testing.assert_close(loss.detach(), -d.log().mean())
    (result,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(result, (d - 1) / 3)
    both = adversarial_fake_loss(logits, -logits)
    torch.testing.assert_close(both.detach(), -(1 - d).log().mean() - (1 - d).log().mean())
    (result,) = torch.autograd.grad(both, logits)
    torch.testing.assert_close(result, 2 * d / 3)
    assert float(adversarial_fake_loss(torch.zeros(2), torch.zeros(5))) == pytest.approx(2 * math.log(2))
    assert adversarial_student_loss(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
