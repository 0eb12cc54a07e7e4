"""How a teacher of the scenes learns from another one that has the same VAE.

At every noisy latent it learns that one's prediction, which is the mean of what the pictures themselves ask for,
without their scatter; and one of its layers learns, through a linear map that is thrown away, what a layer of that
one holds there (hints: Romero et al. 2015, arXiv 1412.6550), which tells it far more of each sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmd.backbones.base import Backbone, Cond
from rmd.noise import NoiseSchedule, per_sample
from rmd.plan import Stage
from rmd.randomness import generator


@dataclass(frozen=True)
class Asked:
    """Noisy latents that a network is given, and with what.

    Args:
        x_t: (B, C, h, w), made with `times` (B,) in 0..1000 of `schedule`.
        keep: (B,), false where the network is asked without its caption.
    """

    x_t: Tensor
    schedule: NoiseSchedule
    times: Tensor
    captions: list[str]
    keep: Tensor
    stage: Stage
    final: Stage


class Imitation:
    """One teacher as another's example; a context, in which hooks on both keep what their layers hold."""

    def __init__(self, imitated: Backbone, learner: Backbone, *, seed: int) -> None:
        self.imitated = imitated
        self._theirs, self._ours = _Kept(*hidden_layer(imitated)), _Kept(*hidden_layer(learner))
        self.head = _Head(self._ours.width, self._theirs.width, generator(seed, "imitation"))
        """What maps the learner's layer to the imitated one's; trained with the learner."""

    def __enter__(self) -> Self:
        for kept in (self._theirs, self._ours):
            kept.watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for kept in (self._theirs, self._ours):
            kept.leave()

    def x0(self, asked: Asked) -> Tensor:
        """The x0 that the imitated teacher predicts, of the shape of `x_t`; no gradient.

        It is asked at its own time of the same signal-to-noise ratio, with the latents scaled to that time's size.
        """
        schedule = self.imitated.schedule
        theirs = schedule.time(asked.schedule.logsnr(asked.times))
        scale = per_sample(_size(schedule, theirs) / _size(asked.schedule, asked.times), asked.x_t)
        with torch.no_grad():
            cond = encode_some(self.imitated, asked.captions, asked.keep)
            x0, _ = self.imitated.predict(
                self.imitated.denoiser,
                asked.x_t * scale,
                theirs,
                self.imitated.stage_cond(cond, asked.stage, asked.final),
            )
        return x0

    def hint_loss(self) -> Tensor:
        """Mean squared error of the imitated layer, each channel of unit variance, in what both networks last saw."""
        wanted = self._theirs.tokens().detach()
        wanted = (wanted - wanted.mean((0, 1))) / (wanted.std((0, 1)) + 1e-3)
        return F.mse_loss(self.head(self._ours.tokens()), wanted)


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
    return denoiser.get_submodule(f"transformer_blocks.{depth - depth // 3 - 1}"), width


def encode_some(backbone: Backbone, captions: list[str], keep: Tensor) -> Cond:
    """The captions where `keep` (B,) is true, no caption elsewhere."""
    cond, null = backbone.encode(captions), backbone.null(len(captions))
    return Cond(
        {k: torch.where(keep.view(-1, *[1] * (v.ndim - 1)), v, null.tensors[k]) for k, v in cond.tensors.items()}
    )


class _Kept:
    """What a layer last put out."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        self.layer, self.width = layer, width
        self._output: Tensor | None = None

    def watch(self) -> None:
        def keep(module: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._output = output[-1] if isinstance(output, tuple) else output  # an MMDiT's: text, then picture

        self._hook = self.layer.register_forward_hook(keep)

    def leave(self) -> None:
        self._hook.remove()
        self._output = None

    def tokens(self) -> Tensor:
        """(B, tokens, width), row by row."""
        if self._output is None:
            raise RuntimeError("the layer has put out nothing yet")
        return self._output if self._output.ndim == 3 else self._output.flatten(2).transpose(1, 2)


class _Head(nn.Module):
    """A linear map; its name tells the optimisers that it is an output (rmd.scenes.teacher.Optimizers)."""

    def __init__(self, ours: int, theirs: int, g: torch.Generator) -> None:
        super().__init__()
        self.proj_out = nn.utils.skip_init(nn.Linear, ours, theirs)
        nn.init.xavier_uniform_(self.proj_out.weight, generator=g)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.proj_out(tokens)
        return found


def _size(schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """Root mean square of noisy latents whose clean ones are of unit variance."""
    return torch.hypot(schedule.alpha(times), schedule.sigma(times))
