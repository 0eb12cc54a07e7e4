"""The untrained teachers: stock classes, valid sizes, a known token for every word, and one training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import PixArtSigmaPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline

from research.scenes.families import CENTRE, CORNERS, CROSS, FAMILIES, SHARPNESS
from research.scenes.teacher import HIGH, LOW, Batch, Curriculum, denoising_loss
from research.scenes.tokenizer import MAX_LENGTH, build_t5_tokenizer, vocabulary
from research.scenes.vae import LATENT_CHANNELS, LATENT_SIDE, build_vae
from rmd.models import Backbone, load_backbone

CLASSES = {"sdxl": StableDiffusionXLPipeline, "pixart": PixArtSigmaPipeline, "sd3": StableDiffusion3Pipeline}
CAPTIONS = ["a big red striped ball on the left, on sand", "a blue plain box above a white dotted star, at night"]
families = pytest.mark.parametrize("family", sorted(FAMILIES))


def untrained(family: str) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[family](build_vae().eval().requires_grad_(False))


@families
def test_stock_classes_and_sides(family: str) -> None:
    backbone = untrained(family)
    assert type(backbone.pipe) is CLASSES[family] and backbone.family == family
    assert backbone.prediction == ("flow" if family == "sd3" else "v_prediction")
    assert float(backbone.schedule.alpha(1000.0)) == 0  # sampling starts from pure noise
    assert backbone.latent_shape(2, HIGH.height, HIGH.width) == (2, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    assert all(side % backbone.size_multiple == 0 for side in (LOW.height, HIGH.height))
    assert sum(p.numel() for p in backbone.denoiser.parameters()) < 4.5e6


@families
def test_a_training_step_reaches_denoiser_and_text_encoder(family: str) -> None:
    backbone = untrained(family)
    for stage in (LOW, HIGH):
        latents = torch.randn(backbone.latent_shape(2, stage.height, stage.width))
        curriculum = Curriculum(drop_caption=0.0)
        loss = denoising_loss(backbone, Batch(latents, CAPTIONS, stage), step=0, curriculum=curriculum)
        loss.backward()
    encoders = [part for name, part in backbone.pipe.components.items() if name.startswith("text_encoder")]
    assert len([part for part in encoders if part is not None]) == (3 if family == "sd3" else 1)
    for part in (backbone.denoiser, *(part for part in encoders if part is not None)):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0


@families
def test_dropped_captions_can_be_trained_with(family: str) -> None:
    backbone = untrained(family)
    latents = torch.randn(backbone.latent_shape(2, LOW.height, LOW.width))
    for share in (0.5, 1.0):
        loss = denoising_loss(
            backbone, Batch(latents, CAPTIONS, LOW), step=1, curriculum=Curriculum(drop_caption=share)
        )
        assert bool(loss.isfinite())


@families
def test_a_saved_teacher_is_loaded_by_stock_diffusers(family: str, tmp_path: Path) -> None:
    backbone = untrained(family)
    backbone.pipe.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert type(loaded) is type(backbone)
    with torch.no_grad():
        first, second = (b.encode(CAPTIONS) for b in (backbone, loaded))
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])


def test_every_word_is_one_piece_of_t5s_vocabulary() -> None:
    tokenizer = build_t5_tokenizer()
    for word in vocabulary():
        ids = tokenizer(word).input_ids
        assert len(ids) == 2 and ids[1] == tokenizer.eos_token_id, word
    longest = tokenizer("a white checkered triangle left of a purple checkered triangle, by the sea").input_ids
    assert len(longest) <= MAX_LENGTH and tokenizer.unk_token_id not in longest


@pytest.mark.parametrize("family", ["pixart", "sd3"])
@torch.no_grad()
def test_heads_attend_to_their_neighbours(family: str) -> None:
    net = untrained(family).denoiser
    positions = net.pos_embed(torch.zeros(1, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE))
    tokens = F.layer_norm(positions, positions.shape[-1:])
    side = LATENT_SIDE // 2
    row, column = side // 2, side // 3
    attentions = [block.attn1 if family == "pixart" else block.attn2 for block in net.transformer_blocks]
    layers = [layer for layer in attentions if layer is not None]
    assert len(layers) == (6 if family == "pixart" else 2)
    for number, layer in enumerate(layers):
        offsets = (*CROSS, *CORNERS) if family == "sd3" else (CROSS, CORNERS)[number % 2]
        query, key = (linear(tokens).unflatten(-1, (-1, 16)).transpose(1, 2) for linear in (layer.to_q, layer.to_k))
        if layer.norm_q is not None:
            query, key = layer.norm_q(query), layer.norm_k(key)
        weights = (query @ key.transpose(-1, -2) / 4).softmax(-1)[0, :, row * side + column]
        for head, (right, down) in enumerate((*offsets, CENTRE)):
            assert int(weights[head].argmax()) == (row + down) * side + column + right
            assert float(weights[head].max()) > 0.3
        if layer.norm_q is None:
            assert float(weights[len(offsets) + 1 :].max()) < 0.1  # the other heads attend everywhere


@pytest.mark.parametrize("family", ["pixart", "sd3"])
@torch.no_grad()
def test_the_patch_embedding_leaves_the_channels_of_positions_free(family: str) -> None:
    net = untrained(family).denoiser
    pictures = torch.randn(2, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    difference = net.pos_embed(pictures) - net.pos_embed(torch.zeros_like(pictures))
    first = net.transformer_blocks[0]
    layer = first.attn1 if family == "pixart" else first.attn2
    read = layer.to_k.weight.abs()[: 5 * 16].amax(0) > SHARPNESS / 2
    assert int(read.sum()) == 16
    assert float(difference[..., read].abs().max()) == 0
    assert float(difference[..., ~read].abs().mean()) > 0.1
