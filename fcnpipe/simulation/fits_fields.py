"""Simulated fields as FITS files with image and ground truth, and scores of label images against them.

::

    primary    image, float32, NaN is bad; TAN WCS; KIND, SEED, FWHM (px)
    LABEL      owner of each pixel: row of TRUTH + 1; 0 is sky
    UNCLEAR    1 where only the sum of several sources exceeds the threshold of the truth
    TRUTH      table of the sources that own a pixel
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError, StoreError
from fcnpipe.science import scores
from fcnpipe.science.scores import Truth
from fcnpipe.simulation.scenes import Scene, draw

COLUMNS = ("y", "x", "flux", "snr", "peak_y", "peak_x", "peak")
SNR_EDGES = (3.0, 5.0, 10.0, 30.0, 100.0, np.inf)
PIXEL_ARCSEC = 0.263
"""Pixel scale of the simulated sky position, that of a common survey camera, arcsec."""


def simulate(kind: str, shape: tuple[int, int], seed: int, path: str | Path) -> int:
    """Simulate a field and write it to a FITS file; equal arguments write equal pixels.

    Parameters
    ----------
    kind : str
        One of ``fcnpipe.simulation.scenes.KINDS``.
    shape : (int, int)
        Height and width, px.
    seed : int
        Any non-negative integer.
    path : path
        The FITS file, which is replaced if it exists.

    Returns
    -------
    int
        Number of sources in the truth.

    Raises
    ------
    SpecError
        If the kind is unknown.
    StoreError
        If the file cannot be written.
    """
    scene = draw(kind, shape, seed)
    truth, rows = extract_truth(scene)
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(
                np.where(scene.bad, np.float32(np.nan), scene.image), _header(scene, kind, seed)
            ),
            fits.ImageHDU(truth.label, name="LABEL"),
            fits.ImageHDU(truth.unclear.astype(np.uint8), name="UNCLEAR"),
            fits.BinTableHDU(_truth_table(scene, rows), name="TRUTH"),
        ]
    )
    try:
        hdus.writeto(path, overwrite=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}: choose another file"
        ) from None
    return len(rows)


def extract_truth(scene: Scene) -> tuple[Truth, NDArray[np.intp]]:
    """Return the truth of a scene and the rows of its table that are in the truth: those that own a pixel."""
    owners, label = np.unique(np.r_[0, scene.label.ravel()], return_inverse=True)
    label = label[1:].reshape(scene.label.shape)
    rows = owners[1:].astype(np.intp) - 1
    unclear = (label == 0) & (scene.light > scene.truth_sigma * scene.noise)
    return _make_truth(label.astype(np.int32), unclear, scene.table[rows]), rows


def read_truth(path: str | Path) -> tuple[Truth, float]:
    """Read the truth of a field and the FWHM of its PSF, px.

    Raises
    ------
    InputError
        If the file cannot be read or is not a simulated field.
    """
    try:
        with fits.open(path, memmap=False) as hdus:
            table, fwhm = np.array(hdus["TRUTH"].data), float(hdus[0].header["FWHM"])
            label, unclear = (np.array(hdus[name].data) for name in ("LABEL", "UNCLEAR"))
    except (OSError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(
            f"{path} is not a simulated field: {reason}: create one with fcnpipe simulate"
        ) from None
    return _make_truth(label.astype(np.int32), unclear > 0, table), fwhm


def compare(label: NDArray[np.integer[Any]], path: str | Path) -> list[tuple[str, str]]:
    """Score a label image against the truth of a field.

    Parameters
    ----------
    label : (h, w) int
        Label image; 0 is background.
    path : path
        FITS file of the field.

    Returns
    -------
    list of (str, str)
        Rows of (score, value) for display: the scores of Haigh et al. 2021, completeness by
        signal-to-noise, and recall of close pairs by separation.

    Raises
    ------
    InputError
        If the file cannot be read or is not a simulated field.
    SpecError
        If the label image and the field differ in shape.
    """
    truth, fwhm_px = read_truth(path)
    values = asdict(scores.score(label, truth))
    matched = scores.match(label, truth)
    found, count = scores.completeness(matched, truth, SNR_EDGES)
    apart, pairs = scores.pair_recall(matched, truth, fwhm_px)
    return [
        *((name.replace("_", " "), f"{value:.4g}") for name, value in values.items()),
        *_bin_rows("found at S/N {:g} to {:g}", SNR_EDGES, found, count),
        *_bin_rows("pairs at {:g} to {:g} FWHM", scores.PAIR_EDGES, apart, pairs),
    ]


def _bin_rows(title: str, edges: Any, share: Any, count: Any) -> list[tuple[str, str]]:
    ends = zip(edges[:-1], edges[1:], share, count, strict=True)
    return [(title.format(low, high), f"{s:.3f} of {n}") for low, high, s, n in ends if n]


def _make_truth(label: NDArray[np.int32], unclear: NDArray[np.bool_], table: NDArray[Any]) -> Truth:
    return Truth(
        label=label,
        unclear=unclear,
        peak=_columns(table, "peak_y", "peak_x").astype(np.int64),
        brightness=_columns(table, "peak")[:, 0],
        centre=_columns(table, "y", "x"),
        snr=_columns(table, "snr")[:, 0],
        flux=_columns(table, "flux")[:, 0],
    )


def _columns(table: NDArray[Any], *names: str) -> NDArray[np.float64]:
    return np.stack([table[name].astype(np.float64) for name in names], axis=1)


def _truth_table(scene: Scene, rows: NDArray[np.intp]) -> NDArray[Any]:
    table = scene.table[rows][list(COLUMNS)]
    return np.array(table.tolist(), np.dtype([(name, "f8") for name in COLUMNS]))


def _header(scene: Scene, kind: str, seed: int) -> fits.Header:
    height, width = scene.image.shape
    header = fits.Header({"KIND": kind, "SEED": seed, "FWHM": scene.fwhm_px, "BUNIT": "adu"})
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=150.1, CRVAL2=2.2)
    header.update(CRPIX1=width / 2, CRPIX2=height / 2, CUNIT1="deg", CUNIT2="deg")
    header.update(CDELT1=-PIXEL_ARCSEC / 3600, CDELT2=PIXEL_ARCSEC / 3600, RADESYS="ICRS")
    return header
