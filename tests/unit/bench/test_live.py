"""Live bytes on the meta device: what is counted, until when, and that attention keeps no table of scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rmd.bench.live import BLOCK, LiveBytes, gpu_attention
from rmd.models.untrained import META


def test_tensors_count_as_long_as_they_live() -> None:
    with LiveBytes() as live:
        x = torch.empty(1024, device=META)
        view = x[:10]
        assert live.now == 4096
        y = x + 1
        assert live.now == live.most == 8192
        del y
        assert (live.now, live.most) == (4096, 8192)
        live.restart()
        assert live.most == 4096
        small = torch.empty(3, device=META)
        assert live.now == 4096 + BLOCK
        del x, small
        assert live.now == 4096 and view.shape == (10,)
        del view
        assert live.now == 0


def test_a_tensor_that_was_there_before_is_held_once() -> None:
    weight = torch.empty(256, device=META)
    live = LiveBytes()
    live.hold(weight)
    live.hold(weight[:3])
    live.hold(torch.empty(256))  # on another device
    assert live.now == 1024
    del weight
    assert live.now == 0


def test_activations_are_kept_for_the_backward_pass_unless_they_are_computed_again() -> None:
    layers = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(64, 64, device=META), nn.GELU())))
    x = torch.empty(100, 64, device=META)

    def most(*, recompute: bool) -> int:
        with LiveBytes() as live:
            output = x
            for layer in (layers[first : first + 2] for first in range(0, 16, 2)):
                output = checkpoint(layer, output, use_reentrant=False) if recompute else layer(output)
            output.sum().backward()
            layers.zero_grad()
            return live.most

    one = 100 * 64 * 4
    assert 15 * one < most(recompute=False) < 22 * one + 9 * 64 * 65 * 4
    assert most(recompute=True) < 0.8 * most(recompute=False)


def test_attention_keeps_its_inputs_and_outputs_but_no_scores() -> None:
    usual = F.scaled_dot_product_attention
    query = torch.empty(1, 2, 1000, 64, device=META, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.empty(1, 2, 1000, 1000, device=META, dtype=torch.bfloat16)
    scores = 2 * 1000 * 1000 * 2
    for given in (None, mask):
        with LiveBytes() as live, gpu_attention():
            output = F.scaled_dot_product_attention(query, query, query, attn_mask=given)
            assert output.shape == query.shape
            output.sum().backward()
        assert query.nbytes <= live.most < scores
        del output
    assert F.scaled_dot_product_attention is usual
