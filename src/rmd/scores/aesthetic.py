"""The LAION aesthetic score: a linear function of CLIP's embedding, published as layers without activations.

Source: Schuhmann, https://github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0), the weights
`sac+logos+ava1-l14-linearMSE`; and its first version, https://github.com/LAION-AI/aesthetic-predictor (MIT), a single
layer. Scores of the two cannot be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rmd.common.errors import RMDError

_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class Aesthetic:
    """A linear score of embeddings.

    Attributes:
        weight: (d,).
        bias: a scalar.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Return the scores (n,) of normalised embeddings (n, d), about 1 to 10."""
        return embeddings @ self.weight + self.bias


def folded(state: Mapping[str, Tensor]) -> Aesthetic:
    """Return the score that layers without activations between them amount to.

    Args:
        state: the published tensors: `layers.N.weight` and `layers.N.bias` of the second version, or `weight` and
            `bias` of the first. Layers are applied in the order of N; dropout between them has no tensors.

    Raises:
        RMDError: there are other tensors, or they do not fit together.
    """
    if state.keys() == {"weight", "bias"}:
        layers = [(state["weight"], state["bias"])]
    else:
        found = {name: _LAYER.fullmatch(name) for name in state}
        numbers = sorted({int(match[1]) for match in found.values() if match})
        wanted = {f"layers.{number}.{kind}" for number in numbers for kind in ("weight", "bias")}
        if not numbers or state.keys() != wanted:
            raise RMDError(
                f"these are no weights of an aesthetic score: they are called {', '.join(sorted(state)[:4])}"
            )
        layers = [(state[f"layers.{number}.weight"], state[f"layers.{number}.bias"]) for number in numbers]
    weight, bias = (value.double() for value in layers[0])
    try:
        for later, offset in layers[1:]:
            weight, bias = later.double() @ weight, later.double() @ bias + offset.double()
        if weight.shape[0] != 1 or bias.shape != (1,):
            raise RuntimeError(f"{tuple(weight.shape)} is not one score")
    except RuntimeError as error:
        raise RMDError(f"these are no weights of an aesthetic score: {error}") from error
    return Aesthetic(weight[0].float(), bias[0].float())
