"""Default separator: watershed by steepest ascent, with weak branches merged into their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.science.basins import SeparatedTile, separate
from fcnpipe.science.merge_tree import Criterion


@dataclass(frozen=True, slots=True)
class Watershed:
    """Watershed of the elevation; `fcnpipe.science.merge_tree` defines how basins merge.

    Attributes
    ----------
    criterion : Criterion
        Minimum values of a branch that stays a source.
    """

    criterion: Criterion

    def separate(
        self,
        elevation: NDArray[np.uint16],
        mask: NDArray[np.bool_],
        core: Box,
        shape: tuple[int, int],
        weights: NDArray[np.int64] | None = None,
    ) -> SeparatedTile:
        """Divide the foreground of a core into segments; parameters as in `Separator.separate`."""
        return separate(elevation, mask, core, shape, self.criterion, weights)
