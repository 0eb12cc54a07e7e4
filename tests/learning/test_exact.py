"""The students at which each step's gradient vanishes, exactly, on Gaussian data and for students that are affine.

Everything is then affine in the noise that is drawn, so a batch whose rows are the unit vectors of that noise gives the
joint distribution of all states without sampling (`Law`). The fake score is the best affine prediction of its target,
which is what training it to the end would give.

The data are Up(z) with z ~ N(MEAN, STD^2) at the low resolution, so that an upsampled sample can be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers import LinearBackbone, cascade, make_method, network_of
from torch import Tensor, nn

from rmd.core.crossing import upsample
from rmd.core.plan import Crossing, Step
from rmd.core.randomness import generator
from rmd.methods import RMD, Batch, Sample
from rmd.methods.common import diffuse, draw_tau, roll_out
from rmd.models import Cond
from rmd.models.roles import Role

MEAN, STD = 0.7, 0.5
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "sample"}
DRAWS = {"start": 4, "within-2": 4, "crossing-3": 16, "within-4": 16, "noise": 16, "next": 16}
"""Number of values of each draw of noise: pictures have 2 x 2 pixels, and 4 x 4 at the higher resolution."""


class UnitNoise:
    """Noise for a batch in which every value of every draw is 1 in one row; the first row is zero."""

    rows = 1 + sum(DRAWS.values())

    def __init__(self, uniform: float) -> None:
        self.u = uniform

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        names = list(DRAWS)
        name = purpose if purpose in names else purpose.partition("-")[0]
        first, count = 1 + sum(DRAWS[other] for other in names[: names.index(name)]), math.prod(shape[1:])
        noise = torch.zeros(self.rows, count, dtype=torch.float64)
        noise[first : first + count] = torch.eye(count)
        return noise.reshape(shape)

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        return torch.full(tuple(shape), self.u)


class Drawn(UnitNoise):
    """Noise of a batch of samples; all have one time tau."""

    rows = 8192

    def __init__(self, uniform: float, seed: int) -> None:
        super().__init__(uniform)
        self.seed = seed

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        return torch.randn(*shape, generator=generator(self.seed, purpose), dtype=torch.float64)


@dataclass(frozen=True)
class Law:
    """Mean (n,) of a vector, and the matrix (noise, n) by which it depends on the unit noise."""

    mean: Tensor
    by: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Law:
        flat = rows.detach().double().flatten(1)
        return cls(flat[0], flat[1:] - flat[0])

    def covariance(self, other: Law) -> Tensor:
        return self.by.T @ other.by

    def regression(self, on: Law) -> Callable[[Tensor], Tensor]:
        """Return the mean of this vector given another one."""
        gain = torch.linalg.solve(on.covariance(on), on.covariance(self))
        return lambda x: self.mean + (x - on.mean) @ gain


class Rule(nn.Module):
    """A network of any role: an affine map of the picture by time, plus a trainable bias and gain for the student."""

    def __init__(self) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.rule: Callable[[Tensor, float], Tensor] | None = None

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        assert self.rule is not None
        y = self.rule(x.flatten(1), float(timestep[0]) + 1).reshape(x.shape)
        return MEAN + self.change[0] + (1 + self.change[1]) * (y - MEAN)


def root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0.0).sqrt()) @ vectors.T


class Case:
    """A method whose teacher is exact, and whose student is solved for step by step."""

    def __init__(self, crossing: Crossing, **settings: Any) -> None:
        self.backbone = LinearBackbone(Rule(), channels=1, **SCHEDULER)
        plan = cascade(self.backbone, sides=(2, 4), crossing=crossing, training_crossing=crossing)
        method = make_method(self.backbone, plan, guidance=1.0, metric="l2", weight="none", **settings)
        assert isinstance(method, RMD)
        self.method, self.crossing, self.settings = method, crossing, settings
        basis = torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)
        self.up = upsample(basis, (4, 4), crossing.upsample).flatten(1).T  # (16, 4)
        self.gains: dict[int, Tensor] = {}
        self.inputs: dict[int, Law] = {}
        self.means: dict[int, float] = {}
        self.set_rule("student", self.student)
        self.set_rule("teacher", lambda x, t: self.tweedie(x, t, self.mean(x), self.data(x.shape[1])))

    def set_rule(self, role: Role, rule: Callable[[Tensor, float], Tensor]) -> None:
        network = network_of(self.method, role)
        assert isinstance(network, Rule)
        network.rule = rule

    @staticmethod
    def mean(x: Tensor) -> Tensor:
        return torch.full((x.shape[1],), MEAN, dtype=torch.float64)

    def data(self, pixels: int) -> Tensor:
        """Return the covariance of the data."""
        up = self.up if pixels == 16 else torch.eye(4, dtype=torch.float64)
        return STD**2 * up @ up.T

    def tweedie(self, x: Tensor, t: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return (x + sigma^2 score(x)) / alpha for clean pictures of this mean and covariance, noised afresh."""
        alpha, sigma = float(self.backbone.schedule.alpha(t)), float(self.backbone.schedule.sigma(t))
        noised = alpha**2 * covariance + sigma**2 * torch.eye(x.shape[1], dtype=torch.float64)
        return (x - sigma**2 * torch.linalg.solve(noised, (x - alpha * mean).T).T) / alpha

    def student(self, x: Tensor, t: float) -> Tensor:
        step = min(self.method.plan.steps, key=lambda each: abs(each.model_time - t))
        return self.means[step.index] + (x - self.inputs[step.index].mean) @ self.gains[step.index]

    def batch(self, noise: UnitNoise) -> Batch:
        cond = Cond({"context": torch.zeros(noise.rows)})
        return Batch(0, cond, cond, noise)

    def enter(self, step: Step) -> Tensor:
        """Note the distribution of a step's input, which the steps before it decide; return its covariance."""
        x_t = Law.of(roll_out(self.method, self.batch(UnitNoise(0.5)), step))
        self.inputs[step.index], self.means[step.index] = x_t, MEAN
        return x_t.covariance(x_t)

    def solve(self, step: Step) -> None:
        """Give a step the student that is right: y, or else the next state, is distributed as the teacher's."""
        variance, schedule = self.enter(step), self.backbone.schedule
        whiten, data = torch.linalg.inv(root(variance)), self.data(len(variance))
        if self.settings["tau_noise"] != "trajectory" or step.tau_low == 0:
            self.gains[step.index] = whiten @ root(data)
            return
        stays = self.method.plan.steps[step.index].stage == step.stage
        enlarged = step.stage == 1 and self.settings.get("matching") != "own"
        share = self.crossing.eta if stays and not enlarged else self.crossing.beta
        if enlarged:  # a block of 2 x 2 shares its predicted noise
            share /= 2.0
        eye = torch.eye(len(variance), dtype=torch.float64)
        alpha, sigma = float(schedule.alpha(step.tau_low)), float(schedule.sigma(step.tau_low))
        a_t, s_t = float(schedule.alpha(step.model_time)), float(schedule.sigma(step.model_time))
        of_eps = sigma * share / s_t  # x_mid = alpha y + of_eps (x_t - a_t y) + fresh noise
        wanted = whiten @ root(alpha**2 * data + sigma**2 * share**2 * eye)
        self.gains[step.index] = (wanted - of_eps * eye) / (alpha - of_eps * a_t)
        start = float(self.inputs[step.index].mean.mean())
        self.means[step.index] = (alpha * MEAN - of_eps * start) / (alpha - of_eps * a_t)

    def states(self, step: Step, uniform: float) -> tuple[Sample, Law, Law, float]:
        """Return the sample of a step, the laws of x_tau and of the fake score's target, and tau."""
        batch = self.batch(UnitNoise(uniform))
        with torch.no_grad():
            sample = self.method.sample(batch, step)
            tau = draw_tau(self.method, batch, step, "tau-student")
            noisy = diffuse(self.method, batch, step, sample.y, sample.eps_hat, tau, "student")
        return sample, Law.of(noisy.x_tau), Law.of(noisy.target), float(tau[0])

    def score_prediction(self, x_tau: Law, tau: float) -> Callable[[Tensor], Tensor]:
        """Return the clean prediction that belongs to the score of the distribution of x_tau."""
        alpha, sigma = float(self.backbone.schedule.alpha(tau)), float(self.backbone.schedule.sigma(tau))
        variance = x_tau.covariance(x_tau)
        return lambda x: (x - sigma**2 * torch.linalg.solve(variance, (x - x_tau.mean).T).T) / alpha

    def gradient(self, step: Step, uniform: float) -> tuple[Tensor, Tensor]:
        """Return the student's gradient in bias and gain (2) with a trained fake score, and its standard error."""
        _, x_tau, target, _ = self.states(step, uniform)
        known = target.regression(x_tau)
        self.set_rule("fake", lambda x, t: known(x))
        gradients = []
        for seed in range(4):
            loss, _ = self.method.student_loss(self.batch(Drawn(uniform, seed)), step)
            self.method.roles.zero_grad()
            self.method.roles.backward("student", loss)
            gradients.append(self.method.roles.trainable("student")[0].grad.clone())
        return torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / 2

    def pull(self, step: Step) -> float:
        """Return the expected gradient in the gain of a step's student over all times tau."""
        pulls = []
        for uniform in torch.linspace(0.05, 0.95, 10).tolist():
            sample, x_tau, target, tau = self.states(step, uniform)
            fake, n = target.regression(x_tau), len(x_tau.mean)
            rows = torch.cat([torch.zeros(1, n, dtype=torch.float64), x_tau.by]) + x_tau.mean
            gap = Law.of(fake(rows) - self.tweedie(rows, tau, self.mean(rows), self.data(n)))
            pulls.append(float((Law.of(sample.y).by * gap.by).sum()))
        return sum(pulls)

    def equilibrium(self, step: Step) -> float:
        """Return the spread of the first step's output at which its gradient vanishes, relative to the data's."""
        spread, low, high = float(self.enter(step)[0, 0]) ** 0.5, 0.0, 2.0
        while high - low > 1e-4:
            middle = (low + high) / 2
            self.gains[step.index] = middle * STD / spread * torch.eye(4, dtype=torch.float64)
            low, high = (middle, high) if self.pull(step) < 0 else (low, middle)
        return middle


PLAIN, BLOCK = Crossing(rule="plain", beta=0.2), Crossing(rule="block", beta=0.5)
NEAREST = Crossing(rule="block", upsample="nearest", beta=0.5)
FRESH_CROSSING = Crossing(rule="plain", beta=0.0, eta=0.5)
EXACT = [
    (PLAIN, {"tau_noise": "fresh"}),
    (BLOCK, {"tau_noise": "fresh", "tau": "stage", "tau_offset": (0.25, 0.1)}),
    (BLOCK, {"tau_noise": "fresh", "matching": "own"}),
    (FRESH_CROSSING, {"tau_noise": "trajectory"}),
    (FRESH_CROSSING, {"tau_noise": "trajectory", "matching": "own", "tau": "above"}),
    (NEAREST, {"tau_noise": "trajectory"}),
    (NEAREST, {"tau_noise": "trajectory", "matching": "own"}),
]
BIASED = [
    (replace(rule, beta=beta), {"tau_noise": "mixed", "matching": matching})
    for rule in (PLAIN, BLOCK)
    for beta in (0.2, 0.5)
    for matching in ("teacher", "own")
]


def name_of(value: object) -> str:
    if isinstance(value, Crossing):
        return f"{value.rule}-{value.upsample}-{value.beta:g}-{value.eta:g}"
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("crossing", "settings"), EXACT, ids=name_of)
def test_the_right_student_has_no_gradient_at_any_step(crossing: Crossing, settings: dict[str, Any]) -> None:
    """Its states are distributed as the teacher's, and a trained fake score equals the teacher."""
    case = Case(crossing, **settings)
    for step in case.method.plan.steps:
        case.solve(step)
        for uniform in (0.1, 0.9):
            _, x_tau, target, tau = case.states(step, uniform)
            probe = x_tau.mean + torch.linspace(-3, 3, 5 * len(x_tau.mean), dtype=torch.float64).reshape(5, -1)
            fake = target.regression(x_tau)(probe)
            teacher = case.tweedie(probe, tau, case.mean(probe), case.data(probe.shape[1]))
            torch.testing.assert_close(fake, teacher, rtol=0, atol=1e-9)
            gradient, _ = case.gradient(step, uniform)
            assert float(gradient.abs().max()) < 1e-6
        case.gains[step.index] *= 1.1
        gradient, error = case.gradient(step, 0.5)
        assert float(gradient[1]) > max(1e-5, 10 * float(error[1])), "too much spread is reduced"
        case.solve(step)


@pytest.mark.parametrize(("crossing", "settings"), BIASED, ids=name_of)
def test_mixed_noise_moves_the_right_student(crossing: Crossing, settings: dict[str, Any]) -> None:
    """The paper's noise contains eps_hat, of which the prediction of y is no score; the last step's is known too."""
    case = Case(crossing, **settings)
    for step in case.method.plan.steps:
        case.solve(step)
        gradient, error = case.gradient(step, 0.5)
        assert abs(float(gradient[1])) > max(1e-3, 10 * float(error[1]))
        assert (float(gradient[1]) > 0) == (step.index < 4), "all but the last step lose spread"


@pytest.mark.parametrize(
    ("crossing", "settings", "exact"),
    [(crossing, settings, True) for crossing, settings in [*EXACT, (BLOCK, {"tau_noise": "trajectory"})]]
    + [(crossing, settings, False) for crossing, settings in BIASED[:2]]
    + [(FRESH_CROSSING, {"tau_noise": "trajectory_sample"}, False)],
    ids=name_of,
)
def test_the_target_belongs_to_the_score_of_what_the_scores_read(
    crossing: Crossing, settings: dict[str, Any], exact: bool
) -> None:
    """E[target | x_tau] = (x_tau + sigma^2 score(x_tau)) / alpha, for any student and however y and eps_hat depend."""
    case = Case(crossing, **settings)
    for step in case.method.plan.steps:
        size = len(case.enter(step))
        g = torch.Generator().manual_seed(step.index)
        case.gains[step.index] = 0.5 * torch.randn(size, size, generator=g, dtype=torch.float64)
        for uniform in (0.02, 0.6, 1.0):
            _, x_tau, target, tau = case.states(step, uniform)
            probe = x_tau.mean + torch.randn(5, len(x_tau.mean), generator=g, dtype=torch.float64)
            gap = target.regression(x_tau)(probe) - case.score_prediction(x_tau, tau)(probe)
            last = step.tau_low == 0 and settings["tau_noise"] != "mixed"  # there, all noise is fresh
            assert (float(gap.abs().max()) < 1e-6) == (exact or last)


@pytest.mark.parametrize(
    ("settings", "crossing", "spreads"),
    [
        ({"tau_noise": "fresh"}, BLOCK, (1.0, 1.0)),
        ({"tau_noise": "fresh", "matching": "own"}, PLAIN, (1.0, 1.0)),
        ({"tau_noise": "trajectory"}, FRESH_CROSSING, None),
        ({"tau_noise": "trajectory"}, NEAREST, None),
        ({"tau_noise": "trajectory", "matching": "own"}, FRESH_CROSSING, None),
        ({"tau_noise": "mixed", "matching": "own"}, PLAIN, (0.339, 0.651)),
        ({"tau_noise": "mixed", "matching": "own"}, BLOCK, (0.148, 0.373)),
        ({"tau_noise": "mixed"}, PLAIN, (0.368, 0.709)),
        ({"tau_noise": "trajectory_sample"}, FRESH_CROSSING, (0.300, 0.638)),
        ({"tau_noise": "trajectory_sample", "matching": "own"}, FRESH_CROSSING, (0.234, 0.501)),
        ({"tau_noise": "trajectory"}, PLAIN, (0.0, 0.445)),
    ],
    ids=name_of,
)  # fmt: skip
def test_the_spread_at_which_each_low_resolution_step_comes_to_rest(
    settings: dict[str, Any], crossing: Crossing, spreads: tuple[float, float] | None
) -> None:
    """It is a share of the data's: 1 with fresh noise, and whatever makes the next state right with the trajectory's.

    The last row is a warning: upsampled predicted noise has four times the power of white noise in the low frequencies.
    No student can make such a state right, and the first one loses its spread altogether.
    """
    case = Case(crossing, **settings)
    for index, step in enumerate(case.method.plan.steps[:2]):
        rest = case.equilibrium(step)
        if spreads is None:
            case.solve(step)
            exact = float(case.gains[step.index][0, 0]) * float(case.inputs[step.index].by[:, 0].norm()) / STD
            assert rest == pytest.approx(exact, abs=1e-3)
        else:
            assert rest == pytest.approx(spreads[index], abs=0.005)
