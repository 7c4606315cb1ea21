"""Data augmentation of image crops: symmetries, elastic deformation, intensity, noise and blur.

Geometric changes are applied to the image and its ground truth alike. Changes of intensity are
applied to the image only, except that a ground truth in units of the noise is rescaled when the
noise changes. Skies keep their photometry: they are blurred without loss of flux and receive more
noise, but their contrast is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fcnpipe.training.labelled_images import LabelledImage

Floats = NDArray[np.float32]
NODES = 3
"""Number of displacement nodes along each axis of a crop (Ronneberger et al. 2015)."""


@dataclass(frozen=True)
class Augmentation:
    """Strength of each augmentation: section ``augment`` of a recipe."""

    symmetries: bool = True
    """Whether crops are rotated by multiples of 90 degrees and mirrored at random."""
    elastic_px: float = 10.0
    """Standard deviation of the displacements of the nodes, px."""
    elastic_part: float = 0.5
    """Fraction of the crops that are deformed elastically."""
    brightness: float = 0.2
    """Standard deviation of the additive shift, in units of the network's input; linear scaling
    only."""
    contrast: float = 0.2
    """Standard deviation of the logarithm of the gain; linear scaling only."""
    noise: float = 0.15
    """Maximum standard deviation of the added noise; with asinh scaling, maximum relative increase
    of the image's noise."""
    blur_px: float = 0.0
    """Maximum standard deviation of the added Gaussian blur, px."""
    balance: float = 0.6
    """Fraction of the crops for which the rarer of two random positions is used."""


NO_AUGMENTATION = Augmentation(False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Augmentation that leaves every crop unchanged."""


@dataclass(frozen=True)
class CropGeometry:
    """Size of random crops."""

    side: int
    """Side of a crop, px."""
    margin: int
    """Width of the border around a crop that its targets depend on, px."""
    photometric: bool = False
    """Whether the images are in units of their noise and their flux must be kept."""

    @property
    def full_side(self) -> int:
        """Side of a crop with its margin, px."""
        return self.side + 2 * self.margin


def cut_crop(
    pairs: list[LabelledImage],
    geometry: CropGeometry,
    augment: Augmentation,
    rng: np.random.Generator,
) -> LabelledImage:
    """Return a randomly placed and augmented crop, with its margin, of a random image.

    Parameters
    ----------
    pairs
        Labelled images, each at least as large as a crop without its margin.
    geometry
        Size of the crop and of its margin.
    augment
        Strength of each augmentation.
    rng
        Source of all random numbers.

    Returns
    -------
    LabelledImage
        Arrays of ``geometry.full_side`` px on each side.
    """
    pair, corner = _choose_crop(pairs, geometry, augment, rng)
    deforms = augment.elastic_px > 0 and rng.random() < augment.elastic_part
    displacement = (
        draw_displacement(geometry.full_side, augment.elastic_px, rng) if deforms else None
    )
    x, truth = (
        sample_square(pair.x, corner, geometry.full_side, displacement),
        sample_square(pair.truth, corner, geometry.full_side, displacement),
    )
    weight = (
        None
        if pair.weight is None
        else sample_square(pair.weight, corner, geometry.full_side, displacement)
    )
    if augment.symmetries:
        number = int(rng.integers(8))
        x, truth = apply_symmetry(x, number), apply_symmetry(truth, number)
        weight = None if weight is None else apply_symmetry(weight, number)
    if weight is not None:
        weight = np.maximum(weight, 0)  # bicubic interpolation can overshoot below 0
    if geometry.photometric:
        return LabelledImage(*degrade_sky(x, truth, augment, rng), weight=weight)
    return LabelledImage(vary_intensity(x, augment, rng), truth, weight=weight)


def _choose_crop(
    pairs: list[LabelledImage],
    geometry: CropGeometry,
    augment: Augmentation,
    rng: np.random.Generator,
) -> tuple[LabelledImage, tuple[int, int]]:
    options = [_draw_corner(pairs, geometry, rng) for _ in range(2)]
    interest = [_mean_rarity(*option, geometry) for option in options]
    wanted = rng.random() < augment.balance and interest[1] > interest[0]
    return options[1] if wanted else options[0]


def _draw_corner(
    pairs: list[LabelledImage], geometry: CropGeometry, rng: np.random.Generator
) -> tuple[LabelledImage, tuple[int, int]]:
    pair = pairs[int(rng.integers(len(pairs)))]
    y, x = rng.integers(0, np.array(pair.x.shape[1:]) - geometry.side + 1)
    return pair, (int(y) - geometry.margin, int(x) - geometry.margin)


def _mean_rarity(pair: LabelledImage, corner: tuple[int, int], geometry: CropGeometry) -> float:
    if pair.rarity is None:
        return 0.0
    y, x = corner[0] + geometry.margin, corner[1] + geometry.margin
    return float(pair.rarity[y : y + geometry.side : 4, x : x + geometry.side : 4].mean())


# --- geometry -------------------------------------------------------------------------------------


def apply_symmetry(array: Any, number: int) -> Any:
    """Apply one of the 8 symmetries of the square to the last two axes; number 0 is the identity."""
    turned = np.rot90(array, number % 4, (-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)


def draw_displacement(side: int, sigma_px: float, rng: np.random.Generator) -> Floats:
    """Draw the displacement of each pixel of a crop, (2, side, side) float32, px.

    The displacements of 3 x 3 nodes are independent Gaussian variables; bicubic interpolation is
    used in between.
    """
    rows = _cubic_matrix(side)
    nodes = rng.normal(0, sigma_px, (2, NODES, NODES))
    return np.asarray(rows @ nodes @ rows.T, np.float32)


def _cubic_matrix(side: int) -> NDArray[np.float64]:
    """Return the weight of each node for each pixel, (side, NODES): cubic convolution with constant ends."""
    place = np.linspace(0, NODES - 1, side)
    rows = np.zeros((side, NODES))
    for node in range(-2, NODES + 2):
        rows[:, min(max(node, 0), NODES - 1)] += _cubic_kernel(np.abs(place - node))
    return rows


def _cubic_kernel(d: NDArray[np.float64]) -> NDArray[np.float64]:
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def sample_square(
    array: Any, corner: tuple[int, int], side: int, displacement: Floats | None = None
) -> Any:
    """Return a square of the last two axes, mirrored beyond the edges of the image.

    Parameters
    ----------
    array
        (..., h, w). Integers are labels and are sampled at the nearest pixel; float32 is
        interpolated bicubically.
    corner
        Index (y, x) of the first pixel, which may be outside the image.
    side
        Side of the square, px.
    displacement
        (2, side, side) px: offset from each pixel of the square to the point where it is sampled.
        None: no deformation.

    Returns
    -------
    ndarray
        (..., side, side) of the dtype of ``array``.
    """
    if displacement is None:
        y, x = (
            _mirror_indices(np.arange(c, c + side), n)
            for c, n in zip(corner, array.shape[-2:], strict=True)
        )
        return array[..., y[:, None], x]
    planes = array.reshape(-1, *array.shape[-2:])
    sample = _sample_labels if np.issubdtype(array.dtype, np.integer) else _sample_cubic
    out = np.stack([sample(np.ascontiguousarray(plane), *corner, displacement) for plane in planes])
    return out.reshape(*array.shape[:-2], side, side)


def _mirror_indices(index: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return count - 1 - np.abs(count - 1 - index % max(2 * count - 2, 1))


@njit(cache=True, nogil=True)
def _reflect(i, n):  # type: ignore[no-untyped-def]  # pragma: no cover
    return n - 1 - abs(n - 1 - i % max(2 * n - 2, 1))


@njit(cache=True, nogil=True)
def _sample_labels(plane, top, left, displacement):  # type: ignore[no-untyped-def]  # pragma: no cover
    side = displacement.shape[1]
    out = np.empty((side, side), plane.dtype)
    for i in range(side):
        for j in range(side):
            y = int(np.floor(top + i + displacement[0, i, j] + 0.5))
            x = int(np.floor(left + j + displacement[1, i, j] + 0.5))
            out[i, j] = plane[_reflect(y, plane.shape[0]), _reflect(x, plane.shape[1])]
    return out


@njit(cache=True, nogil=True)
def _cubic_weights(t, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    out[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
    out[1] = (1.5 * t - 2.5) * t * t + 1.0
    out[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
    out[3] = (0.5 * t - 0.5) * t * t


@njit(cache=True, nogil=True)
def _sample_cubic(plane, top, left, displacement):  # type: ignore[no-untyped-def]  # pragma: no cover
    side = displacement.shape[1]
    out = np.empty((side, side), np.float32)
    wy, wx = np.empty(4), np.empty(4)
    for i in range(side):
        for j in range(side):
            y, x = top + i + displacement[0, i, j], left + j + displacement[1, i, j]
            v, u = int(np.floor(y)), int(np.floor(x))
            _cubic_weights(y - v, wy)
            _cubic_weights(x - u, wx)
            total = 0.0
            for a in range(4):
                row = _reflect(v + a - 1, plane.shape[0])
                for b in range(4):
                    total += wy[a] * wx[b] * plane[row, _reflect(u + b - 1, plane.shape[1])]
            out[i, j] = total
    return out


# --- intensity ------------------------------------------------------------------------------------


def vary_intensity(x: Floats, augment: Augmentation, rng: np.random.Generator) -> Floats:
    """Return a micrograph with random contrast, brightness, blur and noise."""
    factor = np.exp(rng.normal(0, augment.contrast))
    shift, noise = rng.normal(0, augment.brightness), rng.uniform(0, augment.noise)
    blurred = blur(x, rng.uniform(0, augment.blur_px))
    return np.asarray(blurred * factor + shift + rng.normal(0, noise, x.shape), np.float32)


def degrade_sky(
    x: Floats, truth: Any, augment: Augmentation, rng: np.random.Generator
) -> tuple[Floats, Any]:
    """Return a sky with worse seeing and more noise, in units of the new noise.

    Parameters
    ----------
    x
        (bands, h, w) float32, in units of the noise of a pixel.
    truth
        Labels, which are returned unchanged, or an image in the same unit as ``x``.

    Notes
    -----
    The blur also reduces the noise. White noise is added afterwards, so the total noise is white
    except for its blurred part. The flux of the crop, in units of the old noise, does not change.
    """
    sigma = rng.uniform(0, augment.blur_px)
    wanted = 1 + rng.uniform(0, augment.noise)
    added = np.sqrt(wanted**2 - noise_after_blur(sigma) ** 2)
    noisy = blur(x, sigma) + rng.normal(0, added, x.shape)
    unit = np.float32(1 / wanted)
    return np.asarray(noisy * unit, np.float32), truth * unit if truth.ndim == 3 else truth


def blur(x: Floats, sigma_px: float) -> Floats:
    """Return an image convolved with a Gaussian of standard deviation ``sigma_px``; its sum does not change."""
    if sigma_px <= 0:
        return x
    return np.asarray(gaussian_filter(x, (0, sigma_px, sigma_px), mode="reflect"), np.float32)


def noise_after_blur(sigma_px: float) -> float:
    """Return the standard deviation of unit white noise after a blur: the root of the kernel's sum of squares."""
    if sigma_px <= 0:
        return 1.0
    half = ceil(4 * sigma_px) + 1
    point = np.zeros((1, 2 * half + 1, 2 * half + 1), np.float32)
    point[0, half, half] = 1
    return float(np.sqrt(np.sum(blur(point, sigma_px).astype(np.float64) ** 2)))
