"""The moving scenes' teacher before training, a tiny Wan2.1-type pipeline of stock classes, and what it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from transformers import UMT5Config, UMT5EncoderModel

from research.scenes.moving.dataset import ClipSet, make_clips
from research.scenes.moving.maps import clip_maps
from research.scenes.moving.vae import CLIP_CHANNELS, encode_clips
from research.scenes.record import Data
from research.scenes.teacher import Latents, LatentSets, degrade, partly_wrong
from research.scenes.tokenizer import build_t5_tokenizer
from rmd.common.pictures import to_uint8
from rmd.core.randomness import generator
from rmd.models.base import Backbone
from rmd.models.wan import WanBackbone
from rmd.worlds.moving.grammar import clip_vocabulary
from rmd.worlds.moving.render import render_clips, sample_clips

_TEXT_WIDTH = 64


def build_wan(vae: AutoencoderKLWan) -> Backbone:
    """An untrained Wan2.1-type pipeline around a trained VAE: rectified flow with shift 5, one UMT5 encoder."""
    tokenizer = build_t5_tokenizer(clip_vocabulary())
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=_TEXT_WIDTH, d_kv=16, d_ff=3 * _TEXT_WIDTH, num_layers=3, num_heads=4,
            dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    denoiser = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CLIP_CHANNELS,
        out_channels=CLIP_CHANNELS,
        text_dim=_TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
        rope_max_seq_len=64,
    )
    look_next([block.attn1 for block in denoiser.blocks], NEIGHBOURS)
    return WanBackbone(
        WanPipeline(
            tokenizer=tokenizer,
            text_encoder=text,
            vae=vae,
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        )
    )


SHARPNESS = 7.0
"""Of the heads that look around: the amplitude of a cosine in their scores, before the softmax."""
Offset = tuple[int, int, int]
NEIGHBOURS: tuple[tuple[Offset, ...], ...] = (
    ((0, 0, -1), (0, 0, 1)),
    ((0, -1, 0), (0, 1, 0)),
    ((-1, 0, 0), (1, 0, 0)),
)
"""Where the first heads of a layer look, (later, down, right) in tokens: along one axis after the other."""


@torch.no_grad()
def look_next(layers: Sequence[WanAttention], in_turn: Sequence[Sequence[Offset]]) -> None:
    """Let each head of an untrained transformer look at one neighbour, as `families.look_around` does.

    Rotary positions turn queries and keys by their place: where both are constant, the score of two tokens is a sum of
    cosines of their distance, and a query that is turned back by an offset moves its peak there. The constants are
    biases, of the two highest frequencies of each axis; the other channels of a head still tell what is where.

    Args:
        in_turn: where the first heads of a layer look; layer after layer, then from the first.
    """
    for layer, offsets in zip(layers, cycle(in_turn), strict=False):
        size = layer.inner_dim // layer.heads
        space = 2 * (size // 6)
        sides = (size - 2 * space, space, space)  # of the channels of time, height and width
        starts = (0, sides[0], sides[0] + space)
        constant = 4.0  # large beside what else these layers hold, which so changes little by their norms
        after_norm = (layer.inner_dim / (2 * len(sides) * len(offsets))) ** 0.5
        for head, offset in enumerate(offsets):
            for steps, side, start in zip(offset, sides, starts, strict=True):
                for k in range(2):
                    angle = steps * 10000 ** (-2 * k / side)
                    first = head * size + start + 2 * k
                    rows = slice(first, first + 2)
                    for linear, norm, by in ((layer.to_q, layer.norm_q, angle), (layer.to_k, layer.norm_k, 0.0)):
                        linear.weight[rows] *= 0.1
                        linear.bias[rows] = constant * torch.tensor([math.cos(by), math.sin(by)])
                        norm.weight[rows] = (SHARPNESS * size**0.5) ** 0.5 / after_norm


def clip_latents(
    vae: AutoencoderKLWan, clean: Data, poor: Data, still: Data | None = None, *, seed: int
) -> LatentSets:  # fmt: skip
    """Render and encode clips: `clean` for the high resolution, as they are; `poor` for the low one, degraded here;
    and of `still` the first frames, at the high resolution.

    What is known of them is `clip_maps`, at the tokens of a network whose patches are two latents wide.
    """
    g = generator(seed, "degrade")
    high = make_clips(clean.count, seed=clean.seed, training=clean.training)
    found = [encode_clips(vae, high.pixels(index)).half() for index in torch.arange(len(high)).split(64)]
    low, small = make_clips(poor.count, seed=poor.seed, training=poor.training), []
    for index in torch.arange(len(low)).split(64):
        halved = F.avg_pool3d(low.pixels(index), (1, 2, 2))
        frames = degrade(halved.transpose(1, 2).flatten(0, 1), g, each=halved.shape[2])
        degraded = frames.unflatten(0, (len(index), -1)).transpose(1, 2)
        small.append(encode_clips(vae, degraded).half())
    captions = partly_wrong(low.captions, g)
    sets = [
        Latents(torch.cat(values), texts, known=clip_maps(clips.attributes, clips.path, values[0].shape[-1] // 2))
        for values, texts, clips in ((found, high.captions, high), (small, captions, low))
    ]
    return LatentSets(sets[0], sets[1], None if still is None else first_frames(vae, still))


def first_frames(vae: AutoencoderKLWan, still: Data) -> Latents:
    """Render and encode the first frames of clips, with the clips' captions.

    What is known of a first frame is of the whole path, which says where it goes next; maps of whole clips are large,
    so they are made, and cut, a batch at a time.
    """
    values, captions, known = [], list[str](), []
    for start in range(0, still.count, 64):
        clips = sample_clips(range(start, min(start + 64, still.count)), seed=still.seed, training=still.training)
        # as a set in memory holds them, in whole levels
        frames = ClipSet(to_uint8(render_clips(clips, frames=1), low=0), clips.attributes, clips.captions, clips.path())
        encoded = encode_clips(vae, frames.pixels(torch.arange(len(frames)))).half()
        side = encoded.shape[-1] // 2
        values.append(encoded)
        captions += clips.captions
        known.append(clip_maps(frames.attributes, frames.path, side)[:, : side * side])
    return Latents(torch.cat(values), captions, known=torch.cat(known))
