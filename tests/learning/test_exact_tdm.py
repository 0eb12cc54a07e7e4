"""The effect of TDM's importance weights on its students, in closed form on independent Gaussian pixels."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import LinearBackbone, cascade
from torch import Tensor

from rmd.core.noise import VPSchedule
from rmd.core.randomness import generator
from rmd.methods.tdm import importance, trajectory_noise

STD = 0.5
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "sample"}


class Pixel:
    """TDM's step from time t to `low` for pictures of n independent pixels, with mean 0 and a student y = k x_t."""

    def __init__(self, variance: float, t: float, low: float, pixels: float) -> None:
        schedule = VPSchedule.from_config(SCHEDULER)
        self.variance, self.pixels = variance, pixels
        self.at = lambda time: (float(schedule.alpha(time)), float(schedule.sigma(time)) if time > 0 else 0.0)
        self.t, self.low = t, low

    def state(self, k: float, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_tau, mixed noise and y, each as its weights of (x_t, eps)."""
        (a_t, s_t), (a_mid, s_mid), (alpha, sigma) = self.at(self.t), self.at(self.low), self.at(tau)
        rho = alpha / a_mid * s_mid / sigma
        mixed = torch.tensor([rho * (1 - a_t * k) / s_t, math.sqrt(1 - rho**2)], dtype=torch.float64)
        y = torch.tensor([k, 0.0], dtype=torch.float64)
        return alpha * y + sigma * mixed, mixed, y

    def fake_slope(self, k: float, tau: float) -> float:
        """Return the slope in x_tau of the best weighted prediction of y; the weights change the precision."""
        x_tau, mixed, y = self.state(k, tau)
        eps = torch.tensor([0.0, 1.0], dtype=torch.float64)
        precision = torch.diag(torch.tensor([1 / self.variance, 1.0], dtype=torch.float64))
        precision += (torch.outer(mixed, mixed) - torch.outer(eps, eps)) / self.pixels
        covariance = torch.linalg.inv(precision)
        return float(y @ covariance @ x_tau / (x_tau @ covariance @ x_tau))

    def rest(self) -> tuple[float, float]:
        """Return the spread of y (a share of the data's) and of the next state (of the teacher's) without gradient."""
        taus = torch.linspace(max(self.low, 20.0), min(self.t, 980.0), 11).tolist()[1:-1]
        low, high = 0.0, 4.0
        while high - low > 1e-6:
            k, pull = (low + high) / 2, 0.0
            for tau in taus:
                alpha, sigma = self.at(tau)
                real = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
                pull += float(self.state(k, tau)[0][0]) * self.variance * (self.fake_slope(k, tau) - real)
            low, high = (k, high) if pull < 0 else (low, k)
        (a_t, s_t), (a_mid, s_mid) = self.at(self.t), self.at(self.low)
        following = abs(a_mid * k + s_mid * (1 - a_t * k) / s_t) * self.variance**0.5
        return k * self.variance**0.5 / STD, following / math.sqrt(a_mid**2 * STD**2 + s_mid**2)


def test_tdms_weighted_fake_score_is_the_one_of_the_closed_form() -> None:
    backbone = LinearBackbone(channels=1, **SCHEDULER)
    step = cascade(backbone, sides=(2,)).steps[1]
    pixel, k = Pixel(1.0, step.model_time, step.tau_low, pixels=4), 0.3
    tau = torch.full((200_000,), 600.0, dtype=torch.float64)
    x_t, eps = (torch.randn(len(tau), 1, 2, 2, generator=generator(0, name)) for name in ("x", "eps"))
    a_t, s_t = pixel.at(step.model_time)
    mixed = trajectory_noise(backbone.schedule, step, tau, (1 - a_t * k) / s_t * x_t, eps)
    x_tau = backbone.schedule.add_noise(k * x_t, mixed, tau)
    weight = importance(mixed, eps)[:, None, None, None]
    slope = float((weight * k * x_t * x_tau).sum() / (weight * x_tau**2).sum())
    assert slope == pytest.approx(pixel.fake_slope(k, 600.0), abs=0.005)
    assert abs(slope - float((k * x_t * x_tau).sum() / (x_tau**2).sum())) > 0.02, "the weights must matter here"


@pytest.mark.parametrize(
    ("pixels", "spreads", "states"),
    [
        (1, (1.0, 1.0, 1.0, 1.0), (1.083, 1.221, 1.370)),
        (4, (0.140, 0.333, 0.639, 1.0), (1.007, 1.029, 1.087)),
        (12288, (0.122, 0.297, 0.594, 1.0), (1.006, 1.021, 1.065)),
    ],
)
def test_tdms_importance_weights_leave_the_states_a_little_too_wide(
    pixels: int, spreads: tuple[float, ...], states: tuple[float, ...]
) -> None:
    """With one pixel the weights are exact ratios of densities: y, and not the next state, gets the teacher's spread.

    They use the mean over all pixels, so with many they are nearly 1. Then the fake score predicts y from a state that
    contains eps_hat; in equilibrium the next states are 0.6, 2 and 7 % too wide, where `trajectory` is exact.
    """
    times, variance = (1000.0, 750.0, 500.0, 250.0, 0.0), 1.0
    for index in range(4):
        pixel = Pixel(variance, times[index], times[index + 1], pixels)
        spread, state = pixel.rest()
        assert spread == pytest.approx(spreads[index], abs=2e-3)
        if index < 3:
            assert state == pytest.approx(states[index], abs=2e-3)
            a_mid, s_mid = pixel.at(pixel.low)
            variance = state**2 * (a_mid**2 * STD**2 + s_mid**2)
