"""The teacher: its curriculum, data and loss, and a training that resumes bit for bit."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from research.scenes.checkpoint import read_whole
from research.scenes.families import build_pixart, build_sdxl
from research.scenes.hints import LabelHints, hidden_layer
from research.scenes.imitation import Imitation
from research.scenes.teacher import (
    HIGH,
    LOW,
    WRONG_CAPTIONS,
    Batch,
    BatchSchedule,
    Curriculum,
    Latents,
    LatentSets,
    degrade,
    denoising_loss,
    emphasis,
    prediction_target,
    still_latents,
    train_teacher,
    vista_latents,
)
from research.scenes.vae import LATENT_CHANNELS, build_vae
from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule, Prediction, to_x0_eps
from rmd.models import Backbone, Cond, load_backbone
from rmd.worlds.dataset import SceneSet
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, NONE
from rmd.worlds.still.render import object_masks
from rmd.worlds.vistas.dataset import make_vistas

pytestmark = pytest.mark.usefixtures("quick_muon")

SHORT = Curriculum(low_iterations=2, high_iterations=2, low_batch=8, high_batch=8, warmup=2)
QUICK = replace(SHORT, low_batch=2, high_batch=2)


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return make_scenes(64, seed=5, training=True)


def seeded_teacher() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_sdxl(build_vae().eval().requires_grad_(False))


@pytest.fixture(scope="module")
def untrained() -> Backbone:
    return seeded_teacher()


@pytest.fixture(scope="module")
def latents(untrained: Backbone, scenes: SceneSet) -> LatentSets:
    return still_latents(untrained.pipe.vae, scenes, scenes, seed=0)


@pytest.fixture(scope="module")
def trained(latents: LatentSets) -> tuple[Backbone, list[str]]:
    backbone, lines = seeded_teacher(), list[str]()
    train_teacher(backbone, latents, QUICK, log=lines.append)
    return backbone, lines


def weights(backbone: Backbone) -> dict[str, Tensor]:
    parts = {"denoiser": backbone.denoiser, "text": backbone.pipe.text_encoder_2}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def test_the_learning_rate_in_closed_form() -> None:
    usual = Curriculum(low_iterations=40, high_iterations=60, warmup=10, decay=0.5)
    assert usual.iterations == 100
    assert [usual.lr_factor(step) for step in (0, 4, 9, 10, 49, 50)] == pytest.approx([0.1, 0.5, 1, 1, 1, 1])
    assert [usual.lr_factor(step) for step in (75, 99, 100, 200)] == pytest.approx([0.5, 0.02, 0, 0])


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_the_target_is_converted_back_to_x0_and_eps(prediction: Prediction) -> None:
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    angle = torch.tensor([0.4, 1.1]).view(2, 1, 1, 1)
    alpha, sigma = (1 - angle / 2, angle / 2) if prediction == "flow" else (angle.cos(), angle.sin())
    target = prediction_target(x0, eps, alpha, sigma, prediction)
    read = to_x0_eps(target, alpha * x0 + sigma * eps, alpha.flatten(), sigma.flatten(), prediction)
    assert torch.allclose(read[0], x0, atol=1e-5) and torch.allclose(read[1], eps, atol=1e-5)


def test_the_loss_of_a_perfect_network_is_zero(untrained: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    latents = torch.zeros(4, LATENT_CHANNELS, 8, 8)

    def forward(module: object, x: Tensor, timestep: Tensor, kwargs: object) -> Tensor:
        seen["t"] = timestep
        # x0 is zero, so x_t = sigma eps and v = alpha eps.
        times = timestep.double() + 1
        alpha, sigma = untrained.schedule.alpha(times), untrained.schedule.sigma(times)
        return (alpha / sigma).float().view(-1, 1, 1, 1) * x

    monkeypatch.setattr(untrained, "forward", forward)
    captions = ["a big red plain ball on the left, on sand"] * 4
    loss = denoising_loss(untrained, Batch(latents, captions, LOW), step=3, curriculum=SHORT)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert ((seen["t"] + 1) / 250).long().sort().values.tolist() == [0, 1, 2, 3]  # stratified: one time per quarter


def test_a_fraction_of_the_loss_is_on_the_objects(untrained: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    curriculum = replace(SHORT, objects=0.6)
    objects = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    objects[0, :, :2], objects[1, :, 3, 3], objects[2] = True, True, True  # none in the last
    error = torch.rand(4, LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))

    def forward(module: object, x: Tensor, timestep: Tensor, kwargs: object) -> Tensor:
        times = timestep.double() + 1
        alpha, sigma = untrained.schedule.alpha(times), untrained.schedule.sigma(times)
        return (alpha / sigma).float().view(-1, 1, 1, 1) * x + error  # x0 is zero, so v = alpha eps

    monkeypatch.setattr(untrained, "forward", forward)
    captions = ["a big red plain ball on the left, on sand"] * 4
    batch = Batch(torch.zeros_like(error), captions, LOW, objects)
    loss = denoising_loss(untrained, batch, step=3, curriculum=curriculum)
    squared = error.square()
    inside = [squared[0, :, :2].mean(), squared[1, :, 3, 3].mean(), squared[2].mean(), torch.tensor(0.0)]
    expected = (0.4 * squared.mean() + 0.6 * torch.stack(inside).mean()).item()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    plain = denoising_loss(untrained, batch, step=3, curriculum=SHORT)
    assert float(plain) == pytest.approx(float(squared.mean()), rel=1e-4)


def test_weights_of_objects_have_a_mean_of_one() -> None:
    objects = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    weights = emphasis(objects, 0.6)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(5))
    assert torch.allclose((weights * objects).mean((1, 2, 3)), 0.6 + 0.4 * objects.float().mean((1, 2, 3)))
    assert torch.equal(emphasis(objects, 0.0), torch.ones(5, 1, 8, 8))


def test_times_are_uniform_in_time_or_in_the_share_of_noise(untrained: Backbone) -> None:
    u = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    noise = replace(SHORT, uniform_in="noise")
    assert torch.equal(SHORT.times(untrained.schedule, u), 1000 * u)
    times = noise.times(untrained.schedule, u)
    alpha, sigma = untrained.schedule.alpha(times), untrained.schedule.sigma(times)
    assert torch.allclose(sigma / (alpha + sigma), u, atol=1e-6)
    assert not torch.allclose(times, 1000 * u, atol=20)
    flow = FlowSchedule(shift=3.0)
    assert torch.allclose(noise.times(flow, u), 1000 * u)
    ends = noise.times(untrained.schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [1.0, 1000.0]


def test_captions_are_dropped_for_guidance(untrained: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Cond] = []
    usual = untrained.stage_cond

    def stage_cond(cond: Cond, *stages: object) -> dict[str, object]:
        given.append(cond)
        return usual(cond, *stages)  # type: ignore[arg-type]

    monkeypatch.setattr(untrained, "stage_cond", stage_cond)
    monkeypatch.setattr(untrained, "forward", lambda module, x, timestep, kwargs: x)
    captions = ["a big red plain ball on the left, on sand"] * 200
    with torch.no_grad():
        curriculum = replace(SHORT, drop_caption=0.3)
        batch = Batch(torch.zeros(200, LATENT_CHANNELS, 2, 2), captions, LOW)
        denoising_loss(untrained, batch, step=0, curriculum=curriculum)
        full, null = untrained.encode(captions[:1]), untrained.null(1)
    for name, tensor in given[0].tensors.items():
        dropped = torch.isclose(tensor, null.tensors[name], atol=1e-6).flatten(1).all(1)
        kept = torch.isclose(tensor, full.tensors[name], atol=1e-5).flatten(1).all(1)
        assert bool((dropped ^ kept).all())
        assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.1)


def test_degraded_pictures_vary_and_stay_in_range() -> None:
    images = make_scenes(200, seed=1, training=True, size=16).pixels(torch.arange(200))
    result = degrade(images, torch.Generator().manual_seed(0))
    assert result.shape == images.shape
    assert float(result.min()) >= -1 and float(result.max()) <= 1
    change = (result - images).abs().mean((1, 2, 3))
    # Unchanged with probability 0.5 (blur) x 0.5 (colours) x 0.6 (noise).
    assert float((change < 1e-6).float().mean()) == pytest.approx(0.15, abs=0.08)
    assert float(change.max()) > 0.15
    tint = (result - images).mean((2, 3))
    recoloured = (tint.abs().amax(1) > 0.02).float().mean()
    assert float(recoloured) == pytest.approx(0.5, abs=0.12)
    again = degrade(images, torch.Generator().manual_seed(0))
    assert torch.equal(again, result)


def fake_scenes(count: int) -> SceneSet:
    images = (torch.arange(count) % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return SceneSet(images, torch.zeros(count, 9), [str(i) for i in range(count)], torch.zeros(count, 2, 3))


def test_some_captions_of_the_low_resolution_are_wrong(untrained: Backbone) -> None:
    count = 3000
    data = still_latents(untrained.pipe.vae, fake_scenes(64), fake_scenes(count), seed=0)
    wrong = sum(text != str(i) for i, text in enumerate(data.low.captions)) / count
    assert wrong == pytest.approx(WRONG_CAPTIONS, abs=0.03)
    assert data.high.captions == [str(i) for i in range(64)]
    again = still_latents(untrained.pipe.vae, fake_scenes(64), fake_scenes(count), seed=0)
    assert again.low.captions == data.low.captions and torch.equal(again.low.values, data.low.values)


def test_batches_follow_the_curriculum(untrained: Backbone) -> None:
    curriculum = replace(SHORT, low_iterations=5, high_iterations=400, low_share=0.25)
    data = still_latents(untrained.pipe.vae, fake_scenes(32), fake_scenes(32), seed=0)
    order = BatchSchedule(data, curriculum)
    stages = [order.batch(step).stage for step in range(curriculum.iterations)]
    assert stages[:5] == [LOW] * 5
    assert stages[5:].count(LOW) / 400 == pytest.approx(0.25, abs=0.07)
    for step in (200, 3):  # also backwards
        result = order.batch(step)
        assert result.stage == stages[step]
        side = result.stage.height // 16  # pictures of 8 px
        assert result.latents.shape == (8, LATENT_CHANNELS, side, side)
        assert len(result.captions) == 8 and result.latents.dtype == torch.float32
        fresh = BatchSchedule(data, curriculum).batch(step)
        assert torch.equal(fresh.latents, result.latents) and fresh.captions == result.captions


def test_first_frames_appear_in_the_second_phase() -> None:
    def clips(*shape: int) -> Latents:
        return Latents(torch.randn(32, *shape, generator=torch.Generator().manual_seed(0)), ["" for _ in range(32)])

    data = LatentSets(clips(4, 5, 8, 8), clips(4, 5, 4, 4), clips(4, 1, 8, 8))
    curriculum = replace(SHORT, low_iterations=5, high_iterations=400, low_share=0.2, still_batch=12, still_share=0.5)
    result = [BatchSchedule(data, curriculum).batch(step) for step in range(curriculum.iterations)]
    shapes = Counter((batch.stage, tuple(batch.latents.shape)) for batch in result[5:])
    low, still, whole = (LOW, (8, 4, 5, 4, 4)), (HIGH, (12, 4, 1, 8, 8)), (HIGH, (8, 4, 5, 8, 8))
    assert set(shapes) == {low, still, whole} and all(batch.stage == LOW for batch in result[:5])
    assert [shapes[kind] / 400 for kind in (low, still, whole)] == pytest.approx([0.2, 0.5, 0.3], abs=0.07)
    without = replace(curriculum, still_share=0.0)
    assert all(BatchSchedule(data, without).batch(step).latents.shape[2] == 5 for step in range(50))
    with pytest.raises(ValueError, match="first frames, but there are none"):
        BatchSchedule(replace(data, still=None), curriculum)


def test_the_masks_of_vistas_cover_their_objects(untrained: Backbone) -> None:
    clean, poor = (make_vistas(8, seed=1, training=True, poor=each) for each in (False, True))
    data = vista_latents(untrained.pipe.vae, clean, poor, seed=0)
    assert data.low.objects is None and data.high.objects is not None
    side = data.high.values.shape[-1]
    assert data.high.objects.shape == (8, 1, side, side)
    for mask, places in zip(data.high.objects[:, 0], clean.places, strict=True):
        row, column = (mask.nonzero().double().mean(0) + 0.5) * 128 / side
        shown = places[places[:, 2] > 0]
        middle = (shown * shown[:, 2:].square()).sum(0) / shown[:, 2].square().sum()
        assert abs(float(column - middle[0])) < 3 and abs(float(row - middle[1])) < 3


def test_a_batch_pairs_pictures_with_their_captions(untrained: Backbone) -> None:
    clean = fake_scenes(32)
    data = still_latents(untrained.pipe.vae, clean, clean, seed=0)
    result = BatchSchedule(data, replace(SHORT, low_iterations=0, low_share=0.0)).batch(0)
    assert torch.equal(result.latents, data.high.values[[int(text) for text in result.captions]].float())


def test_pairs_are_shown_more_often_than_single_objects(latents: LatentSets, scenes: SceneSet) -> None:
    second = scenes.attributes[:, ATTRIBUTE_NAMES.index("shape_b")]
    pairs = {text for text, shape in zip(scenes.captions, second.tolist(), strict=True) if shape != NONE}
    usual = Counter(scenes.captions)
    expected = Counter({text: times * (3 if text in pairs else 1) for text, times in usual.items()})
    epoch = expected.total()
    curriculum = replace(SHORT, low_iterations=0, high_iterations=epoch, low_share=0.0, high_batch=1, pairs=3)
    order = BatchSchedule(latents, curriculum)
    assert Counter(text for step in range(epoch) for text in order.batch(step).captions) == expected
    assert 10 < len(pairs) < 30


def test_a_batch_has_the_masks_of_its_objects(latents: LatentSets, scenes: SceneSet) -> None:
    data = latents
    for low, stage, sets in ((0, HIGH, data.high), (9, LOW, data.low)):
        result = BatchSchedule(data, replace(SHORT, low_iterations=low, low_share=0.0)).batch(0)
        index = [int((sets.values.float() == picture).flatten(1).all(1).nonzero()[0]) for picture in result.latents]
        assert result.stage == stage and result.objects is not None and result.labels is None
        assert torch.equal(result.objects, object_masks(scenes.places[index], result.latents.shape[-1]))
    unknown = replace(data, high=replace(data.high, objects=None))
    assert BatchSchedule(unknown, replace(SHORT, low_iterations=0, low_share=0.0)).batch(0).objects is None


def test_frames_of_a_clip_share_their_degradation_except_for_the_noise() -> None:
    frames = torch.full((20 * 4, 3, 8, 8), 0.2)
    result = degrade(frames, torch.Generator().manual_seed(0), each=4).unflatten(0, (20, 4)).mean((-1, -2))
    assert float(result.std(1).max()) < 0.05 < float(result[:, 0].std(0).min())


def test_training_changes_denoiser_and_text_encoder_alone(
    trained: tuple[Backbone, list[str]], untrained: Backbone
) -> None:
    backbone, lines = trained
    before, after = weights(untrained), weights(backbone)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("denoiser") for name in changed) and any(name.startswith("text") for name in changed)
    assert len(changed) > 0.9 * len(after)
    for name, value in backbone.pipe.vae.state_dict().items():
        assert torch.equal(value, untrained.pipe.vae.state_dict()[name])
    assert not backbone.denoiser.training
    assert not any(parameter.requires_grad for parameter in backbone.denoiser.parameters())
    assert math.isfinite(float(re.findall(r"^teacher step 0/4 loss ([\d.]+) \d+s$", lines[0])[0]))


@contextmanager
def killed_at_step_3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Killed(Exception):
        pass

    def kill(
        backbone: Backbone, batch: Batch, *, step: int, curriculum: Curriculum, imitation: Imitation | None,
        hints: LabelHints | None,
    ) -> Tensor:  # fmt: skip
        if step == 3:
            raise Killed
        return denoising_loss(backbone, batch, step=step, curriculum=curriculum, imitation=imitation, hints=hints)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("research.scenes.teacher.denoising_loss", kill)
        yield


def test_a_resumed_training_is_the_same_to_the_last_bit(
    trained: tuple[Backbone, list[str]], latents: LatentSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "teacher.pt"
    with killed_at_step_3(monkeypatch):
        train_teacher(seeded_teacher(), latents, QUICK, checkpoint=path, every=2, log=lambda _: None)
    assert read_whole(path)["step"] == 2
    resumed = seeded_teacher()
    train_teacher(resumed, latents, QUICK, checkpoint=path, every=2, log=lambda _: None)
    for name, value in weights(trained[0]).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_an_imitating_training_resumes_with_its_head(
    untrained: Backbone, latents: LatentSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learner() -> Backbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return build_pixart(untrained.pipe.vae)

    def train(curriculum: Curriculum, path: Path | None = None) -> dict[str, Tensor]:
        backbone = learner()
        train_teacher(backbone, latents, curriculum, imitated=untrained, checkpoint=path, every=2, log=lambda _: None)
        assert not hidden_layer(backbone)[0]._forward_hooks and not hidden_layer(untrained)[0]._forward_hooks
        return backbone.denoiser.state_dict()

    whole, path = train(QUICK), tmp_path / "teacher.pt"
    with killed_at_step_3(monkeypatch):
        train(QUICK, path)
    kept = read_whole(path)["trained"]
    # The head is trained and saved.
    head = next(value for name, value in kept.items() if name.endswith("proj_out.weight") and value.shape == (96, 160))
    assert not torch.equal(head, Imitation(untrained, learner(), seed=0).head[0].proj_out.weight)
    resumed = train(QUICK, path)
    unhinted = train(replace(QUICK, hint=0.0))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert any(not torch.equal(unhinted[name], value) for name, value in whole.items())


def test_the_average_lags_behind_the_weights(trained: tuple[Backbone, list[str]], latents: LatentSets) -> None:
    last = seeded_teacher()
    train_teacher(last, latents, replace(QUICK, ema=0.0), log=lambda _: None)
    start, mean, end = (weights(backbone) for backbone in (seeded_teacher(), trained[0], last))
    name = max(end, key=lambda n: float((end[n] - start[n]).abs().sum()))
    assert 0 < float((mean[name] - start[name]).norm()) < float((end[name] - start[name]).norm())


def test_a_checkpoint_of_another_network_is_refused(latents: LatentSets, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    torch.save({"step": 1, "seconds": 0.0, "trained": {}, "averaged": {}, "optimizer": {}}, path)
    with pytest.raises(RMDError, match="is a checkpoint of another training"):
        train_teacher(seeded_teacher(), latents, QUICK, checkpoint=path, log=lambda _: None)


def test_the_saved_pipeline_is_an_ordinary_one(trained: tuple[Backbone, list[str]], tmp_path: Path) -> None:
    backbone, _ = trained
    backbone.pipe.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        pipe = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(pipe) is StableDiffusionXLPipeline
    pipe.set_progress_bar_config(disable=True)
    prompt = "a big red striped ball on the left, on sand"
    image = pipe(prompt, num_inference_steps=1, guidance_scale=2.0, height=64, width=64, output_type="pt").images
    assert image.shape == (1, 3, 64, 64) and bool(image.isfinite().all())
    loaded = load_backbone(tmp_path)
    for name, value in weights(backbone).items():
        assert torch.equal(weights(loaded)[name], value), name
    cond = [b.encode([prompt]).tensors["embeds"] for b in (backbone, loaded)]
    assert torch.equal(*cond)
    assert F.mse_loss(*cond) == 0
