"""Student, teacher and fake score: one interface in both modes, and gradients on the right parameters only."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from helpers import LinearBackbone, Mixer, assert_same, copy_state, tiny_denoiser
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.models.roles import TRAINED, FullRoles, GradientRoutingError, LoraRoles, Role, Roles, build_roles

Mode = Literal["lora", "full"]
ROLES: tuple[Role, ...] = ("student", "teacher", "fake")
both_modes = pytest.mark.parametrize("mode", ["lora", "full"])
each_trained = pytest.mark.parametrize("role", TRAINED)
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
TIME, CONTEXT = torch.tensor([10.0, 500.0, 999.0]), torch.tensor([0.1, 0.5, 0.9])


def make(mode: Mode, seed: int = 0) -> Roles:
    return build_roles(Mixer(), mode=mode, targets=LinearBackbone.lora_targets, rank=2, alpha=4.0, seed=seed)


def output(roles: Roles, role: Role) -> Tensor:
    with roles.use(role) as network:
        result: Tensor = network(X, TIME, CONTEXT)
    return result


@torch.no_grad()
def perturb(roles: Roles, *which: Role) -> None:
    """Change the weights of the given roles, so that they differ from the teacher."""
    g = torch.Generator().manual_seed(7)
    for role in which:
        for parameter in roles.trainable(role):
            parameter += 0.3 * torch.randn(parameter.shape, generator=g)


def step(roles: Roles, role: Literal["student", "fake"]) -> None:
    optimizer = torch.optim.SGD(roles.trainable(role), lr=0.1)
    roles.zero_grad()
    roles.backward(role, output(roles, role).square().mean())
    optimizer.step()


@both_modes
def test_the_roles_start_equal_to_the_network_they_were_built_from(mode: Mode) -> None:
    before = Mixer()(X, TIME, CONTEXT)
    roles = make(mode)
    assert roles.mode == mode
    for role in ROLES:
        assert torch.equal(output(roles, role), before)


def test_the_mode_decides_the_class() -> None:
    assert isinstance(make("lora"), LoraRoles)
    assert isinstance(make("full"), FullRoles)


@both_modes
@each_trained
def test_an_update_moves_its_role_alone(mode: Mode, role: Literal["student", "fake"]) -> None:
    roles = make(mode)
    perturb(roles, *TRAINED)  # while an adapter is zero, only one of its matrices gets a gradient
    before = {name: output(roles, name).detach() for name in ROLES}
    frozen = [parameter.clone() for parameter in roles.frozen()]
    step(roles, role)
    for name in ROLES:
        assert torch.equal(output(roles, name), before[name]) == (name != role)
    assert all(torch.equal(a, b) for a, b in zip(roles.frozen(), frozen, strict=True))


@both_modes
@each_trained
def test_a_loss_reaches_its_role_alone(mode: Mode, role: Literal["student", "fake"]) -> None:
    roles = make(mode)
    perturb(roles, *TRAINED)
    roles.backward(role, output(roles, role).square().mean())
    other: Role = "fake" if role == "student" else "student"
    assert all(parameter.grad is not None for parameter in roles.trainable(role))
    assert any(bool(parameter.grad.abs().max() > 0) for parameter in roles.trainable(role))  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in [*roles.trainable(other), *roles.frozen()])
    roles.zero_grad()
    assert all(parameter.grad is None for name in TRAINED for parameter in roles.trainable(name))


@both_modes
def test_gradients_survive_other_roles_running_between_forward_and_backward(mode: Mode) -> None:
    """PEFT's set_adapter turns requires_grad off for the other adapter, which loses the gradients of older graphs."""
    roles = make(mode)
    perturb(roles, *TRAINED)
    roles.backward("student", output(roles, "student").square().mean())
    expected = {name: p.grad for name, p in roles.named_trainable("student").items()}
    roles.zero_grad()

    loss = output(roles, "student").square().mean()
    with torch.no_grad():
        output(roles, "teacher")
    output(roles, "fake")
    roles.backward("student", loss)
    for name, parameter in roles.named_trainable("student").items():
        assert torch.equal(parameter.grad, expected[name])  # type: ignore[arg-type]


def test_recomputed_activations_use_the_role_of_the_loss() -> None:
    """Gradient checkpointing runs the forward pass again inside backward, when another role may have been active."""
    torch.manual_seed(0)
    network = tiny_denoiser(16)
    roles = build_roles(network, mode="lora", targets=("to_q", "to_v"), rank=2, alpha=4.0)
    perturb(roles, *TRAINED)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 16), "time_ids": torch.ones(1, 6)},
    }

    def gradients() -> list[Tensor]:
        with roles.use("student") as student:
            loss = student(**inputs).sample.square().mean()
        with roles.use("fake") as fake, torch.no_grad():
            fake(**inputs)
        roles.zero_grad()
        roles.backward("student", loss)
        return [parameter.grad.clone() for parameter in roles.trainable("student")]  # type: ignore[union-attr]

    plain = gradients()
    network.enable_gradient_checkpointing()
    for kept, recomputed in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(recomputed, kept)


@both_modes
@each_trained
def test_the_check_fires_when_another_role_made_the_loss(mode: Mode, role: Literal["student", "fake"]) -> None:
    roles = make(mode)
    other: Role = "fake" if role == "student" else "student"
    with pytest.raises(GradientRoutingError, match=f"of the {role} got no gradient"):
        roles.backward(role, output(roles, other).square().mean())


def test_the_check_fires_when_other_code_switches_the_adapter() -> None:
    roles = make("lora")
    with roles.use("student") as network:
        for module in network.modules():
            if isinstance(module, nn.Module) and hasattr(module, "set_adapter"):
                module.set_adapter(["fake"])
        loss = network(X, TIME, CONTEXT).square().mean()
    with pytest.raises(GradientRoutingError, match="student got no gradient"):
        roles.backward("student", loss)


@both_modes
def test_the_check_fires_on_a_stray_gradient(mode: Mode) -> None:
    roles = make(mode)
    loss = output(roles, "student").square().mean() + output(roles, "fake").square().mean()
    with pytest.raises(GradientRoutingError, match="student's update put gradients on the fake"):
        roles.backward("student", loss)


@both_modes
def test_the_check_fires_on_a_gradient_of_frozen_weights(mode: Mode) -> None:
    roles = make(mode)
    loss = output(roles, "student").square().mean()
    frozen = roles.frozen()[0]
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(GradientRoutingError, match="student's update put gradients on frozen weights"):
        roles.backward("student", loss)


@both_modes
def test_the_check_fires_when_one_parameter_got_none(mode: Mode) -> None:
    roles = make(mode)
    loss = output(roles, "student").square().mean()
    name, parameter = next(iter(roles.named_trainable("student").items()))
    loss.backward()
    parameter.grad = None
    with pytest.raises(GradientRoutingError, match=f"^1 of .* student got no gradient \\({name}\\)"):
        roles.check_gradients("student")


class Wasteful(nn.Module):
    """A network whose last layer has a part that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"picture": nn.Linear(3, 3), "text": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.blocks
        text = first["text"](x)
        last["text"](text)
        picture: Tensor = last["picture"](first["picture"](x) + text)
        return picture


@both_modes
@each_trained
def test_layers_that_nothing_reads_are_not_trained(mode: Mode, role: Literal["student", "fake"]) -> None:
    def train(unread: tuple[str, ...]) -> Roles:
        torch.manual_seed(0)
        roles = build_roles(
            Wasteful(), mode=mode, targets=("picture", "text.0", "text.1"), rank=2, alpha=2.0, unread=unread
        )
        optimizer = torch.optim.AdamW(roles.trainable(role), lr=0.1, weight_decay=0.1)
        with roles.use(role) as network:
            loss = network(torch.ones(2, 3)).square().mean()
        roles.backward(role, loss)
        optimizer.step()
        return roles

    with pytest.raises(GradientRoutingError, match=r"^4 of \d+ parameters of the .* got no gradient \(blocks\.1\.text"):
        train(())
    roles = train(("blocks.1.text",))
    assert len(roles.named_trainable(role)) == 8  # four layers, each with two matrices or a weight and a bias
    assert not any(name.startswith("blocks.1.text") for name in roles.named_trainable(role))
    with roles.use(role) as network, roles.use("teacher") as teacher:
        for ours, theirs in zip(
            network.get_submodule("blocks.1.text").parameters(),
            teacher.get_submodule("blocks.1.text").parameters(),
            strict=True,
        ):
            assert torch.equal(ours, theirs) and not ours.requires_grad


@both_modes
def test_use_nests_and_restores_the_role_before_it(mode: Mode) -> None:
    roles = make(mode)
    perturb(roles, *TRAINED)
    expected = {role: output(roles, role).detach() for role in ROLES}
    assert len({float(value.sum()) for value in expected.values()}) == 3
    with roles.use("student") as outer:
        with roles.use("fake") as inner:
            with roles.use("teacher") as innermost:
                assert torch.equal(innermost(X, TIME, CONTEXT), expected["teacher"])
            assert torch.equal(inner(X, TIME, CONTEXT), expected["fake"])
        assert torch.equal(outer(X, TIME, CONTEXT), expected["student"])


@both_modes
def test_use_restores_after_an_exception(mode: Mode) -> None:
    roles = make(mode)
    perturb(roles, *TRAINED)
    student = output(roles, "student").detach()
    with roles.use("student") as network:
        with pytest.raises(ZeroDivisionError), roles.use("fake"):
            raise ZeroDivisionError
        assert torch.equal(network(X, TIME, CONTEXT), student)


@both_modes
def test_a_fused_role_computes_the_same_and_leaves_no_trace(mode: Mode) -> None:
    roles = make(mode)
    perturb(roles, *TRAINED)
    frozen = [parameter.detach().clone() for parameter in roles.frozen()]
    for role in ROLES:
        expected = output(roles, role).detach()
        with pytest.raises(KeyError), torch.no_grad(), roles.fused(role) as network:
            torch.testing.assert_close(network(X, TIME, CONTEXT), expected, rtol=0, atol=1e-6)
            assert mode == "full" or not any(layer.lora_A for layer in _adapted(network) if not layer.disable_adapters)
            raise KeyError
        assert torch.equal(output(roles, role).detach(), expected)
    assert all(torch.equal(one, two) for one, two in zip(frozen, roles.frozen(), strict=True))
    step(roles, "student")  # gradients still reach the same parameters


def _adapted(network: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def test_fused_in_half_precision_is_the_rounded_sum() -> None:
    network = nn.ModuleDict({"to_q": nn.Linear(3, 5, bias=False)}).to(torch.bfloat16)
    roles = LoraRoles(network, targets=["to_q"], rank=2, alpha=4.0, seed=0)
    perturb(roles, "student")
    roles.sync("student")
    own = roles.in_network("student")
    (a,), (b,) = ([p.float() for n, p in own.items() if mark in n] for mark in ("lora_A", "lora_B"))
    (layer,) = _adapted(network)
    expected = (layer.weight.float() + 2.0 * b @ a).to(torch.bfloat16)
    with roles.fused("student"):
        assert torch.equal(layer.weight, expected)
    assert not torch.equal(layer.weight, expected)


@torch.no_grad()
def test_a_convolution_can_carry_an_adapter_and_be_fused_with_it() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(2, 5, 3, stride=2, padding=1)})
    roles = LoraRoles(network, targets=["conv"], rank=3, alpha=6.0, seed=0)
    perturb(roles, "student")
    (layer,) = _adapted(network)
    a, b = (roles.state("student")[f"conv.lora_{matrix}.weight"] for matrix in "AB")
    kernel = layer.weight + 2.0 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    expected = nn.functional.conv2d(X, kernel, layer.bias, stride=2, padding=1)
    with roles.use("student"):
        torch.testing.assert_close(network["conv"](X), expected, rtol=0, atol=1e-5)
    with roles.fused("student"):
        torch.testing.assert_close(layer.weight, kernel, rtol=0, atol=1e-6)
        torch.testing.assert_close(network["conv"](X), expected, rtol=0, atol=1e-5)


@both_modes
def test_outside_of_use_a_network_is_the_teacher(mode: Mode) -> None:
    network = Mixer()
    expected = network(X, TIME, CONTEXT)
    roles = build_roles(network, mode=mode, targets=LinearBackbone.lora_targets, rank=2, alpha=4.0)
    perturb(roles, *TRAINED)
    output(roles, "student")
    assert torch.equal(network(X, TIME, CONTEXT), expected)


@both_modes
def test_requires_grad_stays_as_it_is_through_every_switch(mode: Mode) -> None:
    roles = make(mode)

    def check() -> None:
        assert all(parameter.requires_grad for role in TRAINED for parameter in roles.trainable(role))
        assert not any(parameter.requires_grad for parameter in roles.frozen())

    check()
    for role in ROLES:
        with roles.use(role):
            check()
    check()


@both_modes
def test_student_and_fake_have_the_same_names_and_shapes(mode: Mode) -> None:
    roles = make(mode)
    student, fake = roles.named_trainable("student"), roles.named_trainable("fake")
    assert list(student) == list(fake)
    assert student
    assert [p.shape for p in student.values()] == [p.shape for p in fake.values()]
    assert not {id(p) for p in student.values()} & {id(p) for p in fake.values()}
    assert roles.named_trainable("teacher") == {}
    assert roles.trainable("teacher") == []


def test_full_names_are_those_of_the_network_and_lora_names_those_of_a_lora_file() -> None:
    assert list(make("full").state("student")) == list(copy_state(Mixer()))
    assert list(make("lora").state("student")) == [
        f"{layer}.lora_{matrix}.weight" for layer in ("to_q", "to_out.0") for matrix in "AB"
    ]


def test_lora_trains_far_fewer_weights_and_counts_the_base_once() -> None:
    roles, base = make("lora"), sum(p.numel() for p in Mixer().parameters())
    assert sum(p.numel() for p in roles.frozen()) == base
    assert sum(p.numel() for p in roles.trainable("student")) == 2 * (8 + 8) + 2 * (8 + 2)


def test_adapters_are_drawn_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = make("lora", seed=5), make("lora", seed=5), make("lora", seed=6)
    assert torch.equal(torch.rand(4), expected)
    assert_same(first.state("student"), again.state("student"))
    a = "to_q.lora_A.weight"
    assert not torch.equal(first.state("student")[a], other.state("student")[a])
    assert not torch.equal(first.state("student")[a], first.state("fake")[a])


@both_modes
def test_a_state_can_be_saved_and_loaded(mode: Mode) -> None:
    source, target = make(mode), make(mode)
    perturb(source, *TRAINED)
    target.load_state("student", source.state("student"))
    assert torch.equal(output(target, "student"), output(source, "student"))
    assert torch.equal(output(target, "fake"), output(target, "teacher"))
    assert not any(value.requires_grad for value in source.state("student").values())


@both_modes
def test_load_state_copies(mode: Mode) -> None:
    source, target = make(mode), make(mode)
    target.load_state("fake", source.state("fake"))
    perturb(source, "fake")
    assert not torch.equal(output(target, "fake"), output(source, "fake"))


@both_modes
def test_load_state_refuses_another_network(mode: Mode) -> None:
    roles = make(mode)
    state = {name: value.clone() for name, value in roles.state("fake").items()}
    first = next(iter(state))
    wrong_shape = state | {first: torch.zeros(3, 3)}
    missing = {name: value for name, value in state.items() if name != first}
    extra = state | {"more": torch.zeros(1)}
    for bad in (wrong_shape, missing, extra):
        with pytest.raises(RMDError, match="the weights for the fake belong to another network"):
            roles.load_state("fake", bad)
    assert_same(roles.state("fake"), state)
