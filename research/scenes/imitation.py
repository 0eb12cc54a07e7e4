"""How a teacher of the scenes learns from another one that has the same VAE.

At every noisy latent it learns that one's prediction, which is the mean of what the pictures themselves ask for,
without their scatter. Two of its inner states learn what that one's hold there (research.scenes.hints): a layer of the
denoiser, and the text encoder's words, which know what belongs to which object.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.scenes.hints import Head, Kept, hidden_layer, normalised
from research.scenes.tokenizer import MAX_LENGTH
from rmd.core.noise import NoiseSchedule, per_sample
from rmd.core.plan import Stage
from rmd.core.randomness import generator
from rmd.models.base import Backbone, Cond


@dataclass(frozen=True)
class Asked:
    """Noisy latents that a network is given, and with what.

    Args:
        x_t: (B, C, h, w), made with `times` (B,) in 0..1000 of `schedule`.
        cond: the captions as the network itself encodes them.
        keep: (B,), false where the network is asked without its caption.
    """

    x_t: Tensor
    cond: Cond
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
        self._theirs, self._ours = Kept(*hidden_layer(imitated)), Kept(*hidden_layer(learner))
        g = generator(seed, "imitation")
        widths = [words(backbone, backbone.null(1)).shape[-1] for backbone in (learner, imitated)]
        self.head = nn.ModuleList([Head(self._ours.width, self._theirs.width, g), Head(widths[0], widths[1], g)])
        """What maps the learner's layer, and its words, to the imitated one's; trained with the learner."""
        self._learner = learner
        self._said: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> Imitation:
        for kept in (self._theirs, self._ours):
            kept.watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for kept in (self._theirs, self._ours):
            kept.leave()
        self._said = None

    def x0(self, asked: Asked) -> Tensor:
        """The x0 that the imitated teacher predicts, of the shape of `x_t`; no gradient.

        It is asked at its own time of the same signal-to-noise ratio, with the latents scaled to that time's size.
        """
        schedule = self.imitated.schedule
        theirs = schedule.time(asked.schedule.logsnr(asked.times))
        scale = per_sample(_size(schedule, theirs) / _size(asked.schedule, asked.times), asked.x_t)
        with torch.no_grad():
            cond = encode_some(self.imitated, asked.captions, asked.keep)
            spoken = said(self.imitated, asked.captions) & asked.keep[:, None]
            x0, _ = self.imitated.predict(
                self.imitated.denoiser,
                asked.x_t * scale,
                theirs,
                self.imitated.stage_cond(cond, asked.stage, asked.final),
            )
        self._said = words(self._learner, asked.cond)[spoken], words(self.imitated, cond)[spoken]
        return x0

    def hint_loss(self) -> Tensor:
        """Mean squared errors of the imitated layer and of its words, each channel of unit variance, added.

        Of what both networks last saw; captions that were left out have no words.
        """
        if self._said is None:
            raise RuntimeError("the imitated teacher has been asked nothing yet")
        layer, text = self.head
        ours, theirs = self._said
        wanted = self._theirs.tokens().detach().flatten(0, 1)
        loss = F.mse_loss(layer(self._ours.tokens().flatten(0, 1)), normalised(wanted))
        return loss if len(ours) < 2 else loss + F.mse_loss(text(ours), normalised(theirs))


def words(backbone: Backbone, cond: Cond) -> Tensor:
    """(B, n, width) states of a caption's words, and of its end mark after the last, in the words' order.

    T5 has no start mark, CLIP has one; where a family has both encoders, their states lie side by side.
    """
    embeds = cond.tensors["embeds"]
    if backbone.family == "sdxl":
        return embeds[:, 1:]
    if backbone.family == "pixart":
        return embeds[:, :-1]
    clip, t5 = embeds.split(embeds.shape[1] // 2, 1)
    return torch.cat([clip[:, 1:], t5[:, :-1]], -1)


def said(imitated: Backbone, captions: list[str]) -> Tensor:
    """(B, n) bool, true at a caption's words and its end mark, as `words` has them."""
    found = imitated.pipe.tokenizer_2(captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
    mask: Tensor = found.attention_mask[:, 1:].bool()
    return mask


def encode_some(backbone: Backbone, captions: list[str], keep: Tensor) -> Cond:
    """The captions where `keep` (B,) is true, no caption elsewhere."""
    cond, null = backbone.encode(captions), backbone.null(len(captions))
    return Cond(
        {k: torch.where(keep.view(-1, *[1] * (v.ndim - 1)), v, null.tensors[k]) for k, v in cond.tensors.items()}
    )


def _size(schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """Root mean square of noisy latents whose clean ones are of unit variance."""
    return torch.hypot(schedule.alpha(times), schedule.sigma(times))
