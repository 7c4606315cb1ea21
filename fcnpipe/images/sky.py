"""Sky and noise of an image, or the fixed scale that replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.science import quantisation
from fcnpipe.science.background import Background
from fcnpipe.science.mesh_statistics import CellStatistics

_CELLS = ("sky", "noise", "good")
_COEFFICIENTS = ("sky_coefficients", "noise_coefficients")


@dataclass(frozen=True, slots=True)
class Sky:
    """Sky and noise of all planes of an exposure.

    Attributes
    ----------
    planes : tuple of Background
        One for each plane.
    scales : tuple of float
        Turns a relative weight into noise, for each plane; NaN without a weight map.
    weights : (bands,) float64
        Of the bands in the detection plane.
    """

    planes: tuple[Background, ...]
    scales: tuple[float, ...]
    weights: NDArray[np.float64]

    @property
    def unit(self) -> float:
        """Unit of fixed-point fluxes on the last plane, a power of two in image units."""
        noise = self.planes[-1].cells.noise
        return quantisation.flux_unit(float(np.median(noise[noise > 0])))


@dataclass(frozen=True, slots=True)
class FixedScale:
    """A fixed zero and unit of the pixel values, where no sky is to be taken off.

    Attributes
    ----------
    offset, scale : float
        Zero and unit, image units.
    weights : (bands,) float64
        Of the bands in the detection plane.
    """

    offset: float
    scale: float
    weights: NDArray[np.float64]


def pack_sky(sky: Sky) -> dict[str, NDArray[Any]]:
    """Give plain arrays that :func:`unpack_sky` reads."""
    arrays: dict[str, NDArray[Any]] = {
        "weights": sky.weights,
        "scales": np.array(sky.scales),
        "cell": np.array(sky.planes[0].cell),
    }
    for i, plane in enumerate(sky.planes):
        arrays |= {f"{name}{i}": getattr(plane.cells, name) for name in _CELLS}
        arrays |= {f"{name}{i}": getattr(plane, name) for name in _COEFFICIENTS}
    return arrays


def unpack_sky(arrays: dict[str, NDArray[Any]]) -> Sky:
    """Rebuild a sky from plain arrays."""
    planes = tuple(
        Background(
            int(arrays["cell"]),
            CellStatistics(*(arrays[f"{name}{i}"] for name in _CELLS)),
            *(arrays[f"{name}{i}"] for name in _COEFFICIENTS),
        )
        for i in range(len(arrays["scales"]))
    )
    return Sky(planes, tuple(arrays["scales"].tolist()), arrays["weights"])
