"""The untrained teachers of the still scenes: one tiny pipeline of stock diffusers classes per model family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PatchEmbed
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from research.scenes.tokenizer import MAX_LENGTH, build_t5_tokenizer, build_tokenizer
from research.scenes.vae import LATENT_CHANNELS, LATENT_SIDE
from rmd.models.base import Backbone
from rmd.models.pixart import PixArtBackbone
from rmd.models.sd3 import SD3Backbone
from rmd.models.sdxl import SDXLBackbone

_TEXT_WIDTH = 96


def build_text_encoder(
    width: int = _TEXT_WIDTH, words: Sequence[str] | None = None
) -> CLIPTextModelWithProjection:  # fmt: skip
    """Return an untrained CLIP text encoder of three layers for a vocabulary (`build_tokenizer`)."""
    tokenizer = build_tokenizer(words)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Return an untrained T5 encoder of three layers."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=_TEXT_WIDTH, d_kv=24, d_ff=3 * _TEXT_WIDTH, num_layers=3, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def build_pixart(vae: AutoencoderKL, words: Sequence[str] | None = None) -> Backbone:
    """Return an untrained PixArt-Sigma-type pipeline: T5, v-prediction, zero terminal SNR, no learned variance."""
    tokenizer = build_t5_tokenizer(words)
    denoiser = PixArtTransformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        num_attention_heads=10,
        attention_head_dim=16,
        cross_attention_dim=160,
        caption_channels=_TEXT_WIDTH,
        interpolation_scale=1,
        norm_num_groups=8,
    )
    layers = [block.attn1 for block in denoiser.transformer_blocks]
    attend_to_neighbours(denoiser.pos_embed, layers, [(*CROSS, CENTRE), (*CORNERS, CENTRE)])
    scheduler = DDIMScheduler(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return PixArtBackbone(
        PixArtSigmaPipeline(
            tokenizer=tokenizer, text_encoder=build_t5(tokenizer), vae=vae, transformer=denoiser, scheduler=scheduler
        )
    )


def build_sd3(vae: AutoencoderKL, words: Sequence[str] | None = None) -> Backbone:
    """Return an untrained SD3.5-type pipeline: rectified flow with shift 3, two CLIPs and T5, dual attention."""
    width = _TEXT_WIDTH // 2
    first, second = build_text_encoder(width, words), build_text_encoder(width, words)
    tokenizer = build_t5_tokenizer(words)
    denoiser = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        num_attention_heads=9,
        attention_head_dim=16,
        joint_attention_dim=2 * width,
        caption_projection_dim=144,
        pooled_projection_dim=2 * width,
        pos_embed_max_size=LATENT_SIDE // 2,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    layers = [block.attn2 for block in denoiser.transformer_blocks if block.attn2 is not None]
    attend_to_neighbours(denoiser.pos_embed, layers, [(*CROSS, *CORNERS, CENTRE)])
    return SD3Backbone(
        StableDiffusion3Pipeline(
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=first,
            tokenizer=build_tokenizer(words),
            text_encoder_2=second,
            tokenizer_2=build_tokenizer(words),
            text_encoder_3=build_t5(tokenizer),
            tokenizer_3=tokenizer,
        )
    )


def build_sdxl(vae: AutoencoderKL, words: Sequence[str] | None = None) -> Backbone:
    """Return an untrained SDXL-type pipeline for a vocabulary: v-prediction, zero terminal SNR, one CLIP encoder."""
    text = build_text_encoder(words=words)
    denoiser = UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=(2, 4, 6, 6),  # as in the configs of SDXL, this is the number of heads
        norm_num_groups=8,
        use_linear_projection=True,
        transformer_layers_per_block=1,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=_TEXT_WIDTH + 6 * 16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return SDXLBackbone(
        StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=None,
            text_encoder_2=text,
            tokenizer=None,
            tokenizer_2=build_tokenizer(words),
            unet=denoiser,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    )


SHARPNESS = 4.0
"""Size of the queries and keys of heads that attend to neighbours, relative to the position embedding."""
NORMED_SHARPNESS = 2.5
"""The same for layers that normalise queries and keys."""
Offset = tuple[int, int]
"""Steps to the right and down, in tokens."""
CENTRE: Offset = (0, 0)
CROSS: tuple[Offset, ...] = ((-1, 0), (1, 0), (0, -1), (0, 1))
CORNERS: tuple[Offset, ...] = ((-1, -1), (1, -1), (-1, 1), (1, 1))


@torch.no_grad()
def attend_to_neighbours(patches: PatchEmbed, layers: Sequence[Attention], in_turn: Sequence[Sequence[Offset]]) -> None:
    """Initialise heads of a transformer so that each attends to one neighbour of its token.

    A head's query is the position embedding of its token, rotated to that of the neighbour. It uses the sines and
    cosines of a few frequencies, which the embedding of the patches leaves free. Training can change all of this, but a
    small transformer takes much longer to find such heads than to use them (compare Zheng et al. 2024, arXiv
    2404.01139, for image classification).

    Args:
        patches: patch embedding with sinusoidal positions, one step per token.
        layers: the attention layers to initialise.
        in_turn: offsets to which the first heads of a layer attend, for one layer after another, cyclically.
    """
    width = patches.proj.out_channels
    quarter = width // 4  # the embedding: sines and cosines of x, then of y
    for layer, offsets in zip(layers, cycle(in_turn), strict=False):
        size = width // layer.heads
        frequencies = range(0, 2 * (size // 4), 2)
        query, key = torch.zeros(width, width), torch.zeros(width, width)
        for head, offset in enumerate(offsets):
            row = head * size
            for axis, steps in enumerate(offset):
                for k in frequencies:
                    sine, cosine = 2 * axis * quarter + k, (2 * axis + 1) * quarter + k
                    angle = steps * 10000 ** (-k / quarter)
                    query[row, [sine, cosine]] = torch.tensor([math.cos(angle), math.sin(angle)])
                    query[row + 1, [sine, cosine]] = torch.tensor([-math.sin(angle), math.cos(angle)])
                    key[row, sine] = key[row + 1, cosine] = 1.0
                    row += 2
        rows = slice(0, len(offsets) * size)
        for linear, norm, rotation in ((layer.to_q, layer.norm_q, query), (layer.to_k, layer.norm_k, key)):
            linear.weight[rows] *= 0.3
            linear.weight += SHARPNESS * rotation
            if norm is not None:
                norm.weight.fill_(NORMED_SHARPNESS)
        patches.proj.weight[[part * quarter + k for part in range(4) for k in frequencies]] = 0.0


FAMILIES: dict[str, Callable[[AutoencoderKL, Sequence[str] | None], Backbone]] = {
    "sdxl": build_sdxl,
    "pixart": build_pixart,
    "sd3": build_sd3,
}
