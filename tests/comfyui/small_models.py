"""Teachers as small as ComfyUI's own networks allow, and their students.

Heads have 64 channels (SDXL, SD3) or 128 (Wan), times are embedded in 256 numbers, and VAEs have the factors and the
statistics of the official ones, which ComfyUI knows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from families import distilled, recipe_of, t5_tokenizer
from helpers import TOKENIZER, WIDTH, text_encoder
from torch import Tensor
from transformers import CLIPTextModelWithProjection, UMT5Config, UMT5EncoderModel

from rmd.models import Backbone
from rmd.models.sd3 import SD3Backbone
from rmd.models.sdxl import SDXLBackbone
from rmd.models.student import save_student
from rmd.models.wan import WanBackbone

TIME_CHANNELS = 256
SDXL_CONFIG = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 2],
    "num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1, "context_dim": WIDTH, "num_heads": -1, "num_head_channels": 64,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "use_temporal_attention": False,
    "num_classes": "sequential", "adm_in_channels": WIDTH + 6 * TIME_CHANNELS,
}  # fmt: skip
"""The configuration of `sdxl`, as ComfyUI writes it."""


def vae(channels: int, **rules: float) -> AutoencoderKL:
    """Downsamples by eight."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, latent_channels=channels, norm_num_groups=4, mid_block_add_attention=False,
        **rules,
    ).eval()  # fmt: skip


def sdxl(*, velocity: bool = False) -> Backbone:
    """SDXL with two resolutions; `velocity` predicts it, at zero terminal SNR."""
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=(1, 2), use_linear_projection=True,
        transformer_layers_per_block=1, addition_embed_type="text_time", addition_time_embed_dim=TIME_CHANNELS,
        projection_class_embeddings_input_dim=WIDTH + 6 * TIME_CHANNELS,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
        prediction_type="v_prediction" if velocity else "epsilon", rescale_betas_zero_snr=velocity, clip_sample=False,
    )  # fmt: skip
    encoder = text_encoder(CLIPTextModelWithProjection)
    return SDXLBackbone(
        StableDiffusionXLPipeline(
            vae=vae(4, scaling_factor=0.13025), text_encoder=None, text_encoder_2=encoder, tokenizer=None,
            tokenizer_2=TOKENIZER, unet=unet, scheduler=scheduler, add_watermarker=False,
        )
    )  # fmt: skip


def sd3() -> Backbone:
    """SD3.5 with two blocks, the first with a second attention."""
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=128,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()  # fmt: skip
    encoders = [text_encoder(CLIPTextModelWithProjection) for _ in range(2)]
    return SD3Backbone(
        StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609), text_encoder=encoders[0], tokenizer=TOKENIZER,
            text_encoder_2=encoders[1], tokenizer_2=TOKENIZER, text_encoder_3=None, tokenizer_3=None,
        )
    )  # fmt: skip


def wan() -> Backbone:
    """Wan2.1 with two blocks."""
    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096, freq_dim=256,
        ffn_dim=64, num_layers=2, rope_max_seq_len=1024,
    ).eval()  # fmt: skip
    video = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        scale_factor_temporal=4, scale_factor_spatial=8,
    ).eval()  # fmt: skip
    config = UMT5Config(vocab_size=32, d_model=4096, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
    return WanBackbone(
        WanPipeline(
            tokenizer=t5_tokenizer(), text_encoder=UMT5EncoderModel(config).eval(), vae=video, transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )  # fmt: skip


TEACHERS: dict[str, Callable[..., Backbone]] = {"sdxl": sdxl, "sd3": sd3, "wan": wan}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "sdxl": {"embeds": (77, WIDTH), "pooled": (WIDTH,)},
    "sd3": {"embeds": (154, 2 * WIDTH), "pooled": (2 * WIDTH,)},
    "wan": {"embeds": (512, 4096)},
}
"""Shapes of one encoded prompt."""


def teacher(family: str, **options: Any) -> Backbone:
    """A random teacher; the gates, with which the networks of SD3 and Wan begin closed, are open."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = TEACHERS[family](**options)
        with torch.no_grad():
            for parameter in backbone.denoiser.parameters():
                if not bool(parameter.any()):
                    parameter += 0.05 * torch.randn_like(parameter)
    backbone.pipe.set_progress_bar_config(disable=True)
    return backbone


def encoded(family: str) -> dict[str, Tensor]:
    """A random encoded prompt, with a batch of one."""
    g = torch.Generator().manual_seed(3)
    return {name: torch.randn(1, *shape, generator=g) for name, shape in SHAPES[family].items()}


def student(folder: Path, family: str, mode: str, **changes: Any) -> Path:
    """A student in `folder`/student, of a teacher in `folder`/teacher; `changes` go into the recipe."""
    options = changes.pop("teacher", {})
    backbone = teacher(family, **options)
    backbone.pipe.save_pretrained(folder / "teacher")
    noise = {} if family != "sdxl" else {"noise": {"rescale_betas_zero_snr": bool(options)}}
    plan = {"plan": {"steps": 4, "sides": [64, 128], "thresholds": [-2.5], "multiple": 16}}
    recipe = recipe_of(family, folder / "teacher", mode, **{**plan, **noise, **changes})
    return save_student(backbone, distilled(backbone, mode).state("student"), recipe, folder / "student")
