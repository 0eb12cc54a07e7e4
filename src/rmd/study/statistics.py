"""Statistics of paired comparisons: shares of wins, the Davidson model, bootstrap over raters and prompts, agreement.

A vote compares two systems on one prompt, with ties. Votes of one rater, and votes on one prompt, are not independent;
therefore, intervals come from a bootstrap that draws raters and prompts separately.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize

from rmd.common.errors import RMDError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WIN, TIE, LOSS = 1.0, 0.5, 0.0
"""Outcomes of a vote for its first system."""


@dataclass(frozen=True)
class Votes:
    """n votes of one question.

    Attributes:
        rater, prompt: (n,) numbers of the rater and the prompt.
        first, second: (n,) numbers of the systems that were compared.
        outcome: (n,) `WIN`, `TIE` or `LOSS` of the first system.
    """

    rater: Ints
    prompt: Ints
    first: Ints
    second: Ints
    outcome: Floats

    def __len__(self) -> int:
        return len(self.outcome)

    def of(self, keep: NDArray[np.bool_]) -> Votes:
        """Return the votes for which `keep` (n,) is set."""
        return Votes(*(getattr(self, name)[keep] for name in Votes.__dataclass_fields__))

    def between(self, first: int, second: int) -> Votes:
        """Return the votes on two systems, with the outcomes of `first`."""
        straight = (self.first == first) & (self.second == second)
        turned = (self.first == second) & (self.second == first)
        kept = self.of(straight | turned)
        outcome = np.where(kept.first == first, kept.outcome, 1 - kept.outcome)
        return Votes(kept.rater, kept.prompt, np.full(len(kept), first), np.full(len(kept), second), outcome)


@dataclass(frozen=True)
class Davidson:
    """The Davidson model of comparisons with ties, fitted by maximum likelihood.

    Attributes:
        strengths: (systems,) natural logarithms of the strengths, with a mean of zero.
        tie: natural logarithm of the parameter of ties; -inf if there are none.
    """

    strengths: Floats
    tie: float


def davidson(votes: Votes, systems: int, weights: Floats | None = None, *, ridge: float = 1e-6) -> Davidson:
    """Fit the Davidson model: P(tie) is proportional to nu * sqrt(pi_i * pi_j), and P(i wins) to pi_i.

    Args:
        votes: at least one vote.
        systems: number of systems.
        weights: (n,) weights of the votes; all are 1 by default.
        ridge: weight of the strengths' squared norm, which keeps a system that always wins at a finite strength.

    Source: Davidson, On extending the Bradley-Terry model to accommodate ties in paired comparison experiments (1970).
    """
    each = np.ones(len(votes)) if weights is None else weights
    i, j, outcome = votes.first, votes.second, votes.outcome
    ties = bool(((outcome == TIE) & (each > 0)).any())

    def cost(parameters: Floats) -> tuple[float, Floats]:
        strengths, tie = parameters[:systems], parameters[systems]
        a, b = strengths[i], strengths[j]
        logits = np.stack([a, b, tie + (a + b) / 2]) if ties else np.stack([a, b])
        logs = logits - np.logaddexp.reduce(logits, axis=0)
        shares = np.exp(logs)
        happened = np.stack([outcome == WIN, outcome == LOSS, outcome == TIE])[: len(logits)]
        wrong = each * (shares - happened)
        half = wrong[2] / 2 if ties else 0.0
        slope = np.zeros(systems + 1)
        np.add.at(slope, i, wrong[0] + half)
        np.add.at(slope, j, wrong[1] + half)
        slope[systems] = wrong[2].sum() if ties else 0.0
        slope[:systems] += 2 * ridge * strengths
        return float(-(each * (logs * happened).sum(0)).sum() + ridge * strengths @ strengths), slope

    found = minimize(cost, np.zeros(systems + 1), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-8}).x
    strengths = found[:systems] - found[:systems].mean()
    return Davidson(strengths, float(found[systems]) if ties else -math.inf)


def connected(votes: Votes, systems: int) -> bool:
    """Return whether the comparisons link all systems; otherwise their strengths have no common scale."""
    groups = list(range(systems))
    for a, b in {(int(a), int(b)) for a, b in zip(votes.first, votes.second, strict=True)}:
        old, new = groups[a], groups[b]
        groups = [new if group == old else group for group in groups]
    return len(set(groups)) == 1


def bootstrap(
    votes: Votes, statistic: Callable[[Floats], Sequence[float]], *, draws: int, seed: int, level: float = 0.95
) -> list[tuple[float, float]]:
    """Return percentile intervals of statistics of weighted votes by a two-way cluster bootstrap.

    Raters and prompts are drawn with replacement, independently of each other; the weight of a vote is the product of
    how often its rater and its prompt were drawn. Draws in which no vote is left, and values that are not finite, are
    left out.

    Args:
        votes: the votes.
        statistic: maps weights (n,) to one or several values.
        draws: number of draws.
        seed: seed of the draws.
        level: coverage of the intervals.

    Source: Owen and Eckles, Bootstrapping data arrays of arbitrary order (2012).
    """
    random = np.random.default_rng(seed)
    clusters = [np.unique(ids, return_inverse=True)[1] for ids in (votes.rater, votes.prompt)]
    values = []
    for _ in range(draws):
        weights = np.ones(len(votes))
        for ids in clusters:
            count = int(ids.max()) + 1
            weights *= random.multinomial(count, np.full(count, 1 / count))[ids]
        if weights.any():
            values.append(statistic(weights))
    table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    edges = 100 * (1 - level) / 2
    intervals = []
    for column in table.T:
        finite = column[np.isfinite(column)]
        low, high = np.percentile(finite, [edges, 100 - edges]) if len(finite) else (math.nan, math.nan)
        intervals.append((float(low), float(high)))
    return intervals


def score(votes: Votes, weights: Floats | None = None) -> float:
    """Return the share of wins of the first system, with ties as half wins."""
    return float(np.average(votes.outcome, weights=weights))


def sign_test(votes: Votes) -> float:
    """Return the exact two-sided p of the hypothesis that neither system wins more often, without the ties.

    It presumes independent votes.
    """
    wins, losses = int((votes.outcome == WIN).sum()), int((votes.outcome == LOSS).sum())
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def agreement(units: Sequence[Sequence[float]]) -> float | None:
    """Return Krippendorff's alpha of votes as interval data: 1 is perfect agreement, 0 is that of chance.

    Args:
        units: for each pair of pictures, the outcomes that its raters gave, all for the same first system. Units with a
            single vote do not count.

    Returns:
        Alpha, or None if no two raters voted on the same pair, or all votes are equal.

    Source: Krippendorff, Computing Krippendorff's alpha-reliability (2011).
    """
    several = [np.asarray(unit, dtype=np.float64) for unit in units if len(unit) > 1]
    if not several:
        return None
    pooled = np.concatenate(several)
    expected = float(((pooled[:, None] - pooled) ** 2).sum()) / (len(pooled) - 1)
    if expected == 0:
        return None
    observed = sum(float(((unit[:, None] - unit) ** 2).sum()) / (len(unit) - 1) for unit in several)
    return 1 - observed / expected


def votes_needed(share: float, *, power: float = 0.8, level: float = 0.95) -> int:
    """Return how many independent decisive votes tell a share of wins from one half with a power.

    Args:
        share: the share of wins, in (0, 1) but not 0.5.
        power: probability that the test finds the difference.
        level: one minus the two-sided level of the test.

    Raises:
        RMDError: the share is 0.5 or out of range.
    """
    if not 0 < share < 1 or share == 0.5:
        raise RMDError(f"a share of wins lies between 0 and 1 and is not 0.5, got {share:g}")
    z, beyond = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(power)
    return math.ceil(float((z / 2 + beyond * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2)


def share_needed(votes: int, *, power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest share of wins above one half that so many independent decisive votes tell from one half."""
    if votes < 1:
        raise RMDError("there is no decisive vote")
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = middle < 1 and votes_needed(middle, power=power, level=level) <= votes
        low, high = (low, middle) if enough else (middle, high)
    return high
