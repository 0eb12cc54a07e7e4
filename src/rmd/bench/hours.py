"""Computes how long a run takes on a card: its FLOPs, at the rate of iterations that were measured.

Nothing here is a measurement. A run of another family or batch reaches another rate than the measured iterations, so
there is a range: from the highest to the lowest rate among the rows of the same family, or of all rows if it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rmd.bench.cards import Card
from rmd.bench.live import gpu_attention
from rmd.bench.measured import measured
from rmd.bench.memory import Networks, blank_batch, meta_networks
from rmd.bench.training import BarePasses
from rmd.core.plan import Stage
from rmd.methods.base import draw_shares
from rmd.models.roles import Role
from rmd.recipes.schema import Recipe


@dataclass(frozen=True)
class Hours:
    """The hours of a run on one card, by the highest and by the lowest measured rate."""

    least: float
    most: float


def run_hours(recipe: Recipe, cards: Sequence[Card]) -> list[Hours]:
    """Return how many hours a recipe's iterations take on one of each of some cards, at its full batch.

    Raises:
        RMDError: the architecture of the recipe's teacher is unknown.
    """
    rates = measured_rates()
    own = rates.get(recipe.family) or [rate for of_family in rates.values() for rate in of_family]
    total = iteration_flops(recipe) * recipe.train.batch_size * recipe.train.iterations
    least, most = (total / rate / 3600 for rate in (max(own), min(own)))
    slower = [measured().card.tflops / card.tflops for card in cards]
    return [Hours(factor * least, factor * most) for factor in slower]


@cache
def measured_rates() -> dict[str, list[float]]:
    """Return the FLOPs per second that were reached in the measured rows, by family."""
    rates: dict[str, list[float]] = {}
    for row in measured().rows:
        recipe = measured().recipe_of(row)
        rates.setdefault(recipe.family, []).append(iteration_flops(recipe, row.step) / row.seconds)
    return rates


def iteration_flops(recipe: Recipe, step: int | None = None) -> float:
    """Return the FLOPs of an iteration for one sample: twice the multiply-accumulates of all networks.

    Args:
        step: number of the step that is trained; None: the mean over the steps as they are drawn.

    Raises:
        RMDError: the architecture of the recipe's teacher is unknown.
    """
    networks = meta_networks(recipe)
    plan, passes, config = networks.plan, _passes(networks), recipe.method
    shares = draw_shares(plan, config)
    own = passes.of_own_samples(plan.steps, shares) if config.order == "fake_first" else 0.0
    return own + sum(
        share * part * passes.of_iteration(plan.steps, each, fake_updates=config.fake_updates, scored=stage.index)
        for each, share in zip(plan.steps, shares if step is None else (1.0,) * len(shares), strict=True)
        if step in (None, each.index)
        for stage, part in networks.method.score_stages(each).items()
    )


def _passes(networks: Networks) -> BarePasses:
    """Return the FLOPs, in place of the seconds, of a forward pass and of a training pass at each stage."""
    branches = networks.recipe.method.teacher_branches
    stages = networks.plan.stages
    forward = {stage.index: _flops(partial(_forward, networks, stage)) for stage in stages}
    return BarePasses(
        forward=forward,
        trained={stage.index: _flops(partial(_train, networks, stage)) for stage in stages},
        guided={index: branches * flops for index, flops in forward.items()},
    )


def _flops(work: Callable[[], None]) -> float:
    with FlopCounterMode(display=False) as counter, gpu_attention():
        work()
    return float(counter.get_total_flops())


def _call(networks: Networks, stage: Stage, role: Role) -> Tensor:
    """Call the network of a role for one sample, and return its prediction of the clean one."""
    x = torch.empty(networks.method.latent_shape(1, stage), device=networks.backbone.device)
    with networks.roles.use(role) as network:
        return networks.method.predict(role, network, x, 500.0, blank_batch(networks, 1).cond, stage)[0]


def _forward(networks: Networks, stage: Stage) -> None:
    with torch.no_grad():
        _call(networks, stage, "teacher")


def _train(networks: Networks, stage: Stage) -> None:
    networks.roles.backward("student", _call(networks, stage, "student").square().mean())
    networks.roles.zero_grad()
