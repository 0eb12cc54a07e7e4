"""Hints (Romero et al. 2015, arXiv 1412.6550): an inner layer learns, through a linear map that is thrown away, what is
known of its input. They tell a network far more of each sample than its own loss does, and move no optimum of that.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmd.core.randomness import generator
from rmd.models.base import Backbone


class Knowledge:
    """Hints from what is known of a picture or clip; a context, in which a hook keeps what the learner's layer holds.

    Args:
        width: numbers known of each token.
    """

    def __init__(self, learner: Backbone, width: int, *, seed: int) -> None:
        self._layer = Kept(*hidden_layer(learner))
        self.head = Head(self._layer.width, width, generator(seed, "knowledge"))
        """What maps the layer to what is known; trained with the learner."""

    def __enter__(self) -> Knowledge:
        self._layer.watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layer.leave()

    def hint_loss(self, known: Tensor) -> Tensor:
        """Mean squared error of `known` (B, tokens, width), each number of unit variance, as the layer last saw it."""
        wanted = normalised(known.float().flatten(0, 1))
        return F.mse_loss(self.head(self._layer.tokens().flatten(0, 1)), wanted)


def hidden_layer(backbone: Backbone) -> tuple[nn.Module, int]:
    """The layer whose output says what is where, at half the latents' side, and its width.

    Of the U-Net it is the last with text in it; of the transformers, the one before the last third of their depth.
    """
    denoiser: Any = backbone.denoiser
    if backbone.family == "sdxl":
        layer = denoiser.get_submodule("up_blocks.1")
        return layer, int(denoiser.config["block_out_channels"][-2])
    depth = int(denoiser.config["num_layers"])
    width = int(denoiser.config["num_attention_heads"] * denoiser.config["attention_head_dim"])
    blocks = "blocks" if backbone.family == "wan" else "transformer_blocks"
    return denoiser.get_submodule(f"{blocks}.{depth - depth // 3 - 1}"), width


class Kept:
    """What a layer last put out."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        self.layer, self.width = layer, width
        self._output: Tensor | None = None

    def watch(self) -> None:
        """Begin to keep it."""

        def keep(module: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._output = output[-1] if isinstance(output, tuple) else output  # an MMDiT's: text, then picture

        self._hook = self.layer.register_forward_hook(keep)

    def leave(self) -> None:
        """Leave the layer as it was."""
        self._hook.remove()
        self._output = None

    def tokens(self) -> Tensor:
        """(B, tokens, width), frame by frame and row by row."""
        if self._output is None:
            raise RuntimeError("the layer has put out nothing yet")
        return self._output if self._output.ndim == 3 else self._output.flatten(2).transpose(1, 2)


class Head(nn.Module):
    """A linear map; its name tells the optimisers that it is an output (research.scenes.fitting.Optimizers)."""

    def __init__(self, ours: int, theirs: int, g: torch.Generator) -> None:
        super().__init__()
        self.proj_out = nn.utils.skip_init(nn.Linear, ours, theirs)
        nn.init.xavier_uniform_(self.proj_out.weight, generator=g)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.proj_out(tokens)
        return found


def normalised(states: Tensor) -> Tensor:
    """(n, width) states with each channel of zero mean and unit variance."""
    return (states - states.mean(0)) / (states.std(0) + 1e-3)
