"""Noise schedules against closed forms, the paper's numbers and the schedulers of diffusers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.noise import (
    FlowSchedule,
    NoiseSchedule,
    Prediction,
    VPSchedule,
    per_sample,
    schedule_from_config,
    to_x0_eps,
)
from rmd.core.shift import shift_time

PIXART = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}
SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {**SDXL, "rescale_betas_zero_snr": True}

SCHEDULES: dict[str, NoiseSchedule] = {
    "pixart": VPSchedule.from_config(PIXART),
    "sdxl": VPSchedule.from_config(SDXL),
    "cosine": VPSchedule.from_config(COSINE),
    "zero_snr": VPSchedule.from_config(ZERO_SNR),
    "cosine_zero_snr": VPSchedule.from_config({**COSINE, "rescale_betas_zero_snr": True}),
    "vp_500": VPSchedule.from_config({**PIXART, "num_train_timesteps": 500}),
    "flow": FlowSchedule(),
    "flow_5": FlowSchedule(5.0),
}
names = st.sampled_from(sorted(SCHEDULES))


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("pixart", {750: -5.71, 500: -2.47, 250: 0.09}),
        ("sdxl", {750: -2.82, 500: -0.96, 250: 0.73}),
        ("flow", {750: -2.197, 500: 0.0, 900: -4.394}),
    ],
)
def test_logsnr_has_the_values_behind_the_paper_tables(name: str, quoted: dict[int, float]) -> None:
    for t, value in quoted.items():
        # The quoted table values count entries from 0, ours from 1: one entry is worth about 0.01.
        assert float(SCHEDULES[name].logsnr(t)) == pytest.approx(value, abs=0.02)


@given(name=names, t=st.floats(2.0, 1000.0))
def test_time_inverts_logsnr(name: str, t: float) -> None:
    schedule = SCHEDULES[name]
    assert float(schedule.time(schedule.logsnr(t))) == pytest.approx(t, abs=1e-6)


@given(name=names, value=st.floats(-5.0, 6.0))
def test_logsnr_inverts_time_within_the_schedule(name: str, value: float) -> None:
    schedule = SCHEDULES[name]
    assert float(schedule.logsnr(schedule.time(value))) == pytest.approx(value, abs=1e-6)


@given(name=names, a=st.floats(2.0, 1000.0), b=st.floats(2.0, 1000.0))
def test_logsnr_falls_with_time(name: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    schedule = SCHEDULES[name]
    if high - low > 1e-6:
        assert float(schedule.logsnr(low)) > float(schedule.logsnr(high))


@given(name=names, t=st.floats(0.0, 1000.0))
def test_coefficients_lie_on_the_schedule(name: str, t: float) -> None:
    schedule = SCHEDULES[name]
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    total = alpha**2 + sigma**2 if schedule.kind == "vp" else alpha + sigma
    # At an entry of a table the weights are those of the scheduler, rounded to float32.
    position = max(t * schedule.train_steps / 1000, 1.0)
    entry = schedule.kind == "vp" and position == round(position)
    assert total == pytest.approx(1.0, abs=2e-7 if entry else 1e-12)
    assert min(alpha, sigma) >= 0.0
    if alpha > 0.0 and sigma > 0.0:
        expected = 2 * (math.log(alpha) - math.log(sigma))
        assert float(schedule.logsnr(t)) == pytest.approx(expected, abs=1e-6 if entry else 1e-9)


def test_flow_is_eq_1() -> None:
    flow = FlowSchedule(3.0)
    t = torch.tensor([0.0, 100.0, 500.0, 1000.0])
    torch.testing.assert_close(flow.sigma(t), (t / 1000).double())
    torch.testing.assert_close(flow.alpha(t), (1 - t / 1000).double())
    sigma = 0.3
    value = 2 * math.log((1 - sigma) / sigma)
    assert float(flow.logsnr(300.0)) == pytest.approx(value)
    assert float(flow.time(value)) == pytest.approx(1000 / (1 + math.exp(value / 2)))
    assert float(flow.logsnr(1000.0)) == -math.inf
    assert float(flow.logsnr(0.0)) == math.inf


def test_vp_reads_entry_t_minus_1_and_is_linear_in_alpha_between() -> None:
    schedule = VPSchedule.from_config(SDXL)
    root = schedule.alphas_cumprod.sqrt()
    for t in (1, 750, 1000):
        assert float(schedule.alpha(t)) == pytest.approx(float(root[t - 1]), rel=1e-7)
    assert float(schedule.alpha(750.25)) == pytest.approx(float(0.75 * root[749] + 0.25 * root[750]), abs=1e-15)


@pytest.mark.parametrize("config", [SDXL, PIXART])
def test_at_the_tables_entries_the_weights_are_the_schedulers_to_the_last_bit(config: dict[str, object]) -> None:
    schedule = VPSchedule.from_config(config)
    table = schedule.alphas_cumprod.float()
    times = torch.arange(1.0, 1001.0)
    assert torch.equal(schedule.alpha(times).float(), table**0.5)
    assert torch.equal(schedule.sigma(times).float(), (1 - table) ** 0.5)


def test_vp_clamps_below_its_first_entry_and_beyond_its_range() -> None:
    schedule = VPSchedule.from_config(PIXART)
    assert float(schedule.alpha(0.0)) == float(schedule.alpha(1.0))
    assert float(schedule.time(40.0)) == 1.0
    assert float(schedule.time(-40.0)) == 1000.0
    assert float(schedule.time(-math.inf)) == 1000.0


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    schedule = SCHEDULES["zero_snr"]
    assert float(schedule.alpha(1000.0)) == 0.0
    assert float(schedule.sigma(1000.0)) == 1.0
    assert float(schedule.logsnr(1000.0)) == -math.inf
    assert float(schedule.time(-math.inf)) == 1000.0
    assert math.isfinite(float(schedule.logsnr(999.5)))


def test_times_are_rescaled_when_the_table_is_not_of_1000() -> None:
    schedule = SCHEDULES["vp_500"]
    assert isinstance(schedule, VPSchedule)
    root = schedule.alphas_cumprod.sqrt()
    assert float(schedule.alpha(1000)) == pytest.approx(float(root[499]), rel=1e-7)
    assert float(schedule.alpha(500)) == pytest.approx(float(root[249]), rel=1e-7)
    assert schedule.model_timestep(1000.0) == 499.0
    assert FlowSchedule(train_steps=500).model_timestep(1000.0) == 500.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_function_keeps_shape_and_is_float64(name: str) -> None:
    schedule = SCHEDULES[name]
    t = torch.tensor([[10.0, 500.0], [999.0, 1000.0]])
    for function in (schedule.alpha, schedule.sigma, schedule.logsnr, schedule.time):
        assert function(t).shape == t.shape
        assert function(t).dtype == torch.float64
        assert function(500.0).shape == ()
        assert float(function(t)[0, 1]) == float(function(500.0))


def test_model_timestep_is_the_index_for_vp_and_the_time_for_flow() -> None:
    vp, flow = SCHEDULES["sdxl"], SCHEDULES["flow"]
    assert vp.model_timestep(1000.0) == 999.0
    assert vp.model_timestep(0.5) == 0.0
    assert flow.model_timestep(857.5) == 857.5
    assert vp.model_timestep(torch.tensor([0.0, 1.0, 857.5])).tolist() == [0.0, 0.0, 856.5]
    assert flow.model_timestep(torch.tensor([857.5])).tolist() == [857.5]


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 2, 8, 8)])
def test_add_noise_mixes_each_sample_with_its_own_time(shape: tuple[int, ...]) -> None:
    schedule = SCHEDULES["sdxl"]
    x0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([1000.0, 500.0, 20.0])
    mixed = schedule.add_noise(x0, eps, t)
    for i in range(3):
        alpha, sigma = float(schedule.alpha(t[i])), float(schedule.sigma(t[i]))
        torch.testing.assert_close(mixed[i], alpha * x0[i] + sigma * eps[i])
        torch.testing.assert_close(mixed[i], schedule.add_noise(x0, eps, float(t[i]))[i])


def test_add_noise_keeps_half_precision_but_computes_in_float32() -> None:
    schedule = SCHEDULES["sdxl"]
    x0, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16().unbind()
    mixed = schedule.add_noise(x0, eps, 500.0)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, schedule.add_noise(x0.float(), eps.float(), 500.0).bfloat16())


def test_a_wrong_number_of_times_is_refused() -> None:
    x0 = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"expected a scalar or 1 values, got shape \(2,\)"):
        SCHEDULES["flow"].add_noise(x0, x0, torch.tensor([1.0, 2.0]))


def test_per_sample_shapes_a_vector_to_the_batch() -> None:
    assert per_sample(torch.ones(2, dtype=torch.float64), torch.zeros(2, 3, 4)).shape == (2, 1, 1)
    assert per_sample(0.5, torch.zeros(2, dtype=torch.float16)).dtype == torch.float32
    assert per_sample(0.5, torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_grid_is_uniform_in_the_schedulers_time_after_the_shift() -> None:
    assert SCHEDULES["sdxl"].grid(4) == (1000.0, 750.0, 500.0, 250.0)
    assert FlowSchedule(1.0).grid(2, end=0.5) == (1000.0, 750.0)
    assert FlowSchedule(3.0).grid(4) == pytest.approx((1000, 900, 750, 500), abs=1e-9)
    wan = (1000.0, 961.67, 909.46, 834.17, 716.12, 504.47)
    assert FlowSchedule(5.0).grid(6, end=0.003) == pytest.approx(wan, abs=0.01)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_flow_grid_is_that_of_diffusers_given_the_same_sigmas(steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=[1.0 - i / steps for i in range(steps)])
    ours = schedule_from_config(theirs.config)
    assert ours.grid(steps) == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)


@given(t=st.floats(0.0, 1000.0), a=st.floats(0.1, 10.0), b=st.floats(0.1, 10.0))
def test_shifts_compose_and_keep_the_ends(t: float, a: float, b: float) -> None:
    assert shift_time(t, a) == pytest.approx(a * t / (1 + (a - 1) * t / 1000), rel=1e-12)
    assert shift_time(shift_time(t, a), b) == pytest.approx(shift_time(t, a * b), abs=1e-6)
    assert shift_time(t, 1.0) == t
    assert shift_time(0.0, a) == 0.0
    assert shift_time(1000.0, a) == 1000.0


def test_shift_time_takes_tensors() -> None:
    torch.testing.assert_close(shift_time(torch.tensor([750.0]), 3.0), torch.tensor([900.0]))


@pytest.mark.parametrize(
    ("scheduler", "kind", "shift"),
    [
        (DDPMScheduler(), "vp", 1.0),
        (EulerDiscreteScheduler(), "vp", 1.0),
        (DPMSolverMultistepScheduler(), "vp", 1.0),  # its config carries an unused flow_shift
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow", 3.0),
        (UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0), "flow", 5.0),
    ],
)
def test_the_kind_is_read_from_real_configs(scheduler: object, kind: str, shift: float) -> None:
    schedule = schedule_from_config(scheduler.config)  # type: ignore[attr-defined]
    assert (schedule.kind, schedule.shift) == (kind, shift)


def test_a_shift_alone_means_flow() -> None:
    assert schedule_from_config({"shift": 2}).shift == 2.0
    assert schedule_from_config({"flow_shift": 5.0}).kind == "flow"
    assert schedule_from_config({"trained_betas": [0.1, 0.2], "flow_shift": 1.0}).kind == "vp"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "cannot tell the noise schedule of the scheduler EDMEuler"),
        ({}, r"\(no _class_name\)"),
        (
            {"_class_name": "FlowMatchX", "use_dynamic_shifting": True},
            r"shift depends on the sample's size .use_dynamic_shifting., not known here",
        ),
        ({"_class_name": "FlowMatchX", "invert_sigmas": True}, "invert_sigmas is not supported"),
        ({"shift": -1.0}, "flow shift must be a positive number, got -1"),
        ({"shift": "3"}, "scheduler's shift must be a finite number, got '3'"),
        ({"use_flow_sigmas": "yes"}, "use_flow_sigmas must be true or false"),
        ({"beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid': use one of linear"),
        ({"beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.01}, "0 < beta_start <= beta_end <= 1"),
        ({"beta_schedule": "linear", "num_train_timesteps": 1}, "must be 2 or more, got 1"),
        ({"beta_schedule": "linear", "num_train_timesteps": 10.0}, "must be an integer, got 10.0"),
        ({"trained_betas": "0.1"}, "trained_betas must be a list of numbers"),
        ({"trained_betas": [0.1, -0.1]}, "betas of the noise schedule must be above 0 and at most 1"),
    ],
)
def test_an_invalid_config_is_refused(config: Mapping[str, object], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        schedule_from_config(config)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0.9, 0.9, 0.1], "must fall strictly"),
        ([1.0, 0.5], "must fall strictly"),
        ([0.5, -0.1], "must fall strictly"),
        ([0.5], "at least two finite numbers"),
        ([0.5, math.nan], "at least two finite numbers"),
    ],
)
def test_an_invalid_table_is_refused(table: list[float], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        VPSchedule(torch.tensor(table))


@pytest.mark.parametrize(
    ("steps", "end", "message"), [(0, 0.0, "no steps"), (4, 1.0, "below 1"), (4, -0.1, "at least 0")]
)
def test_an_invalid_grid_is_refused(steps: int, end: float, message: str) -> None:
    with pytest.raises(RMDError, match=message):
        FlowSchedule().grid(steps, end)


def network_output(prediction: Prediction, x0: torch.Tensor, eps: torch.Tensor, a: float, s: float) -> torch.Tensor:
    """Return the output of a perfect network of each kind, by the definition of the kind."""
    return {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0, "flow": eps - x0}[prediction]


@given(
    prediction=st.sampled_from(["epsilon", "sample", "v_prediction"]),
    name=st.sampled_from(["pixart", "sdxl", "cosine"]),
    t=st.floats(1.0, 990.0),
)
def test_every_prediction_gives_back_x0_and_eps(prediction: Prediction, name: str, t: float) -> None:
    schedule = SCHEDULES[name]
    x0, eps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
    output = network_output(prediction, x0, eps, a, s)
    result = to_x0_eps(output, a * x0 + s * eps, a, s, prediction)
    # v-prediction requires alpha^2 + sigma^2 = 1, which holds up to float32 rounding at the entries of a table.
    tolerance = 1e-6 if t == round(t) else 1e-8
    torch.testing.assert_close(result, (x0, eps), rtol=tolerance, atol=tolerance)


@given(t=st.floats(0.0, 1000.0))
def test_a_flow_prediction_gives_back_x0_and_eps_at_every_time(t: float) -> None:
    x0, eps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    a, s = 1 - t / 1000, t / 1000
    result = to_x0_eps(eps - x0, a * x0 + s * eps, a, s, "flow")
    torch.testing.assert_close(result, (x0, eps))


def test_to_x0_eps_takes_one_time_a_sample_and_returns_float32_for_half_precision() -> None:
    schedule = SCHEDULES["sdxl"]
    x0, eps = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    t = torch.tensor([300.0, 900.0])
    x_t = schedule.add_noise(x0, eps, t)
    result, _ = to_x0_eps(eps, x_t, schedule.alpha(t), schedule.sigma(t), "epsilon")
    torch.testing.assert_close(result, x0, rtol=1e-4, atol=1e-4)
    half, noise = to_x0_eps(eps.half(), x_t.half(), schedule.alpha(t), schedule.sigma(t), "epsilon")
    assert half.dtype == noise.dtype == torch.float32


@pytest.mark.parametrize(
    ("prediction", "alpha", "sigma", "message"),
    [
        ("epsilon", 0.0, 1.0, "predicts the noise cannot start where no signal is left"),
        ("epsilon", torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]), "alpha = 0"),
        ("sample", 1.0, 0.0, "does not determine the noise at sigma = 0"),
        ("velocity", 0.5, 0.5, "unknown prediction 'velocity'"),
    ],
)
def test_an_output_that_does_not_determine_x0_and_eps_is_refused(
    prediction: Prediction, alpha: float, sigma: float, message: str
) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RMDError, match=message):
        to_x0_eps(x, x, alpha, sigma, prediction)
