"""DMD2's adversarial part: which weights get a gradient, what the head learns, and that it is off by default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import TINY
from helpers import PROMPTS, LinearBackbone, cascade, copy_state, make_batch, make_method, tiny_sdxl

from rmd.common.errors import RMDError
from rmd.core.plan import Crossing
from rmd.methods import DMD2, Batch, Real
from rmd.methods.adversarial import HEAD, Head, captured_output, new_head
from rmd.models import Backbone
from rmd.models.roles import TRAINED

FRESH = Crossing(within="fresh")
both_modes = pytest.mark.parametrize("mode", ["lora", "full"])
image_families = pytest.mark.parametrize("family", sorted(set(TINY) - {"wan"}))


def make(backbone: Backbone, mode: str = "full", *, weight: float = 0.5, **config: Any) -> DMD2:
    plan = cascade(backbone, sides=(32,), crossing=FRESH, training_crossing=FRESH, multiple=backbone.size_multiple)
    method = make_method(backbone, plan, name="dmd2", mode=mode, tau="all", adversarial=weight, **config)
    assert isinstance(method, DMD2)
    return method


def batch_with_images(method: DMD2, *, iteration: int = 0, count: int = 2, level: float = 1.0) -> Batch:
    with torch.no_grad():
        batch = make_batch(method.backbone, count=count, iteration=iteration)
    shape = method.latent_shape(count, method.plan.match_stage)
    x0 = level + 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(iteration))
    return Batch(iteration, batch.cond, batch.null, batch.noise, Real(x0, batch.cond))


def test_a_head_gives_equal_logits_for_maps_and_tokens_and_depends_on_its_seed_only() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (new_head(6, seed=seed, device=torch.device("cpu")) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    maps = torch.randn(3, 6, 4, 5)
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(one(maps), two(tokens)) and one(maps).shape == (3,)
    assert not torch.equal(one(maps), other(maps))
    halves = one(torch.cat([maps[..., :2, :], maps[..., 2:, :]]))  # a mean over positions
    torch.testing.assert_close((halves[:3] + halves[3:]) / 2, one(maps))


@image_families
def test_every_image_family_has_features_of_the_stated_width(family: str) -> None:
    backbone = TINY[family]()
    layer, width = backbone.features(backbone.denoiser)
    stage = cascade(backbone, sides=(32,), multiple=backbone.size_multiple).stages[0]
    x = torch.randn(backbone.latent_shape(2, 32, 32))
    kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), stage, stage)
    with captured_output(layer) as outputs, torch.no_grad():
        backbone.predict(backbone.denoiser, x, 500.0, kwargs)
        assert Head(width)(outputs[-1]).shape == (2,)
    backbone.predict(backbone.denoiser, x, 500.0, kwargs)
    assert len(outputs) == 1  # the hook is gone


@both_modes
@image_families
def test_each_update_reaches_its_own_network_only(family: str, mode: str) -> None:
    method = make(TINY[family](), mode)
    batch, step = batch_with_images(method), method.plan.steps[1]
    names = method.roles.named_trainable("fake")
    assert sum(HEAD in name for name in names) == 6 and not any(
        HEAD in n for n in method.roles.named_trainable("student")
    )
    for role in TRAINED:
        assert all(parameter.requires_grad for parameter in method.roles.trainable(role))
    method.roles.zero_grad()
    loss, rollout = method.student_loss(batch, step)
    method.roles.backward("student", loss)  # asserts that neither the fake score nor its head gets a gradient
    method.roles.zero_grad()
    method.roles.backward("fake", method.fake_loss(batch, rollout))
    assert all(parameter.grad is not None for name, parameter in names.items() if HEAD in name)


@both_modes
def test_the_students_gradient_is_that_of_both_losses(mode: str) -> None:
    """The adversarial part alone is d(-log D)/dy through the frozen head, times its weight."""
    flat = {}
    for weight in (0.0, 0.5, 1.0):
        method = make(tiny_sdxl(), mode, weight=weight)
        with torch.no_grad():
            for parameter in method.roles.trainable("fake"):
                parameter += 0.02
        if method.head is not None:
            with torch.no_grad():
                for parameter in method.head.parameters():  # the same head for every weight
                    parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        method.roles.zero_grad()
        loss, _ = method.student_loss(batch_with_images(method), method.plan.steps[0])
        method.roles.backward("student", loss)
        flat[weight] = torch.cat([p.grad.flatten() for p in method.roles.trainable("student") if p.grad is not None])
    adversarial = flat[1.0] - flat[0.0]
    assert float(adversarial.norm()) > 0
    assert float((flat[0.5] - flat[0.0] - 0.5 * adversarial).norm()) < 1e-3 * float(adversarial.norm())


def test_a_weight_of_zero_changes_nothing() -> None:
    plain, zero = make(tiny_sdxl(), weight=0.0), make(tiny_sdxl(), weight=0.0, adversarial_fake=7.0)
    assert (
        plain.head is None and plain.roles.named_trainable("fake").keys() == zero.roles.named_trainable("fake").keys()
    )
    losses = []
    for method in (plain, zero):
        batch = make_batch(method.backbone)
        loss, rollout = method.student_loss(batch, method.plan.steps[0])
        losses.append((loss.item(), method.fake_loss(batch, rollout).item()))
    assert losses[0] == losses[1]


@pytest.mark.heavy
def test_the_head_learns_to_distinguish_images_and_the_student_follows() -> None:
    """The images are brighter than the samples: the head learns that, and -log D makes the samples brighter."""
    method = make(tiny_sdxl(), adversarial_fake=1.0)
    head, step = method.head, method.plan.steps[0]
    assert head is not None
    optimiser = torch.optim.Adam(method.roles.trainable("fake"), lr=6e-3)
    for iteration in range(20):
        batch = batch_with_images(method, iteration=iteration, count=4, level=2.0)
        with torch.no_grad():
            _, rollout = method.student_loss(batch, step)
        method.roles.zero_grad()
        method.roles.backward("fake", method.fake_loss(batch, rollout))
        optimiser.step()
    batch = batch_with_images(method, iteration=99, count=4, level=2.0)
    assert batch.real is not None
    _, rollout = method.student_loss(batch, step)
    y = rollout.y.clone().requires_grad_()
    with method.roles.use("fake") as fake, method.roles.held("fake"):
        real = head(method.features(fake, batch.real.x0, batch.real.cond, batch, "a"))
        ours = head(method.features(fake, y, batch.cond, batch, "b"))
        (gradient,) = torch.autograd.grad(torch.nn.functional.softplus(-ours).mean(), y)
    assert real.mean().item() > ours.mean().item() + 1
    assert float((gradient * (batch.real.x0 - rollout.y)).sum()) < 0  # descent moves samples towards the images


def test_the_calls_of_the_adversarial_loss_are_counted() -> None:
    method = make(tiny_sdxl())
    batch, step = batch_with_images(method), method.plan.steps[2]
    _, rollout = method.student_loss(batch, step)
    assert method.evaluations["fake"] == 2 and method.evaluations["student"] == 3
    method.fake_loss(batch, rollout)
    assert method.evaluations["fake"] == 2 + 3


def test_held_parameters_are_released_after_an_error() -> None:
    method = make(tiny_sdxl(), "lora")
    before = copy_state(method.backbone.denoiser)
    with pytest.raises(KeyError), method.roles.use("fake"), method.roles.held("fake"):
        assert not any(p.requires_grad for p in method.roles.in_network("fake").values())
        raise KeyError
    assert all(p.requires_grad for role in TRAINED for p in method.roles.in_network(role).values())
    assert before.keys() == copy_state(method.backbone.denoiser).keys()


def test_missing_images_and_unknown_networks_are_refused() -> None:
    method = make(tiny_sdxl())
    batch = make_batch(method.backbone)
    _, rollout = method.student_loss(batch, method.plan.steps[0])
    with pytest.raises(RMDError, match=r"^method\.adversarial needs real images, and the batch has none"):
        method.fake_loss(batch, rollout)
    with pytest.raises(RMDError, match=r"^method\.adversarial does not support the family toy: set it to 0$"):
        make(LinearBackbone())
