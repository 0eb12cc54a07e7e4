"""The recipes with the rules of the authors' own code, against the numbers that their code computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers import LinearBackbone, make_batch
from torch import Tensor

from rmd.core.crossing import cross, upsample
from rmd.core.losses import generator_loss, pseudo_huber_elements, sample_weight
from rmd.core.noise import per_sample
from rmd.core.sampling import step_noise
from rmd.core.shift import shift_time
from rmd.core.times import flow_sigma
from rmd.methods import RMD
from rmd.methods.common import diffuse, draw_tau, fake_weight, tau_range, trajectory_share
from rmd.models.roles import build_roles
from rmd.recipes.methods import RMDConfig
from rmd.recipes.schema import Recipe, load_recipe

NAMES = ["wan21-1.3b-authors", "wan21-14b-authors", "scenes-authors"]
WAN = load_recipe("wan21-14b-authors")
CODE = [(870, 980), (745, 980), (620, 980), (367, 665), (216, 665), (66, 665)]
"""The ranges of tau in the authors' code for six steps, three of them low, as indices of its table of 1000 times."""


def config(recipe: Recipe) -> RMDConfig:
    assert isinstance(recipe.method, RMDConfig)
    return recipe.method


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method_of(recipe: Recipe) -> RMD:
    """Return the recipe's method for a toy network on its schedule."""
    kind: dict[str, Any] = {"beta_schedule": None, "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    backbone = LinearBackbone(prediction_type="flow_prediction", **kind)
    roles = build_roles(backbone.denoiser, mode="full", targets=backbone.adapted("all"), rank=2, alpha=4.0)
    return RMD(backbone, roles, recipe.build_plan(), config(recipe), seed=0)


def small() -> Recipe:
    return load_recipe(WAN.name, ["plan.sides=[16, 24]", "plan.multiple=8", "frames=1"])


def test_the_times_are_a_uniform_grid_at_shift_3_and_the_switch_is_at_sigma_three_quarters() -> None:
    plan = WAN.build_plan()
    sigmas = [shift_time(1000.0 * k / 6, 3.0) for k in (6, 5, 4, 3, 2, 1)]  # entries 1000 k / 6 - 1 of their table
    assert [step.teacher_time for step in plan.steps] == pytest.approx(sigmas)
    assert [step.model_time for step in plan.steps] == [step.teacher_time for step in plan.steps]
    assert [step.stage for step in plan.steps] == [1, 1, 1, 2, 2, 2]
    assert plan.steps[3].teacher_time == pytest.approx(750.0)
    scenes = load_recipe("scenes-authors").build_plan()
    assert [step.stage for step in scenes.steps] == [1, 1, 2, 2]
    assert flow_sigma(scenes.steps[2].logsnr) == pytest.approx(0.75, abs=1e-3)


def test_the_scores_times_are_theirs() -> None:
    """They round down to an entry of a table that starts at 0, which is where the upper end of 665 comes from."""
    plan = WAN.build_plan()
    for step, (low, high) in zip(plan.steps, CODE, strict=True):
        ours = [shift_time(t, 1 / 3) for t in tau_range(config(WAN), step, plan, shift=3.0)]
        assert ours == [pytest.approx(low, abs=1), pytest.approx(high, abs=2)]
        method = method_of(small())
        drawn = shift_time(draw_tau(method, make_batch(method.backbone, count=4), step, "tau"), 1 / 3)
        assert low - 1 <= float(drawn.min()) <= float(drawn.max()) <= high + 2


def test_the_metric_is_theirs_at_every_size() -> None:
    """Element by element with c = 1e-3 at 64 x 64 x 4 values; the divisor is the sample's, at least .2."""
    assert config(WAN).metric == "pseudo_huber_elements"
    u = noise(2, 4, 64, 64) * 1e-2
    expected = ((u**2 + 1e-6).sqrt() - 1e-3).flatten(1).mean(1)
    torch.testing.assert_close(pseudo_huber_elements(u), expected, rtol=1e-4, atol=1e-8)
    y, far = noise(2, 4, 8, 8), torch.tensor([0.05, 3.0])[:, None, None, None]
    weight = sample_weight(y, y + far, config(WAN).weight_floor)
    torch.testing.assert_close(weight, torch.tensor([1 / 0.2, 1 / 3.0]))
    f_fake = y + far + 0.1
    c = 1e-3 * (256 / 16384) ** 0.5
    loss = generator_loss(y, y + far, f_fake, weight=weight, metric="pseudo_huber_elements")
    assert float(loss) == pytest.approx(float(weight.mean()) * ((0.01 + c * c) ** 0.5 - c), rel=1e-4)


def test_the_fake_scores_error_is_weighted_as_one_in_the_noise() -> None:
    schedule, tau = WAN.schedule(), torch.tensor([20.0, 500.0, 900.0], dtype=torch.float64)
    sigma = tau / 1000
    torch.testing.assert_close(fake_weight(config(WAN), schedule, tau), ((1 - sigma) / sigma) ** 2)


def test_the_switch_has_fresh_noise_alone_and_other_steps_half_of_the_predicted_one() -> None:
    plan = WAN.build_plan()
    assert plan.crossing == plan.training_crossing
    x0_hat, eps_hat, eps = noise(1, 2, 4, 4), noise(1, 2, 4, 4, seed=1), noise(1, 2, 6, 6, seed=2)
    state = cross(x0_hat, eps_hat, eps, alpha=0.25, sigma=0.75, crossing=plan.crossing)
    torch.testing.assert_close(state, 0.25 * upsample(x0_hat, (6, 6), "bilinear") + 0.75 * eps)
    mixed = step_noise(eps_hat, x0_hat, plan.crossing)
    torch.testing.assert_close(mixed, 0.5 * eps_hat + 0.75**0.5 * x0_hat)


@pytest.mark.parametrize("index", range(6))
def test_the_scores_read_the_next_state_mixed_by_eta_and_diffused_up(index: int) -> None:
    method = method_of(small())
    step, batch = method.plan.steps[index], make_batch(method.backbone)
    low = index < 3
    y, eps_hat = noise(2, 2, 12, 12), noise(2, 2, *([8, 8] if low else [12, 12]), seed=1)
    tau = draw_tau(method, batch, step, "tau")
    result = diffuse(method, batch, step, y, eps_hat, tau, "it")
    eps = batch.noise.normal(y.shape, "noise-it")
    if index < 5:
        mixed = 0.5 * upsample(eps_hat, (12, 12), "bilinear") + 0.75**0.5 * batch.noise.normal(y.shape, "next-it")
        rho = per_sample(trajectory_share(method.backbone.schedule, step, tau), y)
        eps = rho * mixed + (1 - rho**2).sqrt() * eps
    torch.testing.assert_close(result.x_tau, method.backbone.schedule.add_noise(y, eps, tau))
    assert torch.equal(result.target, y), "the fake score predicts the sample"
    assert torch.equal(result.weight, torch.ones(2))


def test_the_fake_score_comes_first_and_both_networks_train_every_stage_as_often() -> None:
    method = method_of(small())
    assert method.config.order == "fake_first"
    for role in ("student", "fake"):
        stages = [method.draw_step(i, role).stage for i in range(2015)]
        assert set(stages[:15]) == {1}
        assert Counter(stages[15:])[1] / 2000 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_all_recipes_have_the_same_rules(name: str) -> None:
    recipe = load_recipe(name)
    rules = config(recipe).model_dump(exclude={"guidance", "warmup_steps"})
    assert rules == config(WAN).model_dump(exclude={"guidance", "warmup_steps"})
    assert (recipe.crossing, recipe.plan.map) == (WAN.crossing, "none")
    assert (recipe.roles.mode, recipe.optim.clipped, recipe.optim.clip_norm) == ("full", "student", 1.0)
    assert (recipe.optim.betas, recipe.optim.weight_decay) == ((0.0, 0.95), 1e-4)


@pytest.mark.parametrize("name", NAMES[:2])
def test_learning_rates_batch_and_length_of_wan_are_theirs(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.optim.student_lr, recipe.optim.fake_lr) == (5e-6, 2e-5)
    assert (recipe.optim.lr_warmup, recipe.optim.lr_decay, recipe.optim.ema) == (0, 0, 0.0)
    gpus = 8
    assert recipe.train.batch_size == 4 * gpus * recipe.train.gradient_accumulation_steps == 64
    assert (recipe.train.iterations, config(recipe).warmup_steps, config(recipe).guidance) == (300, 15, 5.0)


def test_scenes_has_its_own_learning_rates() -> None:
    ours, theirs = load_recipe("scenes"), load_recipe("scenes-authors")
    assert (theirs.optim.student_lr, theirs.optim.fake_lr) == (ours.optim.student_lr, ours.optim.fake_lr)
    assert (theirs.train, theirs.data, theirs.noise) == (ours.train, ours.data, ours.noise)
