"""Sets of rendered pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SceneSet:
    """n rendered scenes of a world of k attributes.

    Attributes:
        images: (n, 3, side, side) uint8.
        attributes: (n, k) int64, columns as in the world's grammar.
        captions: one per scene.
        places: (n, 2, 3): centre x, centre y and radius of both objects in canvas units, 0 for one that is not there.
    """

    images: Tensor
    attributes: Tensor
    captions: list[str]
    places: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def pixels(self, index: Tensor) -> Tensor:
        """Return the images at the given indices as float32 in [-1, 1], the range of diffusers' VAEs."""
        return self.images[index].float() / 127.5 - 1
