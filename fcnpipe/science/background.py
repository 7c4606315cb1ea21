r"""Sky and noise: clipped statistics per mesh cell, repaired, filtered and splined.

::

    pixels   0        cell      2 cell    3 cell
             |---------|---------|---------|----      one global mesh, anchored at pixel (0, 0)
             |    o    |    o    |    o    |    o     a node lies in the middle of a whole cell
                  \_______ spline _______/
             <--->                                    straight lines outside the outermost nodes

A cell sees only its own pixels, and a pixel of the spline only its own place and the
coefficients, always in the same order of operations. So every tile, strip or whole image gets
the same bits.

The conventions are those of SExtractor (Bertin & Arnouts 1996): clip at 3 sigma around the
median until nothing changes, then sky = 2.5 median - 1.5 mean, or the median in a crowded cell;
as there, the noise is the clipped one (1.4 % low for pure Gaussian noise). Where it departs: the
median of whole-numbered images is a grouped one, constant cells count as unmeasured, a cell
filled by a source is found by comparison with its neighbours, and the spline runs on as a
straight line at the image border.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcnpipe.science.mesh_repair import repair_cells
from fcnpipe.science.mesh_spline import Coefficients, evaluate_spline, fit_spline, subtract_spline
from fcnpipe.science.mesh_statistics import CellStatistics, Mask, Plane, measure_cells


@dataclass(frozen=True, slots=True)
class Background:
    """Sky and noise of a whole image, ready to be evaluated on any box.

    Parameters
    ----------
    cell : int
        Edge of a mesh cell in pixels.
    cells : CellStatistics
        The repaired and filtered mesh.
    sky_coefficients, noise_coefficients : (my + 4, mx + 4) float64
        Spline coefficients as :func:`fit_spline` gives them.
    """

    cell: int
    cells: CellStatistics
    sky_coefficients: Coefficients
    noise_coefficients: Coefficients

    @property
    def is_blank(self) -> bool:
        """Whether the image had no usable pixel: sky is 0 and noise NaN everywhere."""
        return bool(np.isnan(self.cells.noise).all())

    @property
    def is_noiseless(self) -> bool:
        """Whether every cell was constant: noise is 0 everywhere, so S/N has no meaning."""
        return bool((self.cells.noise == 0).all())

    @property
    def noise_limits(self) -> tuple[float, float]:
        """Least and greatest noise of the mesh, which the spline may not leave."""
        return float(self.cells.noise.min()), float(self.cells.noise.max())

    def sky(self, y0: int, x0: int, shape: tuple[int, int]) -> Plane:
        """Give the sky, in image units, of the box of this shape with its corner at (y0, x0)."""
        return evaluate_spline(self.sky_coefficients, self.cell, y0, x0, shape)

    def subtract_sky(self, values: Plane, y0: int, x0: int) -> None:
        """Take the sky off the pixels of a box with its corner at (y0, x0), in place."""
        subtract_spline(values, self.sky_coefficients, self.cell, y0, x0)

    def noise(self, y0: int, x0: int, shape: tuple[int, int]) -> Plane:
        """Give the noise of a box; > 0, unless the image is blank (NaN) or noiseless (0)."""
        coefficients, limits = self.noise_coefficients, self.noise_limits
        return evaluate_spline(coefficients, self.cell, y0, x0, shape, limits)


def estimate_background(
    image: Plane, bad: Mask, cell: int = 64, filter_size: int = 3
) -> Background:
    """Give the background of an image that fits in memory.

    Parameters
    ----------
    image : (h, w) float32
        Pixels; NaN and infinite ones are left out.
    bad : (h, w) bool
        Pixels to leave out.
    cell : int
        Edge of a mesh cell in pixels (SExtractor's BACK_SIZE).
    filter_size : int
        Edge of the median filter in cells (SExtractor's BACK_FILTERSIZE).

    Returns
    -------
    Background
        Look at ``is_blank`` and ``is_noiseless`` before dividing by its noise.

    Raises
    ------
    SpecError
        If ``cell`` or ``filter_size`` cannot be.
    InputError
        If the image is empty or the mask does not fit.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(100, 5, (64, 64)).astype(np.float32)
    >>> background = estimate_background(image, np.zeros((64, 64), bool), cell=16)
    >>> bool(abs(background.sky(0, 0, (64, 64)) - 100).max() < 2)
    True
    """
    return fit_background(measure_cells(image, bad, cell), cell, filter_size)


def fit_background(cells: CellStatistics, cell: int, filter_size: int = 3) -> Background:
    """Give the background that belongs to the measured mesh of a whole image.

    Parameters
    ----------
    cells : CellStatistics
        As measured; put together from tiles or not.
    cell : int
        Edge of a mesh cell in pixels.
    filter_size : int
        Edge of the median filter in cells, odd.
    """
    mesh = repair_cells(cells, filter_size)
    return Background(cell, mesh, fit_spline(mesh.sky), fit_spline(mesh.noise))


def weight_scale(noise: Plane, weight: Plane) -> float:
    """Give the factor that turns 1 / sqrt(weight) into noise in image units.

    Parameters
    ----------
    noise : (my, mx) float32
        Measured noise of the cells.
    weight : (my, mx) float32
        Typical weight of the same cells, as :func:`measure_weight` gives it.

    Returns
    -------
    float
        Median over the cells that have both; NaN if there is none.

    Notes
    -----
    SExtractor's MAP_WEIGHT: weights are relative, the image itself says how large the noise is.
    A map of absolute noise (MAP_RMS) needs no scale.
    """
    known = (noise > 0) & np.isfinite(noise) & (weight > 0) & np.isfinite(weight)
    ratios = noise[known].astype(np.float64) * np.sqrt(weight[known].astype(np.float64))
    return float(np.median(ratios)) if ratios.size else float("nan")


def noise_from_weight(weight: Plane, scale: float) -> Plane:
    """Give each pixel's noise from its relative weight.

    Parameters
    ----------
    weight : (h, w) float32
        Relative inverse variance.
    scale : float
        As :func:`weight_scale` gives it.

    Returns
    -------
    (h, w) float32
        ``scale / sqrt(weight)`` in image units; infinite where the weight is not positive or
        not finite, so that such a pixel has no significance.
    """
    known = (weight > 0) & np.isfinite(weight)
    safe = np.where(known, weight, 1).astype(np.float64)
    return np.where(known, scale / np.sqrt(safe), np.inf).astype(np.float32)
