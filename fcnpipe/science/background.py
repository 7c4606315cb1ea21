"""Sky and noise of an image, by a spline through repaired cell statistics; noise from weight maps.

::

    pixels --> mesh_statistics --> mesh_repair --> mesh_spline --> sky and noise of any box of pixels
               sigma clipping      fill, filter    natural
               per cell                            bicubic

The conventions are those of SExtractor (Bertin & Arnouts 1996). There are four differences:

* the median of a cell is a grouped median, so that integer images have a smooth sky;
* constant cells count as not measured;
* a cell filled by a source is found by comparison with its neighbours;
* the spline continues as a straight line at the border of the image.

Every step depends on global pixel positions only. The result for a pixel has the same bits in any
tile, in any strip and in the whole image.
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
        Results of :func:`fcnpipe.science.mesh_spline.fit_spline`.
    """

    cell: int
    cells: CellStatistics
    sky_coefficients: Coefficients
    noise_coefficients: Coefficients

    @property
    def is_blank(self) -> bool:
        """Whether the image has no usable pixel: sky is 0 and noise is NaN everywhere."""
        return bool(np.isnan(self.cells.noise).all())

    @property
    def is_noiseless(self) -> bool:
        """Whether every cell is constant: noise is 0 everywhere, so S/N has no meaning."""
        return bool((self.cells.noise == 0).all())

    @property
    def noise_limits(self) -> tuple[float, float]:
        """Minimum and maximum noise of the mesh; the spline is clipped to them."""
        return float(self.cells.noise.min()), float(self.cells.noise.max())

    def sky(self, y0: int, x0: int, shape: tuple[int, int]) -> Plane:
        """Return the sky, (h, w) float32 in image units, of the box of ``shape`` with first pixel (y0, x0)."""
        return evaluate_spline(self.sky_coefficients, self.cell, y0, x0, shape)

    def subtract_sky(self, values: Plane, y0: int, x0: int) -> None:
        """Subtract the sky from the pixels of a box with first pixel (y0, x0), in place."""
        subtract_spline(values, self.sky_coefficients, self.cell, y0, x0)

    def noise(self, y0: int, x0: int, shape: tuple[int, int]) -> Plane:
        """Return the noise, (h, w) float32 in image units, of a box; > 0, except NaN if blank and 0 if noiseless."""
        coefficients, limits = self.noise_coefficients, self.noise_limits
        return evaluate_spline(coefficients, self.cell, y0, x0, shape, limits)


def estimate_background(
    image: Plane, bad: Mask, cell: int = 64, filter_size: int = 3
) -> Background:
    """Estimate the background of an image that fits in memory.

    Parameters
    ----------
    image : (h, w) float32
        Pixels; NaN and infinite pixels are ignored.
    bad : (h, w) bool
        Pixels to ignore.
    cell : int
        Edge of a mesh cell in pixels (SExtractor's BACK_SIZE).
    filter_size : int
        Edge of the median filter in cells (SExtractor's BACK_FILTERSIZE).

    Returns
    -------
    Background
        Check ``is_blank`` and ``is_noiseless`` before dividing by its noise.

    Raises
    ------
    SpecError
        If ``cell`` is not positive or ``filter_size`` is not a positive odd number.
    InputError
        If the image is empty or not two-dimensional, or ``bad`` has another shape.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(100, 5, (64, 64)).astype(np.float32)
    >>> background = estimate_background(image, np.zeros((64, 64), bool), cell=16)
    >>> bool(abs(background.sky(0, 0, (64, 64)) - 100).max() < 2)
    True
    """
    return fit_background(measure_cells(image, bad, cell), cell, filter_size)


def fit_background(cells: CellStatistics, cell: int, filter_size: int = 3) -> Background:
    """Repair the measured mesh of a whole image and fit splines to it.

    Parameters
    ----------
    cells : CellStatistics
        Measured statistics of all cells, at once or assembled from tiles.
    cell : int
        Edge of a mesh cell in pixels.
    filter_size : int
        Edge of the median filter in cells, odd.

    Returns
    -------
    Background
        Check ``is_blank`` and ``is_noiseless`` before dividing by its noise.

    Raises
    ------
    SpecError
        If ``filter_size`` is not a positive odd number.
    """
    mesh = repair_cells(cells, filter_size)
    return Background(cell, mesh, fit_spline(mesh.sky), fit_spline(mesh.noise))


def weight_scale(noise: Plane, weight: Plane) -> float:
    """Compute the factor that converts 1 / sqrt(weight) to noise in image units.

    Parameters
    ----------
    noise : (my, mx) float32
        Measured noise of the cells.
    weight : (my, mx) float32
        Typical weight of the same cells, from :func:`fcnpipe.science.mesh_statistics.measure_weight`.

    Returns
    -------
    float
        Median over the cells that have both noise and weight; NaN if there is no such cell.

    Notes
    -----
    As with SExtractor's MAP_WEIGHT, weights are relative, and the level of the noise is measured in
    the image. A map of absolute noise (MAP_RMS) needs no scale.
    """
    known = (noise > 0) & np.isfinite(noise) & (weight > 0) & np.isfinite(weight)
    ratios = noise[known].astype(np.float64) * np.sqrt(weight[known].astype(np.float64))
    return float(np.median(ratios)) if ratios.size else float("nan")


def noise_from_weight(weight: Plane, scale: float) -> Plane:
    """Compute the noise of each pixel from its relative weight.

    Parameters
    ----------
    weight : (h, w) float32
        Relative inverse variance.
    scale : float
        Result of :func:`weight_scale`.

    Returns
    -------
    (h, w) float32
        ``scale / sqrt(weight)`` in image units; infinite where the weight is not positive or
        not finite, so that the S/N of such a pixel is 0.
    """
    known = (weight > 0) & np.isfinite(weight)
    safe = np.where(known, weight, 1).astype(np.float64)
    return np.where(known, scale / np.sqrt(safe), np.inf).astype(np.float32)
