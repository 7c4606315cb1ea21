"""Export of maps as FITS images with the WCS of the input, written strip by strip."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from fcnpipe.core.errors import SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.export.base import FinishedStore, atomic_write

NOT_COPIED = (
    "SIMPLE", "XTENSION", "BITPIX", "NAXIS", "EXTEND", "PCOUNT", "GCOUNT", "TFIELDS", "END",
    "BSCALE", "BZERO", "BLANK", "BUNIT", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM",
    "EXTNAME", "EXTVER", "INHERIT", "SATURATE", "CONTINUE",
)  # fmt: skip
"""Prefixes of the keywords of the input that are not valid for an exported image."""

_THIRD_AXIS = re.compile(r"(CTYPE|CRPIX|CRVAL|CDELT|CUNIT|CNAME)3|(CD|PC)(3_\d|\d_3)|WCSAXES")
"""Keywords of a third axis of the input."""
_TYPES = {"label": (32, ">i4"), "flags": (8, "u1")}
"""BITPIX and big-endian dtype of integer maps; all other maps are written as float32."""
_FLOAT = (-32, ">f4")
_FULL_SCALE = {"uint8": 255, "uint16": 65535}
"""Dtype in the store of an output in [0, 1] -> stored number that represents 1."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """A two-dimensional map: an array of the store, or one class of it."""

    name: str
    index: int | None = None
    full_scale: int = 0
    """Stored number that represents 1; 0 if values are written as they are stored."""
    unit: str = ""

    @property
    def type(self) -> tuple[int, str]:
        """BITPIX and big-endian dtype."""
        return _TYPES.get(self.name, _FLOAT)


def export_map(store: FinishedStore, path: str | Path, name: str = "label", index: int = 0) -> None:
    """Write a map as a FITS image.

    Parameters
    ----------
    store : FinishedStore
        The store.
    path : path
        ``.fits``, or ``.fits.fz`` for a tile-compressed image (RICE; GZIP_2 for floats).
    name : str
        ``label`` (int32, 0 = background), ``flags`` (uint8) or ``probability`` (float32 in
        [0, 1]).
    index : int
        Number of the class, for ``probability``.

    Raises
    ------
    SpecError
        If there is no such map.
    StoreError
        If the file cannot be written.

    Notes
    -----
    One strip with the height of a tile is in memory at a time.
    """
    known = {
        "label": _Plane("label"),
        "flags": _Plane("flags"),
        "probability": _Plane("probability", index, 255),
    }
    if name not in known:
        raise SpecError(f"map={name!r} cannot be exported: choose one of {', '.join(known)}")
    _write(store, path, [known[name]])


def export_labels(store: FinishedStore, path: str | Path) -> None:
    """Write the label image, int32 with 0 = background; see `export_map`."""
    export_map(store, path, "label")


def export_outputs(store: FinishedStore, path: str | Path, names: Sequence[str] = ()) -> None:
    """Write one output of a network as a FITS image, or several outputs as the planes of a cube.

    Parameters
    ----------
    store : FinishedStore
        The store of a prediction.
    path : path
        ``.fits``, or ``.fits.fz`` for a tile-compressed image.
    names : sequence of str
        Outputs, in order; by default all images of the store, or all outputs if it has no images.

    Raises
    ------
    SpecError
        If there is no such output.
    StoreError
        If the file cannot be written.

    Notes
    -----
    Values are float32: images in their unit (BUNIT) with NaN where there is no data, all other outputs in
    [0, 1]. The cards PLANE1, PLANE2, ... name the planes of a cube.
    """
    outputs = {output.name: output for output in store.layout.maps}
    images = [output.name for output in outputs.values() if output.dtype == "float32"]
    wanted = names or images or tuple(outputs)
    if unknown := [name for name in wanted if name not in outputs]:
        raise SpecError(
            f"output={unknown[0]!r} is not in the store: choose one of {', '.join(outputs)}"
        )
    chosen = [outputs[name] for name in wanted]
    planes = [_Plane(o.name, None, _FULL_SCALE.get(o.dtype, 0), o.unit) for o in chosen]
    _write(store, path, planes)


def _write(store: FinishedStore, path: str | Path, planes: Sequence[_Plane]) -> None:
    with atomic_write(path) as temporary:
        if Path(path).suffix.lower() == ".fz":
            _write_compressed(store, temporary, planes)
        else:
            _write_plain(store, temporary, planes)


def _write_plain(store: FinishedStore, path: Path, planes: Sequence[_Plane]) -> None:
    stream = fits.StreamingHDU(str(path), _make_header(store, planes))
    for plane in planes:
        for strip in _strips(store, plane):
            stream.write(strip)
    stream.close()


def _write_compressed(store: FinishedStore, path: Path, planes: Sequence[_Plane]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.fits"
        _write_plain(store, plain, planes)
        with fits.open(plain, memmap=True) as hdus:
            kind = "GZIP_2" if planes[0].type == _FLOAT else "RICE_1"
            hdu = fits.CompImageHDU(
                hdus[0].data, hdus[0].header, compression_type=kind, quantize_level=0
            )  # quantize_level=0: otherwise astropy rounds floats
            hdu.writeto(path)


def _make_header(store: FinishedStore, planes: Sequence[_Plane]) -> fits.Header:
    """Return the header: structural cards, then the cards of the input that are valid for the planes."""
    height, width = store.layout.shape
    is_cube, units = len(planes) > 1, {plane.unit for plane in planes}
    header = fits.Header()
    header["SIMPLE"] = True
    header["BITPIX"] = planes[0].type[0]
    header["NAXIS"] = 2 + is_cube
    header["NAXIS1"], header["NAXIS2"] = width, height
    if is_cube:
        header["NAXIS3"] = len(planes)
    header["EXTNAME"] = "OUTPUTS" if is_cube else planes[0].name.upper()
    header["RUNKEY"] = (str(store.attrs.get("run_key", "")), "fcnpipe run")
    if len(units) == 1 and not units & {"", "1"}:
        header["BUNIT"] = units.pop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about faults of the input's header
        header.extend(_filter_cards(store.cards, is_cube), end=True)
    if is_cube:
        _add_third_axis(header, planes)
    return header


def _add_third_axis(header: fits.Header, planes: Sequence[_Plane]) -> None:
    """Add a WCS that counts the planes along the third axis, and their names."""
    linear = {"CTYPE3": "PLANE", "CRPIX3": 1.0, "CRVAL3": 1.0, "CDELT3": 1.0}
    if any(card.startswith("CD1_") for card in header):
        linear["CD3_3"] = 1.0
    header.update(linear)
    for number, plane in enumerate(planes, 1):
        header[f"PLANE{number}"] = plane.name


def _filter_cards(cards: Iterable[str], is_cube: bool) -> Iterable[fits.Card]:
    for text in cards:
        card = fits.Card.fromstring(text)
        excluded = card.keyword.startswith(NOT_COPIED) or (
            is_cube and _THIRD_AXIS.fullmatch(card.keyword)
        )
        if card.keyword and not excluded and _is_writable(card):
            yield card


def _is_writable(card: fits.Card) -> bool:
    """Return whether a card can be written (after minor repairs by astropy) and read again."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            card.verify("silentfix")
            return bool(fits.Card.fromstring(str(card)).keyword)
    except (fits.VerifyError, Warning):
        return False


def _strips(store: FinishedStore, plane: _Plane) -> Iterable[np.ndarray]:
    (height, width), step = store.layout.shape, store.layout.edge[0]
    for y in range(0, height, step):
        data = store.read(plane.name, Box(y, 0, min(y + step, height), width))
        data = data if plane.index is None else data[plane.index]
        data = data / np.float32(plane.full_scale) if plane.full_scale else data
        yield data.astype(plane.type[1])
