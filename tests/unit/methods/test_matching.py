"""The resolution at which the scores read the samples: the teacher's, the step's own, or either of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import LinearBackbone, cascade, make_batch, make_method, tiny_sdxl
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.methods import RMD
from rmd.models import Cond
from rmd.models.roles import Role


def test_teacher_and_fake_score_read_each_stage_at_its_own_resolution() -> None:
    backbone = tiny_sdxl()
    method = make_method(backbone, cascade(backbone), matching="own")
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
            assert method.score_stages(step) == {own: 1.0}
            assert seen == [("student", own), ("teacher", own), ("fake", own), ("fake", own)]
            seen.clear()


def test_at_one_resolution_the_choice_makes_no_difference() -> None:
    results = []
    for matching in ("own", "teacher", "mixed"):
        backbone = LinearBackbone()
        method = make_method(backbone, cascade(backbone, sides=(32,)), matching=matching)
        losses = []
        for step in method.plan.steps:
            loss, rollout = method.student_loss(make_batch(backbone), step)
            losses += [loss.detach(), method.fake_loss(make_batch(backbone), rollout).detach()]
        results.append(torch.stack(losses))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_last_stage_is_the_same_whatever_is_matched() -> None:
    states: list[list[Tensor]] = []
    for matching in ("own", "teacher"):
        backbone = LinearBackbone()
        method = make_method(backbone, cascade(backbone), matching=matching)
        rollouts = [method.student_loss(make_batch(backbone), step)[1] for step in method.plan.steps]
        states.append([rollout.x_tau for rollout in rollouts])
    for step, ours, theirs in zip(method.plan.steps, *states, strict=True):
        assert (ours.shape == theirs.shape and torch.equal(ours, theirs)) == (step.stage == 2)


def test_mixed_matching_draws_either_resolution_in_the_share_that_is_set() -> None:
    """The draw depends on seed and iteration alone, so that all processes read samples of one shape."""
    backbone = LinearBackbone()
    plan = cascade(backbone)
    method, again = (make_method(LinearBackbone(), plan, matching="mixed", own_share=0.25) for _ in range(2))
    assert isinstance(method, RMD) and isinstance(again, RMD)
    low, last = plan.steps[0], plan.steps[-1]
    own, teachers = plan.stages
    assert method.score_stages(low) == {own: 0.25, teachers: 0.75}
    assert method.score_stages(last) == {teachers: 1.0}
    drawn = [method.draw_score_stage(i, low) for i in range(2000)]
    assert drawn == [again.draw_score_stage(i, low) for i in range(2000)]
    assert drawn.count(own) / 2000 == pytest.approx(0.25, abs=0.04)
    assert {method.draw_score_stage(i, last) for i in range(20)} == {teachers}
    for iteration in (drawn.index(own), drawn.index(teachers)):
        batch = make_batch(backbone, iteration=iteration)
        _, rollout = method.student_loss(batch, low)
        assert rollout.stage == drawn[iteration]
        assert rollout.y.shape == rollout.f_real.shape == method.latent_shape(2, rollout.stage)
        assert method.fake_loss(batch, rollout).isfinite()


def test_matching_at_the_steps_own_size_and_at_a_larger_one_exclude_each_other() -> None:
    plan = replace(cascade(LinearBackbone(), sides=(16,)), match_side=(32, 32))
    with pytest.raises(RMDError, match="matching=own matches samples at their own resolution: leave out plan"):
        make_method(LinearBackbone(), plan, matching="own")
