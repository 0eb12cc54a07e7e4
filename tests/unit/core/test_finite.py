"""NaN and infinite values are detected in every dtype, and the error names the tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rmd.common.errors import RMDError
from rmd.core.finite import check_module, check_pictures, check_tensors, is_finite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=40), dtype=st.sampled_from(DTYPES))
def test_is_finite_agrees_with_torch(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values).to(dtype)
    assert bool(is_finite(tensor)) == bool(tensor.isfinite().all())


def test_eight_bit_floats_are_checked() -> None:
    tensor = torch.ones(3).to(torch.float8_e4m3fn)
    assert is_finite(tensor)
    assert not is_finite(torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn))


def test_the_first_broken_tensor_is_named_and_unreadable_ones_are_skipped() -> None:
    fine = [("words", torch.arange(3)), ("empty", torch.zeros(0)), ("elsewhere", torch.zeros(2, device="meta"))]
    check_tensors(fine, "the file")
    broken = [("a", torch.tensor([1.0, math.inf])), ("b", torch.tensor(math.nan))]
    with pytest.raises(RMDError, match=r"^the file: the tensor a holds values that are not finite"):
        check_tensors([*fine, *broken], "the file")


def test_a_module_is_checked_by_its_state_dict() -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("mask", torch.tensor(-math.inf), persistent=False)
    check_module(module, "vae")
    module.running_mean[0] = math.nan  # type: ignore[index]
    with pytest.raises(RMDError, match=r"^vae: the tensor running_mean holds values"):
        check_module(module, "vae")


def test_broken_pictures_are_refused() -> None:
    check_pictures(torch.zeros(1, 3, 2, 2))
    with pytest.raises(RMDError, match=r"^the VAE returned values that are not finite"):
        check_pictures(torch.full((1, 3, 2, 2), math.nan))
