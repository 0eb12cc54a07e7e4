"""The interface of methods: which step an iteration trains, and which plans a method accepts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.plan import Step
from rmd.methods import DMD2, METHODS, RMD, TDM, Batch, Method, Rollout
from rmd.methods.base import draw_shares
from rmd.methods.common import fake_prediction, roll_out, student_prediction, teacher_prediction
from rmd.recipes.methods import MethodConfig

TOY = LinearBackbone()
THREE = make_method(LinearBackbone(), cascade(TOY, sides=(8, 16, 32), steps=6), warmup_steps=20)


def test_methods_are_found_by_their_names() -> None:
    classes = {"rmd": RMD, "tdm": TDM, "dmd2": DMD2}
    assert {name: METHODS.get(name) for name in METHODS.names()} == classes
    assert all(kind.Config.model_fields["name"].annotation.__args__ == (name,) for name, kind in classes.items())


def test_only_the_first_stage_is_trained_during_the_warm_up() -> None:
    indices = [THREE.draw_step(i).stage for i in range(300)]
    assert set(indices[:20]) == {1}
    assert set(indices[20:]) == {1, 2, 3}
    seeds = [make_method(LinearBackbone(), THREE.plan, warmup_steps=20, seed=seed) for seed in range(20)]
    assert {method.draw_step(19).stage for method in seeds} == {1}
    assert {method.draw_step(20).stage for method in seeds} == {1, 2, 3}


def test_steps_are_drawn_uniformly_over_stages_then_steps() -> None:
    count, seeds = 40, 300
    in_stage = Counter(step.stage for step in THREE.plan.steps)
    assert len(set(in_stage.values())) > 1, "with equally many steps in each stage the order would not matter"
    methods = [make_method(LinearBackbone(), THREE.plan, warmup_steps=20, seed=seed) for seed in range(seeds)]
    for iteration in range(20, 20 + count, 13):  # each iteration by itself, over seeds
        steps = Counter(method.draw_step(iteration).index for method in methods)
        for step in THREE.plan.steps:
            expected = 1 / 3 / in_stage[step.stage]
            assert steps[step.index] / seeds == pytest.approx(expected, abs=5 * (expected / seeds) ** 0.5)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_round_trains_each_stage_and_step_once(seed: int) -> None:
    method = make_method(LinearBackbone(), THREE.plan, warmup_steps=20, seed=seed)
    drawn = [method.draw_step(20 + i) for i in range(60)]
    for start in range(0, 60, 3):
        assert {step.stage for step in drawn[start : start + 3]} == {1, 2, 3}
    for stage in THREE.plan.stages:
        steps = {step.index for step in THREE.plan.steps if step.stage == stage.index}
        visits = [step.index for step in drawn if step.stage == stage.index]
        for start in range(0, len(visits) - len(steps) + 1, len(steps)):
            assert set(visits[start : start + len(steps)]) == steps
    assert [step.index for step in drawn[:30]] != [step.index for step in drawn[30:]]  # not a fixed cycle


@pytest.mark.parametrize("draws", [(1, 2, 1), (3, 1, 2)])
def test_stages_are_drawn_as_often_as_the_settings_say(draws: tuple[int, ...]) -> None:
    method = make_method(LinearBackbone(), THREE.plan, warmup_steps=20, stage_draws=draws)
    drawn = [method.draw_step(20 + i) for i in range(sum(draws) * 12)]
    for start in range(0, len(drawn), sum(draws)):
        of_stage = Counter(step.stage for step in drawn[start : start + sum(draws)])
        assert of_stage == dict(zip((1, 2, 3), draws, strict=True))
    steps = Counter(step.index for step in drawn)
    shares = draw_shares(THREE.plan, method.config)
    assert sum(shares) == pytest.approx(1)
    for step, share in zip(THREE.plan.steps, shares, strict=True):
        assert steps[step.index] == pytest.approx(share * len(drawn))


def test_by_default_every_stage_is_drawn_equally_often() -> None:
    equal = make_method(LinearBackbone(), THREE.plan, warmup_steps=20, stage_draws=(1, 1, 1))
    assert [equal.draw_step(i) for i in range(100)] == [THREE.draw_step(i) for i in range(100)]
    assert draw_shares(THREE.plan, equal.config) == draw_shares(THREE.plan, THREE.config)


def test_stage_draws_need_one_number_for_each_stage() -> None:
    sentence = r"method\.stage_draws has 2 numbers, but the plan has 3 stages: give one for each stage"
    with pytest.raises(RMDError, match=sentence):
        make_method(LinearBackbone(), THREE.plan, stage_draws=(1, 2))


def test_methods_without_stages_share_the_iterations_among_their_steps() -> None:
    plan = cascade(TOY, sides=(32,))
    assert draw_shares(plan, make_method(LinearBackbone(), plan, name="tdm").config) == (0.25,) * 4


def test_the_step_is_a_function_of_seed_and_iteration() -> None:
    def drawn(seed: int) -> list[int]:
        method = make_method(LinearBackbone(), cascade(TOY), seed=seed)
        return [method.draw_step(i).index for i in range(40)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_steps_that_share_tau_ranges_are_drawn_independently() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone, sides=(32,)), name="tdm", tau="all")
    drawn = [method.draw_step(iteration).index for iteration in range(4000)]
    again = sum(a == b for a, b in pairwise(drawn)) / 3999
    assert abs(again - 1 / 4) < 5 * (0.25 * 0.75 / 3999) ** 0.5
    assert all(abs(drawn.count(i) / 4000 - 1 / 4) < 5 * (0.25 * 0.75 / 4000) ** 0.5 for i in (1, 2, 3, 4))


class PlainConfig(MethodConfig):
    """Settings of the method below."""

    scale: float = 1.0


class Plain(Method):
    """Another package's method: the smallest there can be, a regression onto the teacher's prediction."""

    Config = PlainConfig
    config: PlainConfig

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        x_t = roll_out(self, batch, step)
        y, eps_hat = student_prediction(self, batch, step, x_t)
        tau = torch.full((len(y),), step.model_time, dtype=torch.float64)
        f_real = teacher_prediction(self, batch, x_t, tau, self.plan.stage_of(step))
        rollout = Rollout(step, self.plan.match_stage, y.detach(), eps_hat.detach(), tau, x_t, f_real, f_real)
        return self.config.scale * (y - f_real).square().mean(), rollout

    def fake_loss(self, batch: Batch, rollout: Rollout, update: int = 0) -> Tensor:
        f_fake = fake_prediction(self, batch, rollout.x_tau, rollout.tau, self.plan.match_stage)
        return (f_fake - rollout.y).square().mean()


def test_another_packages_method_is_a_class_with_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_loaded", dict(METHODS._loaded))
    METHODS.register("plain", Plain)
    plan = cascade(TOY, sides=(32,))
    losses = []
    for scale in (1.0, 2.0):
        method = make_method(LinearBackbone(), plan, name="plain", scale=scale)
        assert isinstance(method, Plain) and draw_shares(plan, method.config) == (0.25,) * 4
        assert {method.draw_step(i).index for i in range(4)} == {1, 2, 3, 4}  # a round
        batch = make_batch(method.backbone)
        loss, rollout = method.student_loss(batch, plan.steps[1])
        method.roles.backward("student", loss)
        method.roles.zero_grad()
        method.roles.backward("fake", method.fake_loss(batch, rollout))
        assert method.evaluations == {"student": 2, "teacher": 1, "fake": 1}
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(2 * losses[0]) != 0


@pytest.mark.parametrize("name", ["tdm", "dmd2"])
def test_only_rmd_matches_samples_at_another_resolution(name: str) -> None:
    plan = replace(cascade(TOY, sides=(16,)), match_side=(32, 32))
    with pytest.raises(RMDError) as caught:
        make_method(LinearBackbone(), plan, name=name)
    sentence = (
        "matches samples at their own resolution: leave out plan.match_side, or use method rmd with matching=teacher"
    )
    assert str(caught.value) == f"method {name} {sentence}"


@pytest.mark.parametrize("settings", [{"name": "rmd"}, {"name": "rmd", "matching": "own"}, {"name": "tdm"}])
def test_a_sample_is_the_one_that_the_students_loss_is_computed_on(settings: dict[str, Any]) -> None:
    """This also holds for the default of methods that do not define `sample`, which computes that loss."""
    plan = cascade(TOY, sides=(32,)) if settings["name"] == "tdm" else cascade(TOY)
    method = make_method(LinearBackbone(), plan, **settings)
    for step in plan.steps:
        batch = make_batch(method.backbone)
        rollout = method.student_loss(batch, step)[1]
        for sample in (method.sample(batch, step), Method.sample(method, batch, step)):
            assert (sample.step, sample.stage) == (rollout.step, rollout.stage)
            assert torch.equal(sample.y, rollout.y) and torch.equal(sample.eps_hat, rollout.eps_hat)


def test_the_fake_scores_steps_are_drawn_independently_of_the_students() -> None:
    method = make_method(LinearBackbone(), cascade(TOY), tau="all")
    pairs = Counter((method.draw_step(i).index, method.draw_step(i, "fake").index) for i in range(3200))
    assert len(pairs) == 16
    assert max(abs(count - 200) for count in pairs.values()) < 5 * 200**0.5
