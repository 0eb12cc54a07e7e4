"""Counts the bytes of tensors that are alive while code runs on the meta device, where tensors hold no numbers.

A tensor of the meta device is created, kept for the backward pass and freed at the same moments as on a GPU. So the
bytes of its storages, added up while the real code runs, are what torch's allocator on a GPU would hold.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rmd.models.untrained import META

BLOCK = 512
"""Multiple of bytes that torch's allocator on a GPU gives a tensor."""


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the storages which operations inside it create on the meta device.

    Attributes:
        now: bytes that are alive.
        most: the largest `now` since `restart`.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.most = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor until it is freed; a storage that is known already is not counted again."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if tensor.device != META or key in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.most = max(self.most, self.now)

    def restart(self) -> None:
        """Begin a new maximum."""
        self.most = self.now

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        output = func(*args, **(kwargs or {}))
        for value in tree_iter(output):
            if isinstance(value, Tensor):
                self.hold(value)
        return output


@contextmanager
def gpu_attention() -> Iterator[None]:
    """Within the block, let attention run the operators that torch chooses on a GPU, which keep no table of scores.

    On the meta device torch takes the plain formula instead, whose scores would be counted. The function is replaced,
    since a mode of torch's functions is off in the backward pass, where checkpointing calls it again.
    """
    usual = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Call flash attention, or memory-efficient attention if there is a mask."""
    if attn_mask is None:
        output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return output
    masked: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
    return masked
