"""Sampling a cascade with a tiny network: sizes, guidance, and samples that do not depend on their batch."""

from __future__ import annotations

import pytest
import torch
from helpers import PROMPTS, LinearBackbone, cascade, tiny_sdxl
from torch import Tensor

from research.sampling import sample_images
from rmd.core.plan import Crossing, Stage, Step, StepPlan, build_plan
from rmd.core.randomness import CounterNoise
from rmd.core.sampling import guided
from rmd.models.generate import predictor, sample_latents

plans = pytest.mark.parametrize("sides", [(32,), (16, 32), (8, 16, 32)])
guidances = pytest.mark.parametrize("guidance", [1.0, 2.5])
rules = pytest.mark.parametrize("rule", ["plain", "corrected", "block"])


@plans
@guidances
def test_a_cascade_ends_at_the_final_size_and_is_reproducible(sides: tuple[int, ...], guidance: float) -> None:
    backbone = tiny_sdxl()
    plan = cascade(backbone, sides=sides)
    one, two = (sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=1, guidance=guidance) for _ in range(2))
    assert one.shape == (len(PROMPTS), 3, 32, 32)
    assert torch.equal(one, two)
    assert not one.requires_grad
    assert float(one.abs().max()) <= 1
    assert float(one.std()) > 0
    other = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=2, guidance=guidance)
    assert not torch.equal(one, other)


@rules
def test_a_cascade_may_be_any_shape(rule: str) -> None:
    backbone = tiny_sdxl()
    plan = build_plan(
        backbone.schedule,
        steps=3,
        sides=[(16, 24), (32, 40)],
        thresholds=[-2.5],
        crossing=Crossing(rule=rule, beta=0.5),  # type: ignore[arg-type]
        multiple=backbone.size_multiple,
    )
    images = sample_images(backbone, backbone.denoiser, plan, PROMPTS[:1], seed=0)
    assert images.shape == (1, 3, 32, 40)
    assert bool(images.isfinite().all())


@plans
def test_a_sample_does_not_depend_on_its_batch(sides: tuple[int, ...]) -> None:
    backbone = tiny_sdxl()
    plan = cascade(backbone, sides=sides)
    together = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=1, guidance=2.0)
    in_pairs = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=1, guidance=2.0, batch_size=3)
    torch.testing.assert_close(in_pairs, together, rtol=0, atol=1e-5)
    for i, prompt in enumerate(PROMPTS):
        alone = sample_images(backbone, backbone.denoiser, plan, [prompt], seed=1, guidance=2.0, first=i)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)
    assert not torch.equal(together[0], together[1])


def test_progress_counts_the_samples() -> None:
    backbone, counted = LinearBackbone(), []
    prompts = [*PROMPTS, "a fifth"]
    plan = cascade(backbone)
    sample_images(backbone, backbone.denoiser, plan, prompts, seed=0, batch_size=2, progress=counted.append)
    assert counted == [2, 2, 1]


def test_guidance_mixes_two_calls() -> None:
    backbone = tiny_sdxl()
    plan = cascade(backbone)
    cond, null = backbone.encode(PROMPTS[:2]), backbone.null(2)
    step = plan.steps[-1]
    x = torch.randn(backbone.latent_shape(2, 32, 32), generator=torch.Generator().manual_seed(0))
    both = predictor(backbone, backbone.denoiser, plan, cond, null=null, guidance=3.0)(x, step)
    with_prompt = predictor(backbone, backbone.denoiser, plan, cond)(x, step)
    without = predictor(backbone, backbone.denoiser, plan, null)(x, step)
    for mixed, conditional, unconditional in zip(both, with_prompt, without, strict=True):
        torch.testing.assert_close(mixed, guided(conditional, unconditional, 3.0))
        assert not torch.allclose(mixed, conditional, atol=1e-4)


def test_steps_run_in_order_at_their_own_size_and_time() -> None:
    """The network is given each step's model time and stage, and the size of the final picture."""
    backbone = tiny_sdxl()
    plan = cascade(backbone, sides=(8, 16, 32))
    seen: list[tuple[tuple[int, ...], float, list[float]]] = []

    def spy(module: torch.nn.Module, arguments: tuple[Tensor, Tensor], kwargs: dict[str, dict[str, Tensor]]) -> None:
        x, timestep = arguments
        seen.append((tuple(x.shape), float(timestep[0]), kwargs["added_cond_kwargs"]["time_ids"][0].tolist()))

    evaluated: list[Step] = []
    handle = backbone.denoiser.register_forward_pre_hook(spy, with_kwargs=True)
    noise = CounterNoise(0, range(2))
    sample_latents(
        backbone,
        backbone.denoiser,
        plan,
        backbone.encode(PROMPTS[:2]),
        noise,
        on_step=lambda step, x0, x: evaluated.append(step),
    )
    handle.remove()
    assert evaluated == list(plan.steps)
    sides = [plan.stage_of(step).height for step in plan.steps]
    assert sides == [8, 16, 16, 32]
    assert seen == [
        ((2, 4, side // 2, side // 2), pytest.approx(step.model_time - 1), [32, 32, 0, 0, side, side])
        for step, side in zip(plan.steps, sides, strict=True)
    ]


def test_the_network_can_be_told_another_final_size() -> None:
    backbone = tiny_sdxl()
    plan = cascade(backbone, sides=(16,), steps=2)
    cond, told = backbone.encode(PROMPTS[:2]), Stage(1, 32, 32)
    results = [
        sample_latents(backbone, backbone.denoiser, plan, cond, CounterNoise(0, range(2)), final=final)
        for final in (None, plan.stages[0], told)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_sampling_crossing_is_used() -> None:
    backbone = LinearBackbone()

    def images(plan: StepPlan) -> Tensor:
        return sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=0)

    plan = cascade(backbone)
    changed = cascade(backbone, crossing=Crossing(beta=0.1))
    trained_otherwise = cascade(backbone, training_crossing=Crossing(beta=0.1))
    assert not torch.equal(images(plan), images(changed))
    assert torch.equal(images(plan), images(trained_otherwise))
