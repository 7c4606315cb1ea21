"""Network input and targets of a simulated scene.

The targets are three maps in [0, 1], one for each output of the network:

* ``source``: the pixel belongs to a source;
* ``heat``: a Gaussian of standard deviation 1.1 px on the true centre of each detectable source;
* ``relief``: the owner's noise-free light in asinh, reduced to 0 where two sources meet.

The owner of a pixel is the source that has the most noise-free light there, if that light exceeds
the threshold of the truth. The relief has one maximum for each source, of any size and
structure. The heat map separates close pairs that have no second maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.science.background import estimate_background
from fcnpipe.science.normalisation import flag_pixels, signal_to_noise
from fcnpipe.science.scores import Truth
from fcnpipe.simulation.scenes import Scene, detectable

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

OUTPUTS = ("source", "heat", "relief")
HEAT_SIGMA_PX = 1.1
RELIEF_TOP = 12.0
"""asinh of the light, in sky noises, at which the relief is 1: 81,000 sky noises."""


@dataclass(frozen=True)
class Example:
    """Training example: network input and targets of a scene."""

    x: NDArray[np.float16]
    """(h, w) float16, asinh of the signal-to-noise ratio."""
    targets: Bytes
    """(3, h, w) uint8, the OUTPUTS in units of 1/255."""


def make_example(scene: Scene, cell: int = 64) -> Example:
    """Return network input and targets of a scene; sky and noise are estimated as for a real image."""
    found = estimate_background(scene.image, scene.bad | ~np.isfinite(scene.image), cell)
    sky, noise = found.sky(0, 0, scene.image.shape), found.noise(0, 0, scene.image.shape)
    if found.is_blank or found.is_noiseless:  # the pipeline would reject it
        noise = scene.noise
    x = make_input(scene.image, scene.bad, sky, noise)
    return Example(x.astype(np.float16), quantise(make_targets(scene)))


def make_input(image: Floats, bad: Bools, sky: Floats, noise: Floats) -> Floats:
    """Compute the network input as the pipeline does: asinh of the signal-to-noise ratio, with bad pixels filled.

    Parameters
    ----------
    image
        (h, w) float32; NaN and infinite pixels are bad.
    bad
        (h, w) bool, pixels that must not be used.
    sky, noise
        (h, w) float32 of the image.

    Returns
    -------
    ndarray
        (h, w) float32, finite.
    """
    flags = flag_pixels(image, bad)
    return np.arcsinh(signal_to_noise(image - sky, noise, flags))


def make_truth(scene: Scene) -> Truth:
    """Return the ground truth for the scores of a label image: the sources that own a pixel."""
    owns = scene.table["area"] > 0
    rows = scene.table[owns]
    number = np.r_[0, np.where(owns, np.cumsum(owns), 0)].astype(np.int32)
    return Truth(
        label=number[scene.label],
        unclear=(scene.label == 0) & (scene.light > scene.truth_sigma * scene.noise),
        peak=np.stack([rows["peak_y"], rows["peak_x"]], axis=1).astype(np.int64),
        brightness=rows["peak"].astype(np.float64),
        centre=np.stack([rows["y"], rows["x"]], axis=1).astype(np.float64),
        snr=rows["snr"].astype(np.float64),
        flux=rows["flux"].astype(np.float64),
    )


def make_targets(scene: Scene) -> Floats:
    """Return the OUTPUTS of a scene, (3, h, w) float32 in [0, 1]."""
    found = np.r_[False, detectable(scene.table)]
    seen = found[scene.label]
    heat = np.zeros(scene.label.shape, np.float32)
    rows = scene.table[found[1:]]
    _add_gaussians(heat, rows["y"], rows["x"], HEAT_SIGMA_PX)
    return np.stack([seen.astype(np.float32), heat, np.where(seen, relief(scene), np.float32(0))])


def relief(scene: Scene) -> Floats:
    """Compute the height of each pixel within its source, (h, w) float32 in [0, 1]; undefined outside sources.

    The height is the asinh of the owner's smooth light in sky noises, times the margin by which the
    owner exceeds the second strongest source. It is not normalised by the source's maximum: in a
    large galaxy the maximum is beyond the reach of the network, which would then predict a flat
    map.
    """
    height = np.arcsinh(scene.smooth / scene.noise) / np.float32(RELIEF_TOP)
    lead = 1 - scene.second_strongest / np.maximum(scene.strongest, 1e-30)
    return np.asarray(np.clip(height, 0, 1) * np.clip(lead, 0, 1), np.float32)


def quantise(maps: Floats) -> Bytes:
    """Convert maps in [0, 1] to integers in units of 1/255, uint8."""
    return np.asarray(np.rint(np.clip(maps, 0, 1) * 255), np.uint8)


@njit(cache=True, nogil=True)
def _add_gaussians(heat, ys, xs, sigma):  # type: ignore[no-untyped-def]
    reach = int(4 * sigma) + 1
    for n in range(len(ys)):
        for y in range(int(ys[n]) - reach, int(ys[n]) + reach + 2):
            for x in range(int(xs[n]) - reach, int(xs[n]) + reach + 2):
                if 0 <= y < heat.shape[0] and 0 <= x < heat.shape[1]:
                    square = (y - ys[n]) ** 2 + (x - xs[n]) ** 2
                    heat[y, x] = max(heat[y, x], np.exp(-0.5 * square / sigma**2))
