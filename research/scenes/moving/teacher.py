"""The untrained teacher of moving scenes, a tiny Wan2.1-type pipeline of stock classes, and its training data."""

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
from research.scenes.tokenizer import build_t5_tokenizer, clip_vocabulary
from rmd.common.pictures import to_uint8
from rmd.core.randomness import generator
from rmd.models.base import Backbone
from rmd.models.wan import WanBackbone
from rmd.worlds.moving.render import clip_path, render_clips, sample_clips

_TEXT_WIDTH = 64


def build_wan(vae: AutoencoderKLWan) -> Backbone:
    """Return an untrained Wan2.1-type pipeline: rectified flow with shift 5, one UMT5 encoder."""
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
    attend_to_neighbours([block.attn1 for block in denoiser.blocks], NEIGHBOURS)
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
"""Amplitude of each cosine in the scores of heads that attend to neighbours, before the softmax."""
Offset = tuple[int, int, int]
"""Steps forward in time, down and to the right, in tokens."""
NEIGHBOURS: tuple[tuple[Offset, ...], ...] = (
    ((0, 0, -1), (0, 0, 1)),
    ((0, -1, 0), (0, 1, 0)),
    ((-1, 0, 0), (1, 0, 0)),
)
"""Offsets to which the first heads of each layer attend: along time, height and width in turn."""


@torch.no_grad()
def attend_to_neighbours(layers: Sequence[WanAttention], in_turn: Sequence[Sequence[Offset]]) -> None:
    """Initialise heads so that each attends to one neighbour, as `families.attend_to_neighbours` does for images.

    Rotary position embeddings rotate queries and keys by their position. If both are constant, the score of two tokens
    is a sum of cosines of their distance, and rotating the query back by an offset moves the peak of the score there.
    The constants are biases of the two highest frequencies of each axis; the other channels of a head remain free for
    content.

    Args:
        layers: the attention layers to initialise.
        in_turn: offsets to which the first heads of a layer attend, for one layer after another, cyclically.
    """
    for layer, offsets in zip(layers, cycle(in_turn), strict=False):
        size = layer.inner_dim // layer.heads
        space = 2 * (size // 6)
        sides = (size - 2 * space, space, space)  # numbers of channels for time, height and width
        starts = (0, sides[0], sides[0] + space)
        constant = 4.0  # much larger than the other channels, so that these hardly change the norm
        after_norm = (layer.inner_dim / (2 * len(sides) * len(offsets))) ** 0.5
        for head, offset in enumerate(offsets):
            for steps, side, start in zip(offset, sides, starts, strict=True):
                for k in range(2):
                    angle = steps * 10000 ** (-2 * k / side)
                    first = head * size + start + 2 * k
                    rows = slice(first, first + 2)
                    for linear, norm, turn in ((layer.to_q, layer.norm_q, angle), (layer.to_k, layer.norm_k, 0.0)):
                        linear.weight[rows] *= 0.1
                        linear.bias[rows] = constant * torch.tensor([math.cos(turn), math.sin(turn)])
                        norm.weight[rows] = (SHARPNESS * size**0.5) ** 0.5 / after_norm


def clip_latents(
    vae: AutoencoderKLWan, clean: Data, poor: Data, still: Data | None = None, *, seed: int
) -> LatentSets:  # fmt: skip
    """Render and encode the training data of the teacher.

    The labels for hints are `clip_maps`, for a network with patches of two latent pixels.

    Args:
        vae: the encoder.
        clean: clips for the high resolution.
        poor: clips for the low resolution, which are degraded here.
        still: clips of which the first frames are used at the high resolution.
        seed: seed of the degradation.
    """
    g = generator(seed, "degrade")
    high = make_clips(clean.count, seed=clean.seed, training=clean.training)
    large = [encode_clips(vae, high.pixels(index)).half() for index in torch.arange(len(high)).split(64)]
    low, small = make_clips(poor.count, seed=poor.seed, training=poor.training), []
    for index in torch.arange(len(low)).split(64):
        halved = F.avg_pool3d(low.pixels(index), (1, 2, 2))
        frames = degrade(halved.transpose(1, 2).flatten(0, 1), g, each=halved.shape[2])
        degraded = frames.unflatten(0, (len(index), -1)).transpose(1, 2)
        small.append(encode_clips(vae, degraded).half())
    captions = partly_wrong(low.captions, g)
    sets = [
        Latents(torch.cat(values), texts, labels=clip_maps(clips.attributes, clips.path, values[0].shape[-1] // 2))
        for values, texts, clips in ((large, high.captions, high), (small, captions, low))
    ]
    return LatentSets(sets[0], sets[1], None if still is None else first_frames(vae, still))


def first_frames(vae: AutoencoderKLWan, still: Data) -> Latents:
    """Render and encode the first frames of clips, with the captions of the clips.

    Their labels come from the whole paths, because they include the step to the next position. The labels of whole
    clips are large, so they are computed and cut one batch at a time.
    """
    values, captions, labels = [], list[str](), []
    for start in range(0, still.count, 64):
        clips = sample_clips(range(start, min(start + 64, still.count)), seed=still.seed, training=still.training)
        # Frames pass through uint8, as those of clips do.
        frames = ClipSet(
            to_uint8(render_clips(clips, frames=1), low=0), clips.attributes, clips.captions, clip_path(clips)
        )
        encoded = encode_clips(vae, frames.pixels(torch.arange(len(frames)))).half()
        side = encoded.shape[-1] // 2
        values.append(encoded)
        captions += clips.captions
        labels.append(clip_maps(frames.attributes, frames.path, side)[:, : side * side])
    return Latents(torch.cat(values), captions, labels=torch.cat(labels))
