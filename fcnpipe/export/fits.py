"""Maps as FITS images with the WCS of the input, written strip by strip."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy.io import fits

from fcnpipe.errors import SpecError
from fcnpipe.export.base import Finished, written_whole
from fcnpipe.geometry import Box

STRUCTURE = (
    "SIMPLE", "XTENSION", "BITPIX", "NAXIS", "EXTEND", "PCOUNT", "GCOUNT", "TFIELDS", "END",
    "BSCALE", "BZERO", "BLANK", "BUNIT", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM",
    "EXTNAME", "EXTVER", "INHERIT", "SATURATE", "CONTINUE",
)  # fmt: skip
"""Cards of the input that say nothing true of another image."""

TYPES = {"label": (32, ">i4"), "flags": (8, "u1"), "probability": (-32, ">f4")}
"""BITPIX and big-endian type of each map."""


def export_map(store: Finished, path: str | Path, name: str = "label", index: int = 0) -> None:
    """Write a map as a FITS image.

    Parameters
    ----------
    store : Finished
        The store.
    path : path
        ``.fits``; with ``.fits.fz`` the image is tile-compressed (RICE; GZIP_2 for floats).
    name : str
        ``label`` (int32, 0 = background), ``flags`` (uint8) or ``probability`` (float32 in
        [0, 1]).
    index : int
        Class, for ``probability``.

    Raises
    ------
    SpecError
        If there is no such map.
    StoreError
        If the file cannot be written.

    Notes
    -----
    One strip of a tile's height is in memory at a time.
    """
    if name not in TYPES:
        raise SpecError(f"map={name!r} cannot be exported: choose one of {', '.join(TYPES)}")
    with written_whole(path) as temporary:
        if Path(path).suffix == ".fz":
            _write_compressed(store, temporary, name, index)
        else:
            _write_plain(store, temporary, name, index)


def export_labels(store: Finished, path: str | Path) -> None:
    """Write the label image, int32, 0 = background; see `export_map`."""
    export_map(store, path, "label")


def _write_plain(store: Finished, path: Path, name: str, index: int) -> None:
    stream = fits.StreamingHDU(str(path), make_header(store, name))
    for strip in _strips(store, name, index):
        stream.write(strip)
    stream.close()


def _write_compressed(store: Finished, path: Path, name: str, index: int) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.fits"
        _write_plain(store, plain, name, index)
        with fits.open(plain, memmap=True) as hdus:
            kind = "GZIP_2" if name == "probability" else "RICE_1"
            hdu = fits.CompImageHDU(hdus[0].data, hdus[0].header, compression_type=kind)
            hdu.writeto(path)


def make_header(store: Finished, name: str) -> fits.Header:
    """Give the header of a map: its structure, then the cards of the input that hold for it."""
    height, width = store.layout.shape
    header = fits.Header()
    header["SIMPLE"] = True
    header["BITPIX"] = TYPES[name][0]
    header["NAXIS"] = 2
    header["NAXIS1"], header["NAXIS2"] = width, height
    header["EXTNAME"] = name.upper()
    header["RUNKEY"] = (str(store.attrs.get("run_key", "")), "fcnpipe run")
    header.extend(_keep(store.cards), end=True)
    return header


def _keep(cards: Iterable[str]) -> Iterable[fits.Card]:
    for text in cards:
        card = fits.Card.fromstring(text)
        if card.keyword and not card.keyword.startswith(STRUCTURE):
            card.verify("silentfix")
            yield card


def _strips(store: Finished, name: str, index: int) -> Iterable[np.ndarray]:
    (height, width), step = store.layout.shape, store.layout.edge[0]
    for y in range(0, height, step):
        data = store.read(name, Box(y, 0, min(y + step, height), width))
        if name == "probability":
            data = data[index] / np.float32(255)
        yield data.astype(TYPES[name][1])
