"""Roles of a network in half precision train float32 masters."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from helpers import LinearBackbone, Mixer
from torch import Tensor

from rmd.models.roles import TRAINED, Role, Roles, build_roles

Mode = Literal["lora", "full"]
both_modes = pytest.mark.parametrize("mode", ["lora", "full"])
each_trained = pytest.mark.parametrize("role", TRAINED)
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
TIME, CONTEXT = torch.tensor([10.0, 500.0, 999.0]), torch.tensor([0.1, 0.5, 0.9])


def half(mode: Mode) -> Roles:
    return build_roles(Mixer().bfloat16(), mode=mode, targets=LinearBackbone.lora_targets, rank=2, alpha=4.0)


def half_output(roles: Roles, role: Role) -> Tensor:
    with roles.use(role) as network:
        result: Tensor = network(X.bfloat16(), TIME, CONTEXT.bfloat16())
    return result


@both_modes
def test_half_precision_trains_float32_masters(mode: Mode) -> None:
    roles = half(mode)
    for role in TRAINED:
        assert {p.dtype for p in roles.in_network(role).values()} == {torch.bfloat16}
        assert {p.dtype for p in roles.trainable(role)} == {torch.float32}
        for name, parameter in roles.in_network(role).items():
            assert torch.equal(parameter.float(), roles.named_trainable(role)[name])
    assert half_output(roles, "student").dtype == torch.bfloat16


@both_modes
@each_trained
def test_gradients_reach_the_masters_and_leave_the_network(mode: Mode, role: Literal["student", "fake"]) -> None:
    roles = half(mode)
    roles.backward(role, half_output(roles, role).float().square().mean())
    assert all(p.grad is None for p in roles.in_network(role).values())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in roles.trainable(role))
    assert max(float(p.grad.abs().max()) for p in roles.trainable(role)) > 0  # type: ignore[union-attr]
    roles.zero_grad()
    assert all(p.grad is None for p in roles.trainable(role))


@both_modes
def test_updates_too_small_for_bfloat16_add_up(mode: Mode) -> None:
    roles = half(mode)
    master = roles.trainable("student")[0]
    name = next(iter(roles.in_network("student")))
    start = roles.in_network("student")[name].detach().clone()
    largest = start.float().abs() >= start.float().abs().max() / 2
    update = 1e-4 * start.float().abs().max()  # bfloat16 rounds away changes below 2^-9 of a number
    with torch.no_grad():
        for count in range(200):
            master += update
            roles.sync("student")
            if count == 0:
                assert torch.equal(roles.in_network("student")[name][largest], start[largest])
    moved = roles.in_network("student")[name].float() - start.float()
    torch.testing.assert_close(moved, torch.full_like(moved, float(200 * update)), rtol=0.3, atol=0)


@both_modes
def test_a_loaded_state_is_in_the_network_too(mode: Mode) -> None:
    source, target = half(mode), half(mode)
    with torch.no_grad():
        for parameter in source.trainable("student"):
            parameter += 0.5
    target.load_state("student", source.state("student"))
    source.sync("student")
    for name, parameter in target.in_network("student").items():
        assert torch.equal(parameter, source.in_network("student")[name])
        assert torch.equal(target.named_trainable("student")[name], source.named_trainable("student")[name])
