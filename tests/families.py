"""Tiny random pipelines of stock classes, one a family, that the tests of backbones, pipeline and export share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from helpers import TOKENIZER, WIDTH, make_recipe, text_encoder, tiny_pipeline
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from rmd.models import Backbone
from rmd.models.flux import FluxBackbone
from rmd.models.pixart import PixArtBackbone
from rmd.models.roles import Roles, build_roles
from rmd.models.sd import StableDiffusionBackbone
from rmd.models.sd3 import SD3Backbone
from rmd.models.sdxl import SDXLBackbone
from rmd.models.student import save_student
from rmd.models.wan import WanBackbone
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise

_LETTERS = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -2.0),
    *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"),
]
T5_LENGTH = 32


def t5_tokenizer() -> T5Tokenizer:
    return T5Tokenizer(vocab=_LETTERS, extra_ids=0, model_max_length=T5_LENGTH)


def t5_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(_LETTERS), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def umt5_encoder() -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=len(_LETTERS), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2)
    return UMT5EncoderModel(config).eval()


def small_vae(**config: Any) -> AutoencoderKL:
    """Downsamples by two, to four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **config,
    ).eval()


def tiny_pixart(*, sigma: bool = False, told_size: bool = False, learned: bool = True, seed: int = 0) -> PixArtBackbone:
    """PixArt-alpha (or Sigma) with linear betas; `told_size` as at 1024 px, with or without `learned` variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=3,  # the sizes' embeddings take a third of the width each
            attention_head_dim=8,
            in_channels=4,
            out_channels=8 if learned else 4,
            num_layers=2,
            cross_attention_dim=24,
            caption_channels=WIDTH,
            sample_size=128 if told_size else 16,  # diffusers' own mark of the 1024 px model
            patch_size=2,
            norm_num_groups=4,
        ).eval()
        pipe = (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_encoder(),
            vae=small_vae(),
            transformer=transformer,
            scheduler=DDIMScheduler(
                beta_start=0.0001, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", clip_sample=False
            ),
        )
    pipe.set_progress_bar_config(disable=True)
    return PixArtBackbone(pipe)


def tiny_sd3(*, t5: bool = True, dual: bool = True, shift: float = 3.0, seed: int = 0) -> SD3Backbone:
    """SD3.5-type: QK norm and, with `dual`, a second attention in its first layer; `t5` may be left out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
            pos_embed_max_size=16,
            dual_attention_layers=(0,) if dual else (),
            qk_norm="rms_norm",
        ).eval()
        encoders = [text_encoder(CLIPTextModelWithProjection) for _ in range(2)]
        third = None
        if t5:
            config = T5Config(
                vocab_size=len(_LETTERS), d_model=2 * WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=1, num_heads=2
            )
            third = T5EncoderModel(config).eval()
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            vae=small_vae(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=encoders[0],
            tokenizer=TOKENIZER,
            text_encoder_2=encoders[1],
            tokenizer_2=TOKENIZER,
            text_encoder_3=third,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    pipe.set_progress_bar_config(disable=True)
    return SD3Backbone(pipe)


def tiny_sd(*, prediction: str = "epsilon", seed: int = 0) -> StableDiffusionBackbone:
    """Stable Diffusion 1.5 or, with `prediction` v_prediction, 2.1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=4,
        ).eval()  # fmt: skip
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
            steps_offset=1, clip_sample=False, prediction_type=prediction,
        )  # fmt: skip
        pipe = StableDiffusionPipeline(
            vae=small_vae(), text_encoder=text_encoder(CLIPTextModel), tokenizer=TOKENIZER, unet=unet,
            scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return StableDiffusionBackbone(pipe)


def tiny_auraflow() -> AuraFlowPipeline:
    """A random AuraFlow pipeline, of a family that RMD itself does not have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = AuraFlowTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16,
            out_channels=4, pos_embed_max_size=256,
        ).eval()  # fmt: skip
        pipe = AuraFlowPipeline(
            tokenizer=t5_tokenizer(), text_encoder=umt5_encoder(), vae=small_vae(), transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux(*, embedded: bool = True, seed: int = 0) -> FluxBackbone:
    """FLUX.1-dev or, without an `embedded` guidance scale, FLUX.1-schnell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=embedded,
            axes_dims_rope=(4, 2, 2),
        ).eval()  # fmt: skip
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=embedded),
            vae=small_vae(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=text_encoder(CLIPTextModel),
            tokenizer=TOKENIZER, text_encoder_2=t5_encoder(), tokenizer_2=t5_tokenizer(), transformer=transformer,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return FluxBackbone(pipe)


FRAMES = 5
"""Number of frames of the tests' videos; their VAE makes three latent frames of them."""


def wan_vae() -> AutoencoderKLWan:
    """Downsamples by two in space and time, to four channels with statistics of their own."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[-0.3, 0.2, 0.1, 0.5],
        latents_std=[1.5, 0.8, 2.0, 1.1],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    ).eval()


def tiny_wan(*, shift: float = 3.0, seed: int = 0, **changes: Any) -> WanBackbone:
    """Wan2.1 text to video; `changes` go to the pipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=64,
        ).eval()
        parts: dict[str, Any] = {
            "tokenizer": t5_tokenizer(),
            "text_encoder": umt5_encoder(),
            "vae": wan_vae(),
            "transformer": transformer,
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift),
        }
        pipe = WanPipeline(**(parts | changes))
    pipe.set_progress_bar_config(disable=True)
    return WanBackbone(pipe)


def frames_of(backbone: Backbone) -> int:
    """Return the number of frames of the tests' samples of a family."""
    return FRAMES if backbone.moving else 1


def tiny_sdxl_two() -> SDXLBackbone:
    return SDXLBackbone(tiny_pipeline(two_encoders=True))


TINY: dict[str, Callable[[], Backbone]] = {
    "sdxl": tiny_sdxl_two,
    "sd": tiny_sd,
    "pixart": tiny_pixart,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "wan": tiny_wan,
}
"""One backbone a family, for tests that must hold in each."""


NOISE = {
    "sd": VPNoise(kind="vp", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "flux": FlowNoise(kind="flow", use_dynamic_shifting=True),
    "pixart": VPNoise(kind="vp", beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    "sd3": FlowNoise(kind="flow", shift=3.0),
    "wan": FlowNoise(kind="flow", shift=3.0),
}


def recipe_of(family: str, teacher: Path, mode: str, **changes: Any) -> Recipe:
    """A recipe for a tiny teacher of the family; `changes` go into the groups they name."""
    recipe = make_recipe("prompts.txt", mode, **changes)
    return recipe.model_copy(
        update={
            "family": family,
            "teacher": str(teacher),
            "noise": NOISE.get(family, recipe.noise),
            "frames": FRAMES if family == "wan" else 1,
        }
    )


def distilled(backbone: Backbone, mode: str) -> Roles:
    """Roles whose student is not its teacher any more."""
    roles = build_roles(backbone.denoiser, mode=mode, targets=backbone.adapted("all"), rank=2, alpha=4.0)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in roles.trainable("student"):
            parameter += 0.05 * torch.randn(parameter.shape, generator=g)
    return roles


@cache
def _distilled(family: str, mode: str) -> tuple[Backbone, dict[str, Tensor]]:
    """Return a family's tiny teacher and the trained weights of its student, which are the same for every test.

    A teacher is saved only, so that all may share it; adapters are put on another one, which takes the longest.
    """
    state = {name: tensor.clone() for name, tensor in distilled(TINY[family](), mode).state("student").items()}
    return TINY[family](), state


def make_student(folder: Path, family: str, mode: str, **changes: Any) -> Path:
    """A student of a tiny teacher, in `folder`/student; the teacher is in `folder`/teacher."""
    backbone, state = _distilled(family, mode)
    backbone.pipe.save_pretrained(folder / "teacher")
    recipe = recipe_of(family, folder / "teacher", mode, **changes)
    return save_student(backbone, state, recipe, folder / "student")
