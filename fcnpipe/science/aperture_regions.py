"""Regions of an image: the pixels around sources on which apertures are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels around sources, on which apertures are measured.

    Attributes
    ----------
    image : (h, w) float32
        Flux above the sky; NaN where a pixel has no data.
    noise : (h, w) float32
        Standard deviation of each pixel, in the unit of ``image``.
    labels : (h, w) int32
        Label of each pixel; 0 is background.
    flags : (h, w) uint8
        `PixelFlag` bits.
    box : Box
        Position of the region in the image.
    shape : (int, int)
        Height and width of the image.
    """

    image: NDArray[np.float32]
    noise: NDArray[np.float32]
    labels: NDArray[np.int32]
    flags: NDArray[np.uint8]
    box: Box
    shape: tuple[int, int]

    def cut(self, box: Box) -> Region:
        """Return the part inside a box, as a view."""
        part, place = self.box.clip(box), self.box.clip(box).within(self.box)
        maps = (self.image[place], self.noise[place], self.labels[place], self.flags[place])
        return Region(*maps, part, self.shape)


def join_regions(parts: Sequence[Region], box: Box) -> Region:
    """Assemble the region of a box from parts that cover it."""
    image, noise = np.empty(box.shape, np.float32), np.empty(box.shape, np.float32)
    labels, flags = np.empty(box.shape, np.int32), np.empty(box.shape, np.uint8)
    whole = Region(image, noise, labels, flags, box, parts[0].shape)
    for part in parts:
        place = part.box.within(box)
        whole.image[place], whole.noise[place] = part.image, part.noise
        whole.labels[place], whole.flags[place] = part.labels, part.flags
    return whole
