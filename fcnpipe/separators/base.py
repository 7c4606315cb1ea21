"""What a separator is: from maps of a tile to segments, and what its seams leave open."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.science.basins import SeparatedTile
from fcnpipe.science.merge_tree import Criterion


class Separator(Protocol):
    """Divides the foreground of a tile; picklable, the same for any tiling."""

    @property
    def criterion(self) -> Criterion:
        """What a branch must have to stay a source; the same for tiles and joins."""
        ...

    def separate(
        self,
        elevation: NDArray[np.uint16],
        mask: NDArray[np.bool_],
        core: Box,
        shape: tuple[int, int],
        weights: NDArray[np.int64] | None = None,
    ) -> SeparatedTile:
        """Give the segments of a core, and what its neighbours must know.

        Parameters
        ----------
        elevation : (h, w) uint16
            Over ``core`` grown by 1 px on each side and clipped to the image.
        mask : (h, w) bool
            True is foreground; the same pixels.
        core : Box
            What the tile answers for.
        shape : (int, int)
            Height and width of the whole image.
        weights : (h, w) int64, optional
            Flux of each pixel, >= 0.

        Returns
        -------
        SeparatedTile
            Its graph is joined by `fcnpipe.science.merge_tree.join`, whatever the separator.
        """
        ...
