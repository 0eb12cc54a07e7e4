"""Attention in float32 for half-precision networks on a CPU."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F

from rmd.models.attention import AttentionInFloat32, attention_on


def test_attention_is_computed_in_float32_and_rounded_once() -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 8, generator=g).bfloat16().requires_grad_() for _ in range(3))
    mask = torch.randn(5, 5, generator=g).bfloat16()
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask.float())
    with AttentionInFloat32():
        ours = F.scaled_dot_product_attention(query, key, value, mask)
        assert torch.equal(ours, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        assert torch.equal(ours, F.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours, F.scaled_dot_product_attention(query.float(), key, value, mask).bfloat16())
        assert (query @ key.mT).dtype == torch.bfloat16  # nothing else is
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, exact.bfloat16())
    ours.sum().backward()
    assert query.grad is not None and query.grad.dtype == torch.bfloat16


def test_where_it_is_used() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert isinstance(attention_on(cpu, torch.bfloat16), AttentionInFloat32)
    assert isinstance(attention_on(cpu, torch.float32), nullcontext)
    assert isinstance(attention_on(gpu, torch.bfloat16), nullcontext)
