"""Hints: a hidden layer of the network in training learns, through a linear map, to predict labels of its input.

The linear map is discarded in the end. Hints (Romero et al. 2015, arXiv 1412.6550) say far more about each sample than
the denoising loss does, and do not change the optimum of that loss.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmd.core.randomness import generator
from rmd.models.base import Backbone


class LabelHints:
    """Hints from labels of every token. As a context manager, it records the output of the network's hidden layer.

    Args:
        learner: the network in training.
        width: number of labels per token.
        seed: seed of the linear map.
    """

    def __init__(self, learner: Backbone, width: int, *, seed: int) -> None:
        self._layer = OutputRecorder(*hidden_layer(learner))
        self.head = Head(self._layer.width, width, generator(seed, "knowledge"))
        """Linear map from the layer to the labels; trained with the network."""

    def __enter__(self) -> LabelHints:
        self._layer.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layer.detach()

    def loss(self, labels: Tensor) -> Tensor:
        """Return the mean squared error of the labels (B, tokens, width) of the layer's last input.

        Every label is standardised over the tokens of the batch.
        """
        target = normalised(labels.float().flatten(0, 1))
        return F.mse_loss(self.head(self._layer.tokens().flatten(0, 1)), target)


def hidden_layer(backbone: Backbone) -> tuple[nn.Module, int]:
    """Return the layer that gets hints, at half the resolution of the latents, and its width.

    In the U-Net, it is the last layer with text; in transformers, the one before the last third of their depth.
    """
    denoiser: Any = backbone.denoiser
    if backbone.family == "sdxl":
        layer = denoiser.get_submodule("up_blocks.1")
        return layer, int(denoiser.config["block_out_channels"][-2])
    depth = int(denoiser.config["num_layers"])
    width = int(denoiser.config["num_attention_heads"] * denoiser.config["attention_head_dim"])
    blocks = "blocks" if backbone.family == "wan" else "transformer_blocks"
    return denoiser.get_submodule(f"{blocks}.{depth - depth // 3 - 1}"), width


class OutputRecorder:
    """Records the last output of a layer by a forward hook."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        self.layer, self.width = layer, width
        self._output: Tensor | None = None

    def attach(self) -> None:
        """Add the hook."""

        def record(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._output = output[-1] if isinstance(output, tuple) else output  # an MMDiT returns text, then picture

        self._hook = self.layer.register_forward_hook(record)

    def detach(self) -> None:
        """Remove the hook and the recorded output."""
        self._hook.remove()
        self._output = None

    def tokens(self) -> Tensor:
        """Return the last output as (B, tokens, width), frame by frame and row by row."""
        if self._output is None:
            raise RuntimeError("the layer has no output yet")
        return self._output if self._output.ndim == 3 else self._output.flatten(2).transpose(1, 2)


class Head(nn.Module):
    """A linear map. The name `proj_out` makes `Optimizers` treat it as an output layer."""

    def __init__(self, inputs: int, outputs: int, g: torch.Generator) -> None:
        super().__init__()
        self.proj_out = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.xavier_uniform_(self.proj_out.weight, generator=g)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., inputs) to (..., outputs)."""
        mapped: Tensor = self.proj_out(tokens)
        return mapped


def normalised(states: Tensor) -> Tensor:
    """Return states (n, width) with every channel at zero mean and unit variance."""
    return (states - states.mean(0)) / (states.std(0) + 1e-3)
