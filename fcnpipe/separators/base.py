"""Protocol of separators: from the maps of a tile to segments and records that join tiles."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.science.basins import SeparatedTile
from fcnpipe.science.merge_tree import Criterion


class Separator(Protocol):
    """Object that divides the foreground of a tile into segments.

    It is picklable, and finds the same sources for any tiling.
    """

    @property
    def criterion(self) -> Criterion:
        """Minimum values of a branch that stays a source; the same for tiles and joins."""
        ...

    def separate(
        self,
        elevation: NDArray[np.uint16],
        mask: NDArray[np.bool_],
        core: Box,
        shape: tuple[int, int],
        weights: NDArray[np.int64] | None = None,
    ) -> SeparatedTile:
        """Divide the foreground of a core into segments.

        Parameters
        ----------
        elevation : (h, w) uint16
            Elevation over ``core`` grown by 1 px on each side and clipped to the image.
        mask : (h, w) bool
            True where a pixel is foreground; the same box.
        core : Box
            Pixels of the tile.
        shape : (int, int)
            Height and width of the whole image.
        weights : (h, w) int64, optional
            Flux of each pixel, >= 0.

        Returns
        -------
        SeparatedTile
            Segments, and the records with which `fcnpipe.science.merge_tree` joins tiles.
        """
        ...
