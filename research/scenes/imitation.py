"""Imitation: a teacher learns from another one that has the same VAE, instead of from pictures.

At every noisy latent, the target is the other teacher's prediction. This is the mean of the targets that the pictures
themselves would give, without their variance, so it takes far fewer iterations. In addition, two hidden states get
hints (`research.scenes.hints`) from the other teacher: a layer of the denoiser, and the words of the text encoder,
which say what belongs to which object.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.scenes.hints import Head, OutputRecorder, hidden_layer, normalised
from research.scenes.tokenizer import MAX_LENGTH
from rmd.core.noise import NoiseSchedule, per_sample
from rmd.core.plan import Stage
from rmd.core.randomness import generator
from rmd.models.base import Backbone
from rmd.models.cond import Cond


@dataclass(frozen=True)
class Query:
    """The input of the network in training.

    Attributes:
        x_t: noisy latents (B, C, h, w).
        cond: the captions, encoded by the network in training.
        schedule: its noise schedule.
        times: times (B,) on this schedule, in 0 to 1000.
        captions: the captions.
        keep: (B,), false where the caption is dropped.
        stage, final: resolution of the latents, and the full resolution.
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
    """Imitation of one teacher by another. As a context manager, it records a hidden layer of both.

    Args:
        imitated: the trained teacher.
        learner: the one in training, with the same VAE.
        seed: seed of the linear maps of the hints.
    """

    def __init__(self, imitated: Backbone, learner: Backbone, *, seed: int) -> None:
        self.imitated = imitated
        self._theirs = OutputRecorder(*hidden_layer(imitated))
        self._ours = OutputRecorder(*hidden_layer(learner))
        g = generator(seed, "imitation")
        widths = [word_states(backbone, backbone.null(1)).shape[-1] for backbone in (learner, imitated)]
        self.head = nn.ModuleList([Head(self._ours.width, self._theirs.width, g), Head(widths[0], widths[1], g)])
        """Linear maps from the learner's layer and words to those of the imitated teacher; trained with the learner."""
        self._learner = learner
        self._words: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> Imitation:
        for recorder in (self._theirs, self._ours):
            recorder.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for recorder in (self._theirs, self._ours):
            recorder.detach()
        self._words = None

    def x0(self, query: Query) -> Tensor:
        """Return the imitated teacher's prediction of x0, of the shape of `x_t` and without gradient.

        It is evaluated at the time of its own schedule with the same logSNR, with the latents rescaled accordingly.
        """
        schedule = self.imitated.schedule
        theirs = schedule.time(query.schedule.logsnr(query.times))
        scale = per_sample(_size(schedule, theirs) / _size(query.schedule, query.times), query.x_t)
        with torch.no_grad():
            cond = encode_some(self.imitated, query.captions, query.keep)
            present = word_mask(self.imitated, query.captions) & query.keep[:, None]
            x0, _ = self.imitated.predict(
                self.imitated.denoiser,
                query.x_t * scale,
                theirs,
                self.imitated.stage_cond(cond, query.stage, query.final),
            )
        self._words = word_states(self._learner, query.cond)[present], word_states(self.imitated, cond)[present]
        return x0

    def hint_loss(self) -> Tensor:
        """Return the sum of the mean squared errors of the hidden layer and of the words for the last query.

        Every channel is standardised over the batch. Dropped captions have no words.
        """
        if self._words is None:
            raise RuntimeError("there is no query yet")
        layer, text = self.head
        ours, theirs = self._words
        target = self._theirs.tokens().detach().flatten(0, 1)
        loss = F.mse_loss(layer(self._ours.tokens().flatten(0, 1)), normalised(target))
        return loss if len(ours) < 2 else loss + F.mse_loss(text(ours), normalised(theirs))


def word_states(backbone: Backbone, cond: Cond) -> Tensor:
    """Return the encoder's states (B, n, width) of the words of each caption in order, with the end token last.

    CLIP's start token, which T5 does not have, is left out. States of several encoders are concatenated.
    """
    embeds = cond.tensors["embeds"]
    if backbone.family == "sdxl":
        return embeds[:, 1:]
    if backbone.family == "pixart":
        return embeds[:, :-1]
    clip, t5 = embeds.split(embeds.shape[1] // 2, 1)
    return torch.cat([clip[:, 1:], t5[:, :-1]], -1)


def word_mask(imitated: Backbone, captions: list[str]) -> Tensor:
    """Return which entries of `word_states` are words or the end token; (B, n), bool."""
    tokens = imitated.pipe.tokenizer_2(captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
    mask: Tensor = tokens.attention_mask[:, 1:].bool()
    return mask


def encode_some(backbone: Backbone, captions: list[str], keep: Tensor) -> Cond:
    """Encode captions; where `keep` (B,) is false, the empty caption takes their place."""
    cond, null = backbone.encode(captions), backbone.null(len(captions))
    return Cond(
        {k: torch.where(keep.view(-1, *[1] * (v.ndim - 1)), v, null.tensors[k]) for k, v in cond.tensors.items()}
    )


def _size(schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """Return the root mean square of noisy latents if the clean ones have unit variance."""
    return torch.hypot(schedule.alpha(times), schedule.sigma(times))
