"""Imitation across noise schedules, its hints in closed form, and the parameters that they reach."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from research.scenes import teacher
from research.scenes.families import FAMILIES, build_pixart, build_sd3, build_sdxl
from research.scenes.hints import hidden_layer
from research.scenes.imitation import Imitation, word_mask, word_states
from research.scenes.teacher import HIGH, LOW, Batch, Curriculum, denoising_loss
from research.scenes.vae import LATENT_CHANNELS, build_vae
from rmd.core.plan import Stage
from rmd.models import Backbone

CAPTIONS = ["a big red plain ball on the left, on sand"] * 4
UNHINTED = Curriculum(hint=0.0)
HINTED = Curriculum(hint=2.0, warmup=1)


@pytest.fixture
def imitated() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_sdxl(build_vae().eval().requires_grad_(False))


@pytest.fixture
def batch() -> Batch:
    latents = torch.randn(4, LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(latents, CAPTIONS, LOW)


def test_a_teacher_that_imitates_itself_has_no_loss(
    imitated: Backbone, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(imitation: Imitation | None) -> float:
        with torch.no_grad():
            return float(denoising_loss(imitated, batch, step=2, curriculum=UNHINTED, imitation=imitation))

    assert loss(None) > 0.1
    with Imitation(imitated, imitated, seed=0) as itself:
        monkeypatch.setattr(teacher, "IMITATED_BELOW", math.inf)
        assert loss(itself) == pytest.approx(0, abs=1e-9)
        monkeypatch.setattr(teacher, "IMITATED_BELOW", -math.inf)
        assert loss(itself) == pytest.approx(loss(None), rel=1e-5)  # the loss of the pictures themselves


def test_latents_and_times_are_converted_to_the_imitated_schedule(
    imitated: Backbone, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build_sd3(imitated.pipe.vae)
    noisy: list[tuple[Tensor, Tensor]] = []
    clean = torch.full(batch.latents.shape, 0.3)

    def predict(module: object, x: Tensor, t: Tensor, kwargs: object) -> tuple[Tensor, Tensor]:
        assert module is imitated.denoiser
        noisy.append((x, t))
        return clean, clean

    def forward(module: object, x: Tensor, timestep: Tensor, kwargs: object) -> Tensor:
        noisy.append((x, timestep.double()))
        sigma = (timestep / 1000).view(-1, 1, 1, 1)
        return (x - clean) / sigma  # eps - x0, with the eps that belongs to this x0

    monkeypatch.setattr(teacher, "IMITATED_BELOW", math.inf)
    monkeypatch.setattr(imitated, "predict", predict)
    monkeypatch.setattr(student, "forward", forward)
    with Imitation(imitated, student, seed=0) as imitation:
        loss = denoising_loss(student, batch, step=1, curriculum=UNHINTED, imitation=imitation)
    assert float(loss) == pytest.approx(0, abs=1e-8)
    (mine, my_times), (theirs, times) = noisy
    my_sigma = my_times / 1000
    ratio = (1 - my_sigma) / my_sigma  # the signal-to-noise ratio, the same for both
    assert torch.allclose(imitated.schedule.alpha(times) / imitated.schedule.sigma(times), ratio, rtol=1e-3)
    size = torch.hypot(1 - my_sigma, my_sigma).float().view(-1, 1, 1, 1)  # that of the other schedule is one
    assert torch.allclose(theirs.float(), mine / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("stage", [LOW, HIGH], ids=["low", "high"])
def test_the_hidden_layer_has_half_the_resolution_of_the_latents(imitated: Backbone, family: str, stage: Stage) -> None:
    backbone = FAMILIES[family](imitated.pipe.vae)
    layer, width = hidden_layer(backbone)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda m, given, out: seen.append(out[-1] if isinstance(out, tuple) else out))
    noisy = torch.zeros(backbone.latent_shape(1, stage.height, stage.width))
    with torch.no_grad():
        kwargs = backbone.stage_cond(backbone.encode(CAPTIONS[:1]), stage, HIGH)
        backbone.forward(backbone.denoiser, noisy, torch.tensor([500.0]), kwargs)
    side = noisy.shape[-1] // 2
    assert seen[0].shape == ((1, width, side, side) if family == "sdxl" else (1, side * side, width))


def test_the_hint_in_closed_form(imitated: Backbone, batch: Batch) -> None:
    student = build_pixart(imitated.pipe.vae)

    def loss(imitation: Imitation, curriculum: Curriculum) -> float:
        with torch.no_grad():
            return float(denoising_loss(student, batch, step=0, curriculum=curriculum, imitation=imitation))

    with Imitation(imitated, student, seed=0) as imitation:
        plain = loss(imitation, UNHINTED)
        for parameter in imitation.head.parameters():
            parameter.data.zero_()
        # Heads with output zero have an error of one per standardised state: the layer and the words.
        hint = float(imitation.hint_loss().detach())
        assert hint == pytest.approx(2, abs=0.08)
        assert loss(imitation, HINTED) == pytest.approx(plain + 2 * hint, rel=1e-4)
        late = replace(HINTED, low_iterations=0, high_iterations=1)
        with torch.no_grad():
            result = denoising_loss(student, batch, step=1, curriculum=late, imitation=imitation)
            bare = denoising_loss(student, batch, step=1, curriculum=UNHINTED, imitation=imitation)
        assert float(result) == pytest.approx(float(bare), rel=1e-5)  # at the end of the run, the weight is zero


@pytest.mark.parametrize("family", ["sdxl", "pixart", "sd3"])
@torch.no_grad()
def test_words_of_both_encoders_are_aligned(imitated: Backbone, family: str) -> None:
    learner = FAMILIES[family](imitated.pipe.vae)
    captions = ["a red plain ball above a white dotted star, at night", CAPTIONS[0]]
    result, spoken = word_states(learner, learner.encode(captions)), word_mask(imitated, captions)
    theirs = word_states(imitated, imitated.encode(captions))
    assert result.shape[:2] == theirs.shape[:2] == spoken.shape
    assert spoken.sum(1).tolist() == [len(text.replace(",", " ,").split()) + 1 for text in captions]  # and end token
    one = word_states(learner, learner.encode([captions[0].replace("star", "ring")]))[0]
    changed = (one - result[0]).abs().amax(-1) > 1e-4
    place = captions[0].split().index("star,")
    assert bool(changed[place])
    # CLIP attends from left to right, and the positions of later words are the same in all encoders.
    assert family != "sdxl" or changed.tolist() == [False] * place + [True] * (len(changed) - place)


def test_a_dropped_caption_gives_no_hint(imitated: Backbone, batch: Batch) -> None:
    student = build_pixart(imitated.pipe.vae)
    never = replace(UNHINTED, drop_caption=1.0)
    with Imitation(imitated, student, seed=0) as imitation:
        denoising_loss(student, batch, step=0, curriculum=never, imitation=imitation)
        imitation.hint_loss().backward()
        layer, text = imitation.head
    assert all(p.grad is None for p in text.parameters()) and all(p.grad is not None for p in layer.parameters())


def test_perfect_heads_have_no_loss(imitated: Backbone, batch: Batch) -> None:
    layer = hidden_layer(imitated)[0]
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda m, given, out: seen.append(out))
    always = replace(UNHINTED, drop_caption=0.0)
    with Imitation(imitated, imitated, seed=0) as itself, torch.no_grad():
        denoising_loss(imitated, batch, step=2, curriculum=always, imitation=itself)
        spoken = word_states(imitated, imitated.encode(CAPTIONS))[word_mask(imitated, CAPTIONS)]
        for head, states in zip(itself.head, (seen[-1].transpose(0, 1).flatten(1).T, spoken), strict=True):
            scale = 1 / (states.std(0) + 1e-3)
            head.proj_out.weight.copy_(torch.diag(scale))
            head.proj_out.bias.copy_(-states.mean(0) * scale)
        assert float(itself.hint_loss()) == pytest.approx(0, abs=1e-8)


def test_hints_reach_the_learner_up_to_its_layer_and_the_head_alone(imitated: Backbone, batch: Batch) -> None:
    student = build_pixart(imitated.pipe.vae)
    with Imitation(imitated, student, seed=0) as imitation:
        denoising_loss(student, batch, step=0, curriculum=UNHINTED, imitation=imitation)
        imitation.hint_loss().backward()
    reached = {name for name, p in student.denoiser.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    depths = {int(name.split(".")[1]) for name in reached if name.startswith("transformer_blocks")}
    assert depths == {0, 1, 2, 3}
    assert not any(name.startswith("proj_out") for name in reached)
    assert all(p.grad is not None for p in imitation.head.parameters())
    assert any(p.grad is not None for encoder in student.text_encoders for p in encoder.parameters())
    assert all(p.grad is None for p in imitated.denoiser.parameters())


def test_the_hooks_are_removed_with_the_context(imitated: Backbone, batch: Batch) -> None:
    student = build_sd3(imitated.pipe.vae)
    layers = [hidden_layer(backbone)[0] for backbone in (imitated, student)]
    with Imitation(imitated, student, seed=0) as imitation:
        assert [len(layer._forward_hooks) for layer in layers] == [1, 1]
        denoising_loss(student, batch, step=0, curriculum=HINTED, imitation=imitation)
    assert [len(layer._forward_hooks) for layer in layers] == [0, 0]
    with pytest.raises(RuntimeError, match="no query yet"):
        imitation.hint_loss()


def test_heads_depend_on_their_seed_only(imitated: Backbone) -> None:
    first, second, third = (
        torch.cat([p.flatten() for p in Imitation(imitated, imitated, seed=seed).head.parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)
