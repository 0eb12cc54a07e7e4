"""Tables of betas against the schedulers of diffusers, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from rmd.core.betas import alphas_cumprod

PIXART = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}
SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {**SDXL, "rescale_betas_zero_snr": True}
SHORT = {**PIXART, "num_train_timesteps": 77}


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("config", [PIXART, SDXL, COSINE, SHORT, ZERO_SNR, {**COSINE, "rescale_betas_zero_snr": True}])
def test_tables_equal_those_of_diffusers_to_the_last_bit(scheduler: type, config: Mapping[str, object]) -> None:
    theirs = scheduler(**config)
    table = alphas_cumprod(theirs.config)
    assert table.dtype == torch.float32 and torch.equal(table, theirs.alphas_cumprod)


def test_a_rescaled_table_equals_that_of_euler_except_for_its_end() -> None:
    theirs = EulerDiscreteScheduler(**ZERO_SNR)
    table = alphas_cumprod(theirs.config)
    # The Euler scheduler replaces the final zero by 2^-24.
    assert torch.equal(table[:-1], theirs.alphas_cumprod[:-1])
    assert abs(float(table[-1] - theirs.alphas_cumprod[-1])) <= 2**-24


def test_trained_betas_are_used_as_given() -> None:
    betas = [0.1, 0.2, 0.5]
    table = alphas_cumprod({"trained_betas": betas})
    torch.testing.assert_close(table, torch.tensor([0.9, 0.72, 0.36]))
    assert torch.equal(alphas_cumprod({"trained_betas": torch.tensor(betas)}), table)
