"""The standard separator: basins of steepest ascent, merged where a branch is too weak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.science.basins import SeparatedTile, separate
from fcnpipe.science.merge_tree import Criterion


@dataclass(frozen=True, slots=True)
class Watershed:
    """Basins of the elevation; see `fcnpipe.science.merge_tree` for the rule by which they merge.

    Attributes
    ----------
    criterion : Criterion
        What a branch must have to stay a source.
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
        """Give the segments of a core; parameters as in `Separator.separate`."""
        return separate(elevation, mask, core, shape, self.criterion, weights)
