"""Encodes prompts as they are needed; recent ones are kept in main memory, and so may be the text encoders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from rmd.models.base import Backbone
from rmd.models.cond import Cond


class OnlineEncoder:
    """A backbone's `encode` and `null`, with a cache of recent prompts.

    Each prompt is encoded separately, so that its encoding depends neither on the other prompts of a batch nor on the
    state of the cache: a resumed run sees the same bits.
    """

    def __init__(self, backbone: Backbone, *, cache_bytes: int, offload: bool) -> None:
        """Wrap a backbone.

        Args:
            backbone: the backbone whose text encoders are used.
            cache_bytes: bytes of main memory for encoded prompts; the least recently used are dropped first.
            offload: whether to keep the text encoders on the CPU except while encoding.
        """
        self.backbone, self.cache_bytes, self.offload = backbone, cache_bytes, offload
        self.held = 0
        self._rows: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        if offload:
            self._move(torch.device("cpu"))

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Return the encoded prompts as one batch on the backbone's device."""
        rows = {prompt: self._rows[prompt] for prompt in prompts if prompt in self._rows}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
        for prompt, cond in zip(missing, self._encoded(missing), strict=True):
            rows[prompt] = {name: tensor[0].cpu() for name, tensor in cond.tensors.items()}
        for prompt in dict.fromkeys(prompts):
            self._keep(prompt, rows[prompt])
        names = rows[prompts[0]]
        return Cond({name: torch.stack([rows[prompt][name] for prompt in prompts]) for name in names}).to(
            self.backbone.device
        )

    def null(self, count: int) -> Cond:
        """Return the input of the unconditional branch as a batch of `count` equal rows."""
        (null,) = self._encoded([None])
        return null.expand(count)

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str | None]) -> list[Cond]:
        """Encode each prompt separately; None stands for the input of the unconditional branch."""
        if not prompts:
            return []
        try:
            if self.offload:
                self._move(self.backbone.device)
            return [self.backbone.null(1) if prompt is None else self.backbone.encode([prompt]) for prompt in prompts]
        finally:
            if self.offload:
                self._move(torch.device("cpu"))

    def _keep(self, prompt: str, row: dict[str, Tensor]) -> None:
        if prompt not in self._rows:
            self._rows[prompt] = row
            self.held += _size(row)
        self._rows.move_to_end(prompt)
        while self.held > self.cache_bytes:
            self.held -= _size(self._rows.popitem(last=False)[1])

    def _move(self, device: torch.device) -> None:
        for encoder in self.backbone.text_encoders:
            encoder.to(device)


def _size(row: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in row.values())
