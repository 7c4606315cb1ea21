"""Sky and noise of all planes of an image, or the fixed offset and scale that replace them."""

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
    """Sky and noise of all planes of a masked image.

    Attributes
    ----------
    planes : tuple of Background
        One for each plane.
    weight_scales : tuple of float
        Factor, for each plane, that converts relative weights to noise; NaN without a weight map.
    band_weights : (bands,) float64
        Weights of the bands in the detection plane.
    """

    planes: tuple[Background, ...]
    weight_scales: tuple[float, ...]
    band_weights: NDArray[np.float64]

    @property
    def unit(self) -> float:
        """Unit of fixed-point fluxes on the last plane, a power of two in image units."""
        noise = self.planes[-1].cells.noise
        return quantisation.flux_unit(float(np.median(noise[noise > 0])))


@dataclass(frozen=True, slots=True)
class FixedScale:
    """A fixed offset and unit of the pixel values, used where no sky is subtracted.

    Attributes
    ----------
    offset, scale : float
        Value that becomes 0, and the difference that becomes 1, image units.
    band_weights : (bands,) float64
        Weights of the bands in the detection plane.
    """

    offset: float
    scale: float
    band_weights: NDArray[np.float64]


def pack_sky(sky: Sky) -> dict[str, NDArray[Any]]:
    """Return the sky as plain arrays, from which :func:`unpack_sky` restores it."""
    arrays: dict[str, NDArray[Any]] = {
        "weights": sky.band_weights,
        "scales": np.array(sky.weight_scales),
        "cell": np.array(sky.planes[0].cell),
    }
    for i, plane in enumerate(sky.planes):
        arrays |= {f"{name}{i}": getattr(plane.cells, name) for name in _CELLS}
        arrays |= {f"{name}{i}": getattr(plane, name) for name in _COEFFICIENTS}
    return arrays


def unpack_sky(arrays: dict[str, NDArray[Any]]) -> Sky:
    """Restore a sky from the arrays of :func:`pack_sky`."""
    planes = tuple(
        Background(
            int(arrays["cell"]),
            CellStatistics(*(arrays[f"{name}{i}"] for name in _CELLS)),
            *(arrays[f"{name}{i}"] for name in _COEFFICIENTS),
        )
        for i in range(len(arrays["scales"]))
    )
    return Sky(planes, tuple(arrays["scales"].tolist()), arrays["weights"])
