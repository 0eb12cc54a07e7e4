"""Tiny pipelines, backbones, recipes and batches that the tests of the machinery share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from research.scenes.tokenizer import MAX_LENGTH, build_tokenizer
from rmd.core.noise import Prediction
from rmd.core.plan import Crossing, Stage, StepPlan, build_plan
from rmd.core.randomness import CounterNoise, NoiseSource
from rmd.methods import METHODS, Batch, Method
from rmd.models import Backbone, Cond
from rmd.models.roles import build_roles
from rmd.models.sdxl import SDXLBackbone
from rmd.recipes.methods import method_keys
from rmd.recipes.schema import Recipe

PROMPTS = ["a small red ball on sand", "a big blue box at night", "a green star on wood", "a white ring by the sea"]
WIDTH = 16
TOKENIZER = build_tokenizer()


def text_encoder(kind: type[Any]) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=TOKENIZER.bos_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            pad_token_id=TOKENIZER.pad_token_id,
        )
    ).eval()


def tiny_vae() -> AutoencoderKL:
    """Downsamples by two, to four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


def tiny_denoiser(context: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=context,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        transformer_layers_per_block=1,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    ).eval()


def tiny_pipeline(
    *, prediction: Prediction = "v_prediction", two_encoders: bool = False, zero_prompt: bool = True, seed: int = 0
) -> StableDiffusionXLPipeline:
    """A random SDXL pipeline of stock classes; zero terminal SNR with v-prediction, SDXL's own schedule otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=text_encoder(CLIPTextModel) if two_encoders else None,
            text_encoder_2=text_encoder(CLIPTextModelWithProjection),
            tokenizer=TOKENIZER if two_encoders else None,
            tokenizer_2=TOKENIZER,
            unet=tiny_denoiser(2 * WIDTH if two_encoders else WIDTH),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type=prediction,
                rescale_betas_zero_snr=prediction == "v_prediction",
                timestep_spacing="trailing",
                clip_sample=False,
            ),
            force_zeros_for_empty_prompt=zero_prompt,
            add_watermarker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(**changes: Any) -> SDXLBackbone:
    return SDXLBackbone(tiny_pipeline(**changes))


class Mixer(nn.Module):
    """Smallest network that depends on everything a backbone gives it: picture, neighbours, time and prompt."""

    def __init__(self, channels: int = 2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.to_q = nn.Linear(3 * channels + 2, 8)
            self.to_out = nn.ModuleList([nn.Linear(8, channels)])

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        rows = [x, x.roll(1, -1), x.roll(1, -2)]
        extra = torch.stack([timestep.to(x) / 1000, context], 1)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        features = torch.cat([*rows, extra], 1).movedim(1, -1).contiguous()
        return self.to_out[0](torch.tanh(self.to_q(features))).movedim(-1, 1)


class LinearBackbone(Backbone):
    """A backbone without a pipeline, around a toy network: latents are (B, channels, height, width), pixels themselves.

    A prompt is read as its length, the unconditional branch as zero.
    """

    family = "toy"
    pipeline_classes = ()
    lora_targets = ("to_q", "to_out.0")

    def __init__(self, network: nn.Module | None = None, *, channels: int = 2, **scheduler: object) -> None:
        self._network, self.channels = Mixer(channels) if network is None else network, channels
        config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **scheduler}
        scheduler_of = SimpleNamespace(config=config)
        super().__init__(SimpleNamespace(_execution_device="cpu", scheduler=scheduler_of, components={}))

    @property
    def denoiser(self) -> nn.Module:
        return self._network

    @property
    def size_multiple(self) -> int:
        return 1

    def encode(self, prompts: Sequence[str]) -> Cond:
        return Cond({"context": torch.tensor([len(prompt) / 20 for prompt in prompts])})

    def null(self, count: int) -> Cond:
        return Cond({"context": torch.zeros(count)})

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        return (batch, self.channels, height, width)

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        return {"context": cond.tensors["context"]}

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        output: Tensor = module(x, timestep, **kwargs)
        return output

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, :1].expand(-1, 3, -1, -1)


def cascade(backbone: Backbone, *, sides: Sequence[int] = (16, 32), steps: int = 4, **changes: Any) -> StepPlan:
    """A plan on the backbone's own schedule; sides are those of squares."""
    thresholds = {1: [], 2: [-2.5], 3: [-4.0, -1.0]}[len(sides)]
    arguments: dict[str, Any] = {
        "crossing": Crossing(beta=0.9),
        "training_crossing": Crossing(beta=0.3),
        "thresholds": thresholds,
    }
    return build_plan(backbone.schedule, steps=steps, sides=[(side, side) for side in sides], **(arguments | changes))


def make_method(
    backbone: Backbone, plan: StepPlan, *, name: str = "rmd", mode: Any = "full", seed: int = 0, **config: Any
) -> Method:
    roles = build_roles(backbone.denoiser, mode=mode, targets=backbone.adapted("all"), rank=2, alpha=4.0)
    kind = METHODS.get(name)
    method: Method = kind(backbone, roles, plan, kind.Config(name=name, **{"guidance": 2.0, **config}), seed=seed)
    return method


@torch.no_grad()
def perturb(method: Method, *roles: Any) -> None:
    """Move the given roles away from the teacher."""
    g = torch.Generator().manual_seed(1)
    for role in roles:
        for parameter in method.roles.trainable(role):
            parameter += 0.1 * torch.randn(parameter.shape, generator=g)


def network_of(method: Method, role: Any) -> nn.Module:
    """The network of a role."""
    with method.roles.use(role) as module:
        return module


def make_batch(backbone: Backbone, *, count: int = 2, iteration: int = 0, noise: NoiseSource | None = None) -> Batch:
    source = CounterNoise(0, range(count), step=iteration) if noise is None else noise
    return Batch(iteration, backbone.encode(PROMPTS[:count]), backbone.null(count), source)


def make_recipe(prompts: Path | str, mode: str = "lora", **changes: dict[str, Any]) -> Recipe:
    """A recipe for `tiny_sdxl` that runs in moments; `changes` go into the groups they name."""
    base: dict[str, dict[str, Any]] = {
        "noise": {
            "kind": "vp",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "rescale_betas_zero_snr": True,
        },
        "plan": {"steps": 4, "sides": [16, 32], "thresholds": [-2.5], "multiple": 4},
        "crossing": {"rule": "block", "beta": 0.5},
        "method": {"guidance": 2.0, "fake_updates": 2, "warmup_steps": 1},
        "roles": {"mode": mode, "rank": 2, "alpha": 4.0},
        "optim": {"student_lr": 1e-3, "fake_lr": 2e-3, "ema": 0.5},
        "train": {
            "iterations": 6,
            "batch_size": 2,
            "log_every": 1,
            "sample_every": 1000,
            "checkpoint_every": 3,
            "keep_last": 2,
        },
        "data": {"prompts": str(prompts)},
    }
    keys = method_keys(changes.get("method", {}).get("name", "rmd"))
    base["method"] = {key: value for key, value in base["method"].items() if key in keys}
    merged = {group: base.get(group, {}) | changes.get(group, {}) for group in {**base, **changes}}
    return Recipe.model_validate({"name": "tiny", "family": "sdxl", "teacher": "tiny", **merged})


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return path


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Equal names and equal bits."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} differ, first {different[0]}"
