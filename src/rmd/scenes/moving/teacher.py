"""The moving scenes' teacher before training, a tiny Wan2.1-type pipeline of stock classes, and what it learns from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from rmd.backbones.base import Backbone
from rmd.backbones.wan import WanBackbone
from rmd.randomness import generator
from rmd.scenes.moving.dataset import make_clips
from rmd.scenes.moving.grammar import clip_vocabulary
from rmd.scenes.moving.vae import CLIP_CHANNELS, encode_clips
from rmd.scenes.record import Data
from rmd.scenes.teacher import Latents, LatentSets, degrade, partly_wrong
from rmd.scenes.tokenizer import build_t5_tokenizer

_TEXT_WIDTH = 96


def build_wan(vae: AutoencoderKLWan) -> Backbone:
    """An untrained Wan2.1-type pipeline around a trained VAE: rectified flow with shift 3, one UMT5 encoder."""
    tokenizer = build_t5_tokenizer(clip_vocabulary())
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=_TEXT_WIDTH, d_kv=24, d_ff=3 * _TEXT_WIDTH, num_layers=3, num_heads=4,
            dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    denoiser = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=36,
        in_channels=CLIP_CHANNELS,
        out_channels=CLIP_CHANNELS,
        text_dim=_TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=432,
        num_layers=6,
        rope_max_seq_len=64,
    )
    return WanBackbone(
        WanPipeline(
            tokenizer=tokenizer,
            text_encoder=text,
            vae=vae,
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )


def clip_latents(vae: AutoencoderKLWan, clean: Data, poor: Data, *, seed: int) -> LatentSets:
    """Render and encode clips: `clean` for the high resolution, as they are; `poor` for the low one, degraded here."""
    g = generator(seed, "degrade")
    high = make_clips(clean.count, seed=clean.seed, training=clean.training)
    found = [encode_clips(vae, high.pixels(index)).half() for index in torch.arange(len(high)).split(64)]
    low, small = make_clips(poor.count, seed=poor.seed, training=poor.training), []
    for index in torch.arange(len(low)).split(64):
        halved = F.avg_pool3d(low.pixels(index), (1, 2, 2))
        frames = degrade(halved.transpose(1, 2).flatten(0, 1), g, each=halved.shape[2])
        degraded = frames.unflatten(0, (len(index), -1)).transpose(1, 2)
        small.append(encode_clips(vae, degraded).half())
    return LatentSets(
        Latents(torch.cat(found), high.captions), Latents(torch.cat(small), partly_wrong(low.captions, g))
    )
