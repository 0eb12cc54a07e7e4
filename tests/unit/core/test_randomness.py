"""Counter-based noise: the key that a draw depends on, its independence of all else, and pinned values."""

from __future__ import annotations

import pytest
import torch
from accelerator import DEVICE, accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.randomness import (
    MAX_SEED,
    CounterNoise,
    GeneratorNoise,
    NoiseSource,
    check_seeds,
    choice_in_turn,
    generator,
    permutation,
    seeded,
)

SHAPE = (1, 4, 8, 8)

# A run recorded with one version must be repeatable with the next.
PINNED_NORMAL = [[-0.0772241, -1.5065618], [1.3751774, 1.5421517]]
PINNED_UNIFORM = [[0.7770363, 0.9234522], [0.4280656, 0.5982072]]
PINNED_LARGE = [-0.6248354, -0.8367539, 0.6569288, -0.1565078]
PINNED_SEED = 4174031835982214785
PINNED_CHOICES = [2, 6, 4, 7, 8, 3, 1, 5]
PINNED_PERMUTATION = [3, 5, 2, 1, 0, 4]


def draw(seed: int = 0, sample: int = 0, step: int = 0, purpose: str = "start") -> torch.Tensor:
    return CounterNoise(seed, [sample], step).normal(SHAPE, purpose)


def test_the_same_key_gives_the_same_draw() -> None:
    source = CounterNoise(3, [5], 7)
    first = source.normal(SHAPE, "start")
    source.uniform(SHAPE, "other")
    assert torch.equal(source.normal(SHAPE, "start"), first)
    assert torch.equal(CounterNoise(3, [5], 7).normal(SHAPE, "start"), first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"sample": 1}, {"step": 1}, {"purpose": "crossing-2"}])
def test_a_draw_depends_on_every_part_of_its_key(change: dict[str, object]) -> None:
    base, other = draw(), draw(**change)  # type: ignore[arg-type]
    assert not torch.equal(base, other)
    assert abs(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]) < 0.25


def test_exchanging_two_parts_of_the_key_gives_another_draw() -> None:
    assert not torch.equal(draw(seed=1, step=2), draw(seed=2, step=1))
    assert not torch.equal(draw(sample=1, step=2), draw(sample=2, step=1))


def test_keys_are_not_confused_by_concatenation_or_type() -> None:
    states = [generator(0, *key).initial_seed() for key in [("ab",), ("a", "b"), ("1",), (1,), (), (0,), (0, 0)]]
    assert len(set(states)) == len(states)


@settings(max_examples=25)
@given(samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True), data=st.data())
def test_a_sample_does_not_depend_on_its_batch(samples: list[int], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(samples) - 1))
    batch, alone = CounterNoise(1, samples, 2), CounterNoise(1, [samples[i]], 2)
    joint, single = (len(samples), 3, 4), (1, 3, 4)
    assert torch.equal(batch.normal(joint, "p")[i], alone.normal(single, "p")[0])
    assert torch.equal(batch.uniform(joint, "p")[i], alone.uniform(single, "p")[0])


def test_normal_draws_are_standard_and_independent_across_samples() -> None:
    x = CounterNoise(0, range(64)).normal((64, 4, 16, 16), "start").flatten(1).double()
    n = x.numel()
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.var()) - 1.0) < 4 * (2 / n) ** 0.5
    assert abs(float(x.pow(4).mean()) - 3.0) < 4 * (96 / n) ** 0.5
    correlation = torch.corrcoef(x) - torch.eye(64)
    assert float(correlation.abs().max()) < 5.5 / x.shape[1] ** 0.5


def test_uniform_draws_are_uniform_and_unlike_the_normal_ones() -> None:
    source = CounterNoise(0, range(32))
    u = source.uniform((32, 1024), "tau").double()
    n = u.numel()
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    z = source.normal((32, 1024), "tau").double()
    assert abs(float(torch.corrcoef(torch.stack([u.flatten(), z.flatten()]))[0, 1])) < 4 / n**0.5


def test_a_batch_of_scalars_has_one_number_a_sample() -> None:
    u = CounterNoise(0, [4, 9]).uniform((2,), "tau")
    assert u.shape == (2,)
    assert float(u[0]) != float(u[1])


def test_dtype_changes_the_precision_and_not_the_draw() -> None:
    full = CounterNoise(0, [1, 2]).normal((2, 4, 4), "start")
    half = CounterNoise(0, [1, 2], dtype=torch.bfloat16).normal((2, 4, 4), "start")
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())


def test_gaussian_noise_is_on_the_requested_device_and_uniform_numbers_on_the_cpu() -> None:
    with accelerator():
        for source in (CounterNoise(0, [0], device=DEVICE), GeneratorNoise([torch.Generator()], device=DEVICE)):
            assert source.normal((1, 4), "start").device == DEVICE
            assert source.uniform((1,), "tau").device.type == "cpu"


def test_draws_ignore_torchs_default_dtype_and_device() -> None:
    expected = draw(), choice_in_turn(9, seed=0, count=0, purpose="p"), permutation(5, seed=0, epoch=0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            result = draw(), choice_in_turn(9, seed=0, count=0, purpose="p"), permutation(5, seed=0, epoch=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result[0].dtype == torch.float32
    assert torch.equal(result[0], expected[0])
    assert result[1] == expected[1]
    assert torch.equal(result[2], expected[2])


def test_values_never_change() -> None:
    source = CounterNoise(seed=0, samples=[0, 1], step=0)
    normal = source.normal((2, 2), "start")
    uniform = source.uniform((2, 2), "tau")
    large = CounterNoise(seed=7, samples=[123456789], step=42).normal((1, 4, 8, 8), "crossing-3")
    torch.testing.assert_close(normal, torch.tensor(PINNED_NORMAL), rtol=0, atol=1e-6)
    torch.testing.assert_close(uniform, torch.tensor(PINNED_UNIFORM), rtol=0, atol=1e-6)
    torch.testing.assert_close(large[0, :, 0, 0], torch.tensor(PINNED_LARGE), rtol=0, atol=1e-5)
    assert generator(0, "pinned", 1).initial_seed() == PINNED_SEED
    assert [choice_in_turn(10, seed=0, count=count, purpose="step") for count in range(8)] == PINNED_CHOICES
    assert permutation(6, seed=0, epoch=0).tolist() == PINNED_PERMUTATION


def test_a_shape_with_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draws for 2 samples, not for shape \(3, 4\)"):
        CounterNoise(0, [0, 1]).normal((3, 4), "start")
    with pytest.raises(ValueError, match="draws for 1 samples"):
        GeneratorNoise([torch.Generator()]).uniform((2, 4), "start")


def test_generator_noise_draws_what_diffusers_would() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    shape = (2, 4, 8, 8)
    for dtype in (torch.float32, torch.float16):
        ours = GeneratorNoise([torch.Generator().manual_seed(i) for i in (3, 4)], dtype=dtype)
        theirs = randn_tensor(shape, generator=[torch.Generator().manual_seed(i) for i in (3, 4)], dtype=dtype)
        assert torch.equal(ours.normal(shape, "start"), theirs)


def test_generator_noise_is_sequential_and_independent_of_the_batch() -> None:
    both = GeneratorNoise([torch.Generator().manual_seed(i) for i in (3, 4)])
    alone = GeneratorNoise([torch.Generator().manual_seed(4)])
    first, second = both.normal((2, 16), "start"), both.uniform((2, 16), "start")
    assert torch.equal(first[1:], alone.normal((1, 16), "start"))
    assert torch.equal(second[1:], alone.uniform((1, 16), "start"))
    assert not torch.equal(first, both.normal((2, 16), "start"))


def test_both_sources_are_noise_sources() -> None:
    sources: list[NoiseSource] = [CounterNoise(0, [0]), GeneratorNoise([torch.Generator()])]
    assert [source.normal((1, 2), "start").shape for source in sources] == [(1, 2), (1, 2)]


def test_choices_take_turns_in_an_order_of_the_key() -> None:
    def picks(seed: int = 0, purpose: str = "step") -> list[int]:
        return [choice_in_turn(4, seed=seed, count=count, purpose=purpose) for count in range(400)]

    result = picks()
    rounds = [tuple(result[start : start + 4]) for start in range(0, 400, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in rounds)
    assert len(set(rounds)) == 24  # every order comes
    assert result == picks()
    assert result != picks(seed=1)
    assert result != picks(purpose="stage")


def test_every_single_choice_is_uniform() -> None:
    picks = [choice_in_turn(4, seed=seed, count=6, purpose="step") for seed in range(2000)]
    counts = [picks.count(i) for i in range(4)]
    assert min(counts) > 430
    assert max(counts) < 570


def test_permutations_hold_every_index_once_and_differ_by_epoch_and_seed() -> None:
    first = permutation(100, seed=0, epoch=0)
    assert sorted(first.tolist()) == list(range(100))
    assert torch.equal(first, permutation(100, seed=0, epoch=0))
    assert not torch.equal(first, permutation(100, seed=0, epoch=1))
    assert not torch.equal(first, permutation(100, seed=1, epoch=0))


def test_seeds_that_torch_refuses_are_refused() -> None:
    for seed in (0, 7, MAX_SEED):
        expected = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.randn(3, generator=seeded(seed)), expected)
    check_seeds(MAX_SEED - 9, 10)
    for first, count in ((-1, 1), (MAX_SEED + 1, 1), (MAX_SEED - 8, 10), (10**400, 1), (1.5, 1), (True, 1)):
        with pytest.raises(RMDError, match=r"^(seeds are numbers from 0 to 18446744073709551615|a seed must be an)"):
            check_seeds(first, count)  # type: ignore[arg-type]
