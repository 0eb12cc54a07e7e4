"""Hints in closed form, the parameters they reach, and checkpoints of a training with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from research.scenes.families import build_pixart
from research.scenes.hints import LabelHints, hidden_layer, normalised
from research.scenes.teacher import LOW, Batch, Curriculum, Latents, LatentSets, denoising_loss, train_teacher
from research.scenes.vae import LATENT_CHANNELS, build_vae
from rmd.models import Backbone

pytestmark = pytest.mark.usefixtures("quick_muon")

CAPTION = "a big red plain ball on the left, on sand"
UNHINTED = Curriculum(hint=0.0)
HINTED = Curriculum(hint=2.0, warmup=1)
WIDTH = 5


def seeded_learner() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_pixart(build_vae().eval().requires_grad_(False))


@pytest.fixture
def learner() -> Backbone:
    return seeded_learner()


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4, LATENT_CHANNELS, 8, 8, generator=g)
    return Batch(latents, [CAPTION] * 4, LOW, labels=torch.randn(4, 16, WIDTH, generator=g).half())


def test_the_hint_in_closed_form(learner: Backbone, batch: Batch) -> None:
    def loss(curriculum: Curriculum, step: int, hints: LabelHints | None) -> float:
        with torch.no_grad():
            return float(denoising_loss(learner, batch, step=step, curriculum=curriculum, hints=hints))

    with LabelHints(learner, WIDTH, seed=0) as hints:
        for parameter in hints.head.parameters():
            parameter.data.zero_()
        # A head with output zero has an error of one, the variance of standardised labels.
        assert loss(HINTED, 0, hints) == pytest.approx(loss(UNHINTED, 0, None) + 2 * (1 - 1 / 64), rel=3e-3)
        late = replace(HINTED, low_iterations=0, high_iterations=1)
        assert loss(late, 1, hints) == pytest.approx(loss(UNHINTED, 1, None))  # the final weight is zero


def test_a_perfect_head_has_no_loss(learner: Backbone, batch: Batch) -> None:
    seen: list[Tensor] = []
    layer, width = hidden_layer(learner)
    layer.register_forward_hook(lambda module, given, out: seen.append(out))
    with LabelHints(learner, width, seed=0) as hints, torch.no_grad():
        denoising_loss(learner, batch, step=0, curriculum=UNHINTED)
        states = seen[-1]
        scale = 1 / (states.flatten(0, 1).std(0) + 1e-3)
        hints.head.proj_out.weight.copy_(torch.diag(scale))
        hints.head.proj_out.bias.copy_(-states.flatten(0, 1).mean(0) * scale)
        assert float(hints.loss(states)) == pytest.approx(0, abs=1e-8)


def test_hints_reach_the_learner_up_to_its_layer(learner: Backbone, batch: Batch) -> None:
    with LabelHints(learner, WIDTH, seed=0) as hints:
        denoising_loss(learner, batch, step=0, curriculum=UNHINTED, hints=hints)
        assert batch.labels is not None
        hints.loss(batch.labels).backward()
    reached = {name for name, p in learner.denoiser.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {int(name.split(".")[1]) for name in reached if name.startswith("transformer_blocks")} == {0, 1, 2, 3}
    assert all(p.grad is not None for p in hints.head.parameters())


def test_the_hook_is_removed_with_the_context(learner: Backbone, batch: Batch) -> None:
    layer = hidden_layer(learner)[0]
    with LabelHints(learner, WIDTH, seed=0) as hints:
        assert len(layer._forward_hooks) == 1
    assert len(layer._forward_hooks) == 0
    assert batch.labels is not None
    with pytest.raises(RuntimeError, match="no output yet"):
        hints.loss(batch.labels)


def test_constant_labels_give_no_hint() -> None:
    result = normalised(torch.stack([torch.arange(6.0), torch.full((6,), 3.0)], 1))
    assert torch.allclose(result[:, 0].std(), torch.tensor(1.0), atol=1e-3) and not result[:, 1].any()


def test_a_training_uses_labels_and_saves_its_head(batch: Batch, tmp_path: Path) -> None:
    short = Curriculum(low_iterations=2, high_iterations=2, low_batch=4, high_batch=4, warmup=2)
    known = Latents(batch.latents.half(), batch.captions, labels=batch.labels)

    def train(sets: Latents, checkpoint: Path | None = None) -> dict[str, Tensor]:
        backbone = seeded_learner()
        data = LatentSets(sets, sets)
        train_teacher(backbone, data, short, checkpoint=checkpoint, every=2, log=lambda _: None)
        assert not hidden_layer(backbone)[0]._forward_hooks
        return backbone.denoiser.state_dict()

    whole, unknown = train(known, tmp_path / "whole.pt"), train(replace(known, labels=None))
    assert any(not torch.equal(unknown[name], value) for name, value in whole.items())
    kept = torch.load(tmp_path / "whole.pt", weights_only=True)["trained"]
    head = [value for name, value in kept.items() if name.endswith("proj_out.weight") and value.shape[0] == WIDTH]
    assert len(head) == 1
    assert not torch.equal(head[0], LabelHints(seeded_learner(), WIDTH, seed=0).head.proj_out.weight)
    resumed = train(known, tmp_path / "whole.pt")  # the training is complete
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
