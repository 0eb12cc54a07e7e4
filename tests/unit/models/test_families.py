"""The duties of every family, and the abilities of single ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from families import TINY, tiny_pixart, tiny_sd3, tiny_sdxl_two
from helpers import PROMPTS, make_recipe
from safetensors import safe_open
from torch import nn

from rmd.common.errors import RMDError
from rmd.core.plan import Crossing, Stage, build_plan
from rmd.core.randomness import CounterNoise
from rmd.methods import RMD, Batch
from rmd.models import load_backbone
from rmd.models.base import Conditioning
from rmd.models.roles import TRAINED, build_roles
from rmd.models.student import save_student
from rmd.recipes.methods import RMDConfig

LOW, HIGH = Stage(1, 16, 20), Stage(2, 32, 40)
families = pytest.mark.parametrize("family", sorted(TINY))


@families
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_both_updates_of_a_cascade_reach_every_parameter(family: str, mode: Literal["lora", "full"]) -> None:
    backbone = TINY[family]()
    roles = build_roles(backbone.denoiser, mode=mode, targets=backbone.adapted("all"), rank=2, alpha=2.0)
    plan = build_plan(
        backbone.schedule, steps=4, sides=[(16, 16), (32, 32)], thresholds=[-2.5], multiple=backbone.size_multiple,
        crossing=Crossing(rule="block", beta=0.5), training_crossing=Crossing(rule="block", beta=0.5),
    )  # fmt: skip
    method = RMD(backbone, roles, plan, RMDConfig(guidance=2.0), seed=0)
    with torch.no_grad():
        batch = Batch(0, backbone.encode(PROMPTS[:2]), backbone.null(2), CounterNoise(0, range(2)))
    for step in (plan.steps[0], plan.steps[-1]):
        loss, rollout = method.student_loss(batch, step)
        roles.zero_grad()
        roles.backward("student", loss)  # also checks where the gradients went
        roles.zero_grad()
        roles.backward("fake", method.fake_loss(batch, rollout))
    assert all(len(roles.trainable(role)) > 0 for role in TRAINED)


@families
def test_every_adapter_target_is_a_layer_that_can_carry_one(family: str) -> None:
    backbone = TINY[family]()
    layers = dict(backbone.denoiser.named_modules())
    for target in backbone.adapted("all"):
        hit = [module for name, module in layers.items() if name.endswith(f".{target}")]
        linear = nn.Linear if target in backbone.lora_targets else nn.Linear | nn.Conv2d
        assert hit and all(isinstance(module, linear) for module in hit)


@families
def test_a_saved_pipeline_loads_as_its_family_with_the_same_predictions(family: str, tmp_path: Path) -> None:
    backbone = TINY[family]()
    backbone.pipe.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert type(loaded) is type(backbone)
    x = torch.randn(backbone.latent_shape(2, 32, 40), generator=torch.Generator().manual_seed(0))
    predictions = [
        b.predict(b.denoiser, x, 500.0, b.stage_cond(b.encode(PROMPTS[:2]), LOW, HIGH)) for b in (backbone, loaded)
    ]
    for mine, theirs in zip(*predictions, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.shape == x.shape and mine.dtype == torch.float32


@families
def test_predictions_of_a_half_precision_network_are_float32(family: str) -> None:
    backbone = TINY[family]()
    backbone.pipe.to(dtype=torch.bfloat16)
    x = torch.randn(backbone.latent_shape(2, 32, 40), generator=torch.Generator().manual_seed(0))
    x0, eps = backbone.predict(
        backbone.denoiser, x, 500.0, backbone.stage_cond(backbone.encode(PROMPTS[:2]), HIGH, HIGH)
    )
    assert x0.dtype == eps.dtype == torch.float32
    assert backbone.decode(x0).shape == ((2, 3, 1, 32, 40) if backbone.moving else (2, 3, 32, 40))


@pytest.mark.parametrize(("sigma", "most"), [(False, 120), (True, 300)])
def test_pixart_reads_as_many_tokens_as_the_official_pipeline_and_its_tokenizer(sigma: bool, most: int) -> None:
    backbone = tiny_pixart(sigma=sigma)
    x = torch.randn(backbone.latent_shape(2, 32, 32), generator=torch.Generator().manual_seed(0))
    predictions = []
    for length, tokens in ((16, 16), (512, most)):
        backbone.pipe.tokenizer.model_max_length = length
        cond = backbone.encode(["a ball", "a red box"])
        assert cond.tensors["embeds"].shape[1] == tokens == backbone.official_options(1)["max_sequence_length"]
        arguments = backbone.stage_cond(cond, Stage(1, 32, 32), Stage(1, 32, 32))
        with torch.no_grad():
            predictions.append(backbone.predict(backbone.denoiser, x, 500.0, arguments)[0])
    torch.testing.assert_close(predictions[0], predictions[1], rtol=0, atol=1e-5)  # the padding is masked


@pytest.mark.parametrize(("length", "tokens"), [(16, 16), (512, 256)])
def test_the_t5_of_sd3_reads_as_many_tokens_as_in_the_official_pipeline(length: int, tokens: int) -> None:
    backbone = tiny_sd3()
    backbone.pipe.tokenizer_3.model_max_length = length
    clip = backbone.pipe.tokenizer_max_length
    assert backbone.encode(["a ball"]).tensors["embeds"].shape[1] == clip + tokens
    assert backbone.official_options(1) == {"max_sequence_length": tokens}
    assert tiny_sd3(t5=False).encode(["a ball"]).tensors["embeds"].shape[1] == clip + 256


def test_pixart_is_told_the_stage_or_the_final_size() -> None:
    for target, expected in (("stage", [16.0, 20.0]), ("final", [32.0, 40.0])):
        backbone = tiny_pixart(told_size=True)
        backbone.conditioning = Conditioning(target=target)  # type: ignore[arg-type]
        added = backbone.stage_cond(backbone.encode(PROMPTS[:2]), LOW, HIGH)["added_cond_kwargs"]
        assert added["resolution"].tolist() == [expected] * 2
        torch.testing.assert_close(added["aspect_ratio"], torch.full((2, 1), 0.8))
    unaware = tiny_pixart()
    added = unaware.stage_cond(unaware.encode(PROMPTS[:2]), LOW, HIGH)["added_cond_kwargs"]
    assert added == {"resolution": None, "aspect_ratio": None}


@pytest.mark.parametrize(
    ("original", "target", "expected"),
    [("final", "stage", [32, 40, 0, 0, 16, 20]), ("stage", "final", [16, 20, 0, 0, 32, 40])],
)
def test_sdxl_is_told_the_stage_or_the_final_size(
    original: Literal["final", "stage"], target: Literal["final", "stage"], expected: list[int]
) -> None:
    backbone = tiny_sdxl_two()
    backbone.conditioning = Conditioning(original=original, target=target)
    kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:1]), LOW, HIGH)
    assert kwargs["added_cond_kwargs"]["time_ids"].tolist() == [expected]


def test_sd3_refuses_a_side_beyond_its_positions() -> None:
    backbone = tiny_sd3()
    cond = backbone.encode(PROMPTS[:1])
    backbone.stage_cond(cond, HIGH, Stage(2, 64, 64))
    with pytest.raises(
        RMDError, match=r"stage 2 of 32x68 pixels is larger than this model's positions reach: .* most 64$"
    ):
        backbone.stage_cond(cond, Stage(2, 32, 68), Stage(2, 32, 68))


def test_sd3_can_interpolate_the_positions_of_the_final_size_at_a_stage() -> None:
    backbone = tiny_sd3()
    embedding = backbone.denoiser.pos_embed
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    with torch.no_grad():  # each position holds its own coordinates, and the picture adds nothing
        embedding.proj.weight.zero_()
        embedding.proj.bias.zero_()
        embedding.pos_embed.zero_()[..., :2] = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    seen: list[torch.Tensor] = []

    def positions(stage: Stage, rescale: bool) -> torch.Tensor:
        backbone.conditioning = Conditioning(pos_rescale=rescale)
        kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:1]), stage, HIGH)
        x = torch.zeros(backbone.latent_shape(1, stage.height, stage.width))
        handle = backbone.denoiser.transformer_blocks[0].register_forward_pre_hook(
            lambda module, args, given: seen.append(given["hidden_states"][0, :, :2]), with_kwargs=True
        )
        backbone.forward(backbone.denoiser, x, torch.tensor([500.0]), kwargs)
        handle.remove()
        return seen[-1].unflatten(0, (stage.height // 4, stage.width // 4))

    whole = positions(HIGH, rescale=False)
    assert torch.equal(positions(HIGH, rescale=True), whole)
    middle = positions(LOW, rescale=False)
    assert torch.equal(middle, whole[2:6, 2:7].round())
    spread = positions(LOW, rescale=True)
    torch.testing.assert_close(spread, whole[::2, ::2] + 0.5)


def test_decoding_follows_the_vaes_config() -> None:
    backbone = tiny_sd3()
    vae, x = backbone.pipe.vae, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone.decode(x), vae.decode(x / 1.5305 + 0.0609).sample)
    vae.register_to_config(
        scaling_factor=0.5, shift_factor=None, latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0] * 4
    )
    mean = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(backbone.decode(x), vae.decode(4 * x + mean).sample)


@pytest.mark.parametrize("force", [True, False])
def test_a_vae_that_overflows_in_float16_decodes_in_float32(force: bool) -> None:
    backbone = tiny_sdxl_two()
    vae = backbone.pipe.vae.to(torch.float16)
    vae.register_to_config(force_upcast=force)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert backbone.decode(x).dtype == (torch.float32 if force else torch.float16)
    assert vae.dtype == torch.float16


@families
def test_a_lora_student_is_saved_with_its_names_and_scale(family: str, tmp_path: Path) -> None:
    backbone = TINY[family]()
    recipe = make_recipe("prompts.txt", "lora").model_copy(update={"family": family})
    roles = build_roles(backbone.denoiser, mode="lora", targets=backbone.adapted("all"), rank=2, alpha=4.0)
    with torch.no_grad():
        for parameter in roles.trainable("student"):
            parameter += 0.1
    x = torch.randn(backbone.latent_shape(2, 32, 40), generator=torch.Generator().manual_seed(0))
    kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), HIGH, HIGH)
    with roles.use("student") as student, torch.no_grad():
        expected = backbone.predict(student, x, 500.0, kwargs)[0]
    state = {name: tensor.clone() for name, tensor in roles.state("student").items()}
    folder = save_student(TINY[family](), state, recipe, tmp_path / "student")
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        names, header = set(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    part = backbone.denoiser_name
    assert names == {f"{part}.{name}" for name in state}
    assert (header[f"{part}.r"], header[f"{part}.lora_alpha"]) == (2, 4.0)
    if family == "pixart":
        return  # diffusers does not support LoRAs for PixArt
    fresh = TINY[family]()
    fresh.pipe.load_lora_weights(folder)
    with torch.no_grad():
        actual = fresh.predict(fresh.denoiser, x, 500.0, kwargs)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_sd3_without_t5_loads_as_it_was_saved(tmp_path: Path) -> None:
    backbone = tiny_sd3(t5=False)
    backbone.pipe.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.pipe.text_encoder_3 is None
    with torch.no_grad():
        assert torch.equal(loaded.encode(PROMPTS).tensors["embeds"], backbone.encode(PROMPTS).tensors["embeds"])
