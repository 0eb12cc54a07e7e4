"""Stagewise matching: the scores read every step at its own resolution; at one resolution it equals RMD."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method, tiny_sdxl
from torch import Tensor, nn

from rmd.core.plan import Crossing, Stage
from rmd.models import Cond
from rmd.models.roles import Role


def test_teacher_and_fake_score_read_each_stage_at_its_own_resolution() -> None:
    backbone = tiny_sdxl()
    method = make_method(backbone, cascade(backbone), name="stagewise")
    seen: list[tuple[Role, Stage]] = []
    usual = method.predict

    def predict(role: Role, module: nn.Module, x: Tensor, t: Any, cond: Cond, stage: Stage, *rest: Any) -> Any:
        assert x.shape[-2:] == method.latent_shape(1, stage)[-2:]
        seen.append((role, stage))
        return usual(role, module, x, t, cond, stage, *rest)

    with mock.patch.object(method, "predict", predict):
        for step in method.plan.steps:
            _, rollout = method.student_loss(make_batch(backbone), step)
            method.fake_loss(make_batch(backbone), rollout)
            own = method.plan.stage_of(step)
            assert method.score_stage(step) == own
            assert seen == [("student", own), ("teacher", own), ("fake", own), ("fake", own)]
            seen.clear()


def test_at_one_resolution_it_equals_rmd() -> None:
    results = []
    for name in ("stagewise", "rmd"):
        backbone = LinearBackbone()
        method = make_method(backbone, cascade(backbone, sides=(32,)), name=name)
        losses = []
        for step in method.plan.steps:
            loss, rollout = method.student_loss(make_batch(backbone), step)
            losses += [loss.detach(), method.fake_loss(make_batch(backbone), rollout).detach()]
        results.append(torch.stack(losses))
    assert torch.equal(*results)


def test_its_last_stage_equals_rmds() -> None:
    states: list[list[Tensor]] = []
    for name in ("stagewise", "rmd"):
        backbone = LinearBackbone()
        method = make_method(backbone, cascade(backbone), name=name)
        rollouts = [method.student_loss(make_batch(backbone), step)[1] for step in method.plan.steps]
        states.append([rollout.x_tau for rollout in rollouts])
    for step, ours, theirs in zip(method.plan.steps, *states, strict=True):
        assert (ours.shape == theirs.shape and torch.equal(ours, theirs)) == (step.stage == 2)


@pytest.mark.parametrize("sides", [(16, 32), (8, 16, 32)])
def test_scale_wise_noise_is_fresh(sides: tuple[int, ...]) -> None:
    backbone = LinearBackbone()
    fresh = Crossing(beta=0.0, within="fresh")
    plan = cascade(backbone, sides=sides, crossing=fresh, training_crossing=fresh)
    method = make_method(backbone, plan, name="stagewise", tau="all")
    g = torch.Generator().manual_seed(0)
    for step in plan.steps:
        shape = method.latent_shape(2, plan.stage_of(step))
        predicted, noise = (torch.randn(shape, generator=g) for _ in range(2))
        assert torch.equal(method.mix(predicted, noise), noise)
