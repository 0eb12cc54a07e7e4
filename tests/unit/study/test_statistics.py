"""Paired comparisons: closed forms, published examples, agreement with choix, and coverage in simulations."""

from __future__ import annotations

import math

import choix
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rmd.common.errors import RMDError
from rmd.core.metrics import wilson
from rmd.study.statistics import (
    Votes,
    agreement,
    bootstrap,
    connected,
    davidson,
    score,
    share_needed,
    sign_test,
    votes_needed,
)


def votes_of(first: list[int], second: list[int], outcome: list[float]) -> Votes:
    count = np.arange(len(outcome))
    return Votes(count, count, np.asarray(first), np.asarray(second), np.asarray(outcome, dtype=np.float64))


def two_systems(wins: int, ties: int, losses: int) -> Votes:
    outcome = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return votes_of([0] * len(outcome), [1] * len(outcome), outcome)


def simulated(strengths: list[float], count: int, *, tie: float, seed: int) -> Votes:
    """Draw votes on random pairs of systems by the Davidson model; a tie of -inf means none."""
    random = np.random.default_rng(seed)
    pi = np.asarray(strengths)
    first = random.integers(len(pi), size=count)
    second = (first + random.integers(1, len(pi), size=count)) % len(pi)
    logits = np.stack([pi[first], pi[second], tie + (pi[first] + pi[second]) / 2])
    drawn = (logits + random.gumbel(size=logits.shape)).argmax(0)
    ids = np.arange(count)
    return Votes(ids, ids, first, second, np.asarray([1.0, 0.0, 0.5])[drawn])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_davidson_of_two_systems_in_closed_form(wins: int, ties: int, losses: int) -> None:
    """The strengths' ratio is that of wins and losses, and nu is the ties over their geometric mean."""
    fitted = davidson(two_systems(wins, ties, losses), 2, ridge=0.0)
    assert fitted.strengths[0] - fitted.strengths[1] == pytest.approx(math.log(wins / losses), abs=1e-3)
    assert fitted.strengths.sum() == pytest.approx(0, abs=1e-12)
    assert fitted.tie == pytest.approx(math.log(ties / math.sqrt(wins * losses)), abs=1e-3)


def test_davidson_without_ties_is_the_bradley_terry_model_of_choix() -> None:
    votes = simulated([-0.8, 0.1, 0.4, 0.3], 400, tie=-math.inf, seed=1)
    pairs = [
        (int(a), int(b)) if outcome == 1 else (int(b), int(a))
        for a, b, outcome in zip(votes.first, votes.second, votes.outcome, strict=True)
    ]
    theirs = choix.ilsr_pairwise(4, pairs)
    ours = davidson(votes, 4)
    assert ours.tie == -math.inf
    assert ours.strengths == pytest.approx(theirs - theirs.mean(), abs=1e-3)


def test_a_weight_counts_as_that_many_votes() -> None:
    votes = two_systems(3, 2, 1)
    tripled = davidson(two_systems(9, 2, 1), 2)
    weighted = davidson(votes, 2, np.asarray([3.0, 3.0, 3.0, 1.0, 1.0, 1.0]))
    assert weighted.strengths == pytest.approx(tripled.strengths, abs=1e-4)
    assert weighted.tie == pytest.approx(tripled.tie, abs=1e-3)


def test_a_system_that_always_wins_has_a_finite_strength() -> None:
    fitted = davidson(two_systems(20, 0, 0), 2)
    assert 2 < fitted.strengths[0] < 20


def test_the_bootstrap_covers_the_true_strengths() -> None:
    """With independent votes, in at least 88 of 100 simulations: 95 are expected, and fewer than 88 almost never."""
    truth, hits = np.asarray([-0.3, 0.1, 0.2]), 0
    for seed in range(100):
        votes = simulated(truth.tolist(), 300, tie=-0.5, seed=seed)
        one = Votes(votes.rater, np.zeros_like(votes.prompt), votes.first, votes.second, votes.outcome)

        def first(weights: np.ndarray, votes: Votes = one) -> list[float]:
            return [float(davidson(votes, 3, weights).strengths[0])]

        ((low, high),) = bootstrap(one, first, draws=60, seed=seed)
        hits += low <= truth[0] <= high
    assert hits >= 88


def test_the_bootstrap_knows_that_votes_of_a_rater_are_not_independent() -> None:
    """Raters differ in taste, so the interval must be far wider than that of independent votes, and cover."""
    covered, widths = 0, []
    for seed in range(100):
        random = np.random.default_rng(seed)
        taste = 0.5 + 0.25 * random.standard_normal(12)
        rater = np.repeat(np.arange(12), 20)
        prompt = np.tile(np.arange(20), 12)
        outcome = (random.random(240) < taste[rater].clip(0, 1)).astype(float)
        votes = Votes(rater, prompt, np.zeros(240, int), np.ones(240, int), outcome)
        ((low, high),) = bootstrap(votes, lambda w, v=votes: [score(v, w)], draws=200, seed=seed)
        covered += low <= 0.5 <= high
        widths.append(high - low)
    assert covered >= 86
    independent = wilson(120, 240)
    assert np.mean(widths) > 1.8 * (independent.high - independent.low)


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (132, 200), (5, 5)])
def test_wilson_is_that_of_scipy(hits: int, total: int) -> None:
    theirs = stats.binomtest(hits, total).proportion_ci(method="wilson")
    ours = wilson(hits, total)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_votes_between_two_systems_are_those_of_the_first() -> None:
    votes = votes_of([0, 1, 2, 1], [1, 0, 0, 2], [1.0, 1.0, 0.0, 0.5])
    assert votes.between(0, 1).outcome.tolist() == [1.0, 0.0]
    assert votes.between(1, 2).outcome.tolist() == [0.5]
    assert votes.between(0, 2).outcome.tolist() == [1.0]


def test_systems_are_linked_or_not() -> None:
    assert connected(votes_of([0, 1], [1, 2], [1.0, 1.0]), 3)
    assert not connected(votes_of([0, 2], [1, 3], [1.0, 1.0]), 4)


def test_scores_and_signs() -> None:
    votes = two_systems(6, 2, 2)
    assert score(votes) == 0.7
    assert score(votes, np.asarray([0.0] * 8 + [1.0] * 2)) == 0.0
    assert sign_test(votes) == pytest.approx(stats.binomtest(6, 8).pvalue)
    assert sign_test(two_systems(0, 3, 0)) == 1.0


def test_krippendorffs_own_example() -> None:
    """Krippendorff (2011), section D: four observers, twelve units with missing values; alpha of intervals is 0.849."""
    units = [
        [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
        [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
    ]  # fmt: skip
    assert agreement(units) == pytest.approx(0.849, abs=5e-4)


def test_agreement_is_perfect_by_chance_or_unknown() -> None:
    assert agreement([[1, 1], [0, 0, 0]]) == 1
    opposed = agreement([[1, 0], [0, 1], [1, 0], [0, 1]])
    assert opposed is not None and opposed < 0
    assert agreement([[1], [0]]) is None and agreement([[1, 1], [1, 1]]) is None


def test_how_many_votes_a_share_needs() -> None:
    assert (votes_needed(0.55), votes_needed(0.45), votes_needed(0.6)) == (783, 783, 194)
    assert share_needed(783) == pytest.approx(0.55, abs=1e-4)
    assert votes_needed(share_needed(50)) <= 50
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(RMDError, match=r"^a share of wins lies between 0 and 1 and is not 0.5, got "):
            votes_needed(share)
    with pytest.raises(RMDError, match=r"^there is no decisive vote"):
        share_needed(0)
