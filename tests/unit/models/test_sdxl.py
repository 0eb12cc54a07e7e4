"""The SDXL backbone, and what all backbones share, on tiny random pipelines."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from helpers import PROMPTS, WIDTH, LinearBackbone, tiny_pipeline, tiny_sdxl
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.noise import Prediction
from rmd.core.plan import Stage
from rmd.models import Cond, load_backbone
from rmd.models.base import AdaptedLayers
from rmd.models.sdxl import SDXLBackbone

LOW, HIGH = Stage(1, 16, 20), Stage(2, 32, 40)
layouts = pytest.mark.parametrize("two_encoders", [False, True])


def latents(count: int = 2, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


def test_a_cond_is_a_batch() -> None:
    cond = Cond({"a": torch.arange(6.0).reshape(3, 2), "mask": torch.tensor([1, 2, 3])})
    assert len(cond) == 3
    first = cond.map(lambda tensor: tensor[:1])
    assert first.tensors["a"].tolist() == [[0, 1]]
    both = Cond.cat([cond, first])
    assert len(both) == 4
    assert both.tensors["mask"].tolist() == [1, 2, 3, 1]
    half = cond.to("cpu", torch.float16)
    assert {name: tensor.dtype for name, tensor in half.tensors.items()} == {"a": torch.float16, "mask": torch.int64}


@layouts
def test_prompts_are_encoded_as_the_pipeline_does(two_encoders: bool) -> None:
    backbone = tiny_sdxl(two_encoders=two_encoders)
    expected = backbone.pipe.encode_prompt(prompt=PROMPTS, device="cpu", do_classifier_free_guidance=True)
    embeds, null_embeds, pooled, null_pooled = expected
    cond, null = backbone.encode(PROMPTS), backbone.null(len(PROMPTS))
    assert embeds.shape == (4, 20, WIDTH * (1 + two_encoders))
    assert torch.equal(cond.tensors["embeds"], embeds)
    assert torch.equal(cond.tensors["pooled"], pooled)
    assert torch.equal(null.tensors["embeds"], null_embeds)
    assert torch.equal(null.tensors["pooled"], null_pooled)
    assert not torch.equal(embeds[0], embeds[1])


def test_the_unconditional_branch_gets_zeros_or_the_empty_prompt() -> None:
    assert not tiny_sdxl().null(3).tensors["embeds"].any()
    backbone = tiny_sdxl(zero_prompt=False)
    null, empty = backbone.null(3), backbone.encode([""])
    for name, tensor in null.tensors.items():
        assert len(tensor) == 3
        assert torch.equal(tensor[2:], empty.tensors[name])
        assert tensor.any()


def test_shapes_follow_the_pipeline() -> None:
    backbone = tiny_sdxl()
    assert backbone.latent_shape(3, 32, 48) == (3, 4, 16, 24)
    assert backbone.size_multiple == 4  # a factor of two from the VAE, and of two from the network
    smallest = torch.zeros(backbone.latent_shape(1, 4, 4))
    kwargs = backbone.stage_cond(backbone.encode([""]), Stage(1, 4, 4), HIGH)
    x0, _ = backbone.predict(backbone.denoiser, smallest, 500.0, kwargs)
    assert x0.shape == smallest.shape
    assert backbone.decode(x0).shape == (1, 3, 4, 4)


def test_the_target_size_is_the_stages_by_default() -> None:
    backbone = tiny_sdxl()
    cond = backbone.encode(PROMPTS)
    kwargs = backbone.stage_cond(cond, LOW, HIGH)
    assert kwargs["added_cond_kwargs"]["time_ids"].tolist() == [[32, 40, 0, 0, 16, 20]] * 4
    assert kwargs["added_cond_kwargs"]["text_embeds"] is cond.tensors["pooled"]
    assert kwargs["encoder_hidden_states"] is cond.tensors["embeds"]


def test_the_target_size_matters_to_the_network() -> None:
    backbone = tiny_sdxl()
    cond, x = backbone.encode(PROMPTS[:2]), latents()
    told = [backbone.predict(backbone.denoiser, x, 500.0, backbone.stage_cond(cond, s, HIGH))[0] for s in (LOW, HIGH)]
    assert not torch.equal(*told)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_prediction_splits_the_state_into_sample_and_noise(prediction: Prediction) -> None:
    backbone = tiny_sdxl(prediction=prediction)
    kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), HIGH, HIGH)
    x, t = latents(), 700.0
    x0, eps = backbone.predict(backbone.denoiser, x, t, kwargs)
    raw = backbone.denoiser(x, torch.tensor([t - 1, t - 1]), **kwargs).sample
    alpha, sigma = float(backbone.schedule.alpha(t)), float(backbone.schedule.sigma(t))
    torch.testing.assert_close(alpha * x0 + sigma * eps, x)
    expected = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction]
    torch.testing.assert_close(raw, expected)


def test_each_sample_can_have_its_own_time() -> None:
    backbone = tiny_sdxl()
    cond, x, times = backbone.encode(PROMPTS[:2]), latents(), [120.5, 900.0]
    kwargs = backbone.stage_cond(cond, HIGH, HIGH)
    together = backbone.predict(backbone.denoiser, x, torch.tensor(times, dtype=torch.float64), kwargs)
    for i, t in enumerate(times):
        alone = backbone.stage_cond(cond.map(lambda tensor, i=i: tensor[i : i + 1]), HIGH, HIGH)
        for one, both in zip(backbone.predict(backbone.denoiser, x[i : i + 1], t, alone), together, strict=True):
            torch.testing.assert_close(one[0], both[i])


def test_a_network_in_half_precision_predicts_float32() -> None:
    full, half = tiny_sdxl(), SDXLBackbone(tiny_pipeline().to(dtype=torch.bfloat16))
    results = []
    for backbone in (full, half):
        kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), HIGH, HIGH)
        results.append(backbone.predict(backbone.denoiser, latents(), 500.0, kwargs)[0])
    assert results[1].dtype == torch.float32
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0.05)


def test_decoding_undoes_the_scaling_factor() -> None:
    backbone = tiny_sdxl()
    backbone.pipe.vae.register_to_config(scaling_factor=0.5)
    assert torch.equal(backbone.decode(latents()), backbone.pipe.vae.decode(2 * latents()).sample)


def test_adapters_are_on_the_transformers_or_on_all_layers_of_the_blocks_and_on_no_others() -> None:
    backbone = tiny_sdxl()
    kinds = nn.Linear | nn.Conv2d
    names = {name for name, module in backbone.denoiser.named_modules() if isinstance(module, kinds)}

    def adapted(layers: AdaptedLayers) -> set[str]:
        return {name for name in names if name.endswith(tuple(f".{target}" for target in backbone.adapted(layers)))}

    inside = {name for name in names if ".attentions." in name}
    assert len(inside) == 4 * 12  # down, mid and two up blocks: 2 x 4 of attention, 2 of feed-forward, 2 around
    assert adapted("transformers") == inside
    ends = ("time_embedding", "add_embedding", "conv_in", "conv_out")
    assert adapted("all") == {name for name in names if not name.startswith(ends)}
    assert adapted("all") - inside == {name for name in names if ".resnets." in name or "samplers." in name}


def test_the_schedule_decides_how_the_output_is_read() -> None:
    assert LinearBackbone().prediction == "epsilon"  # diffusers' default
    assert LinearBackbone(prediction_type="sample").prediction == "sample"
    flow = LinearBackbone(beta_schedule=None, _class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    assert (flow.prediction, flow.schedule.kind) == ("flow", "flow")
    with pytest.raises(
        RMDError, match=r"^unknown prediction_type of the scheduler 'other': use one of epsilon, v_pred"
    ):
        LinearBackbone(prediction_type="other")


@layouts
def test_a_saved_pipeline_loads_as_its_family(two_encoders: bool, tmp_path: Path) -> None:
    backbone = tiny_sdxl(two_encoders=two_encoders)
    backbone.pipe.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_backbone(tmp_path)
    assert type(loaded) is SDXLBackbone
    for one in (backbone, loaded):
        assert one.prediction == "v_prediction"
    kwargs = [b.stage_cond(b.encode(PROMPTS[:2]), HIGH, HIGH) for b in (backbone, loaded)]
    first = backbone.predict(backbone.denoiser, latents(), 500.0, kwargs[0])
    second = loaded.predict(loaded.denoiser, latents(), 500.0, kwargs[1])
    assert torch.equal(first[0], second[0])
    assert load_backbone(tmp_path, dtype=torch.bfloat16).encode([""]).tensors["embeds"].dtype == torch.bfloat16


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"is not a diffusers pipeline: it has no model_index\.json$"):
        load_backbone(tmp_path)
    index = tmp_path / "model_index.json"
    wrong = {"{": "is not valid JSON", "[]": "should contain a JSON object", "{}": "it has no _class_name"}
    for text, sentence in wrong.items():
        index.write_text(text)
        with pytest.raises(RMDError, match=rf"model_index\.json .*{sentence}"):
            load_backbone(tmp_path)
    index.write_text(json.dumps({"_class_name": "OtherPipeline"}))
    with pytest.raises(RMDError, match=r"no backbone is registered for OtherPipeline: registered are .*XLPipeline"):
        load_backbone(tmp_path)


def test_a_pipeline_without_one_of_its_parts_is_refused(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RMDError, match=rf"^{tmp_path}/vae holds no weights: there is no diffusion_pytorch_model\.saf"):
        load_backbone(tmp_path)


def test_a_name_that_exists_nowhere_is_refused() -> None:
    with pytest.raises(RMDError, match="no/such-model is neither a folder nor in the cache"):
        load_backbone("no/such-model")
