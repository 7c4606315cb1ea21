"""Maps as FITS images with the WCS of the input, written strip by strip."""

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
from fcnpipe.core.records import OutputMap
from fcnpipe.export.base import Finished, written_whole

STRUCTURE = (
    "SIMPLE", "XTENSION", "BITPIX", "NAXIS", "EXTEND", "PCOUNT", "GCOUNT", "TFIELDS", "END",
    "BSCALE", "BZERO", "BLANK", "BUNIT", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM",
    "EXTNAME", "EXTVER", "INHERIT", "SATURATE", "CONTINUE",
)  # fmt: skip
"""Cards of the input that say nothing true of another image."""

_THIRD = re.compile(r"(CTYPE|CRPIX|CRVAL|CDELT|CUNIT|CNAME)3|(CD|PC)(3_\d|\d_3)|WCSAXES")
"""Cards of a third axis that the input may have had."""
_TYPES = {"label": (32, ">i4"), "flags": (8, "u1")}
"""BITPIX and big-endian type of what is written as it is stored; all else is float32."""
_FLOAT = (-32, ">f4")
_WHOLE = {"uint8": 255, "uint16": 65535}
"""What is 1, of an output that lies in [0, 1]."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """An array of the store, or one of its classes."""

    name: str
    index: int | None = None
    whole: int = 0
    """What is 1; 0: values are written as they are stored."""
    unit: str = ""

    @property
    def type(self) -> tuple[int, str]:
        """BITPIX, and big-endian type."""
        return _TYPES.get(self.name, _FLOAT)


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
    known = {
        "label": _Plane("label"),
        "flags": _Plane("flags"),
        "probability": _Plane("probability", index, 255),
    }
    if name not in known:
        raise SpecError(f"map={name!r} cannot be exported: choose one of {', '.join(known)}")
    _write(store, path, [known[name]])


def export_labels(store: Finished, path: str | Path) -> None:
    """Write the label image, int32, 0 = background; see `export_map`."""
    export_map(store, path, "label")


def export_outputs(store: Finished, path: str | Path, names: Sequence[str] = ()) -> None:
    """Write outputs of a network as a FITS image, or several as the planes of a cube.

    Parameters
    ----------
    store : Finished
        The store of a prediction.
    path : path
        ``.fits``, or ``.fits.fz`` to compress it.
    names : sequence of str
        Outputs, in order; all images of the store if not given, or all outputs if it has none.

    Raises
    ------
    SpecError
        If there is no such output.
    StoreError
        If the file cannot be written.

    Notes
    -----
    Float32: images in their unit (BUNIT), NaN where there is no data; all else in [0, 1]. The planes
    of a cube are named in the cards PLANE1, PLANE2, ...
    """
    outputs = {output.name: output for output in store.layout.maps}
    images = [output.name for output in outputs.values() if output.dtype == "float32"]
    wanted = names or images or tuple(outputs)
    if unknown := [name for name in wanted if name not in outputs]:
        raise SpecError(
            f"output={unknown[0]!r} is not in the store: choose of {', '.join(outputs)}"
        )
    _write(store, path, [_plane_of(outputs[name]) for name in wanted])


def _plane_of(output: OutputMap) -> _Plane:
    return _Plane(output.name, None, _WHOLE.get(output.dtype, 0), output.unit)


def _write(store: Finished, path: str | Path, planes: Sequence[_Plane]) -> None:
    with written_whole(path) as temporary:
        if Path(path).suffix.lower() == ".fz":
            _write_compressed(store, temporary, planes)
        else:
            _write_plain(store, temporary, planes)


def _write_plain(store: Finished, path: Path, planes: Sequence[_Plane]) -> None:
    stream = fits.StreamingHDU(str(path), _make_header(store, planes))
    for plane in planes:
        for strip in _strips(store, plane):
            stream.write(strip)
    stream.close()


def _write_compressed(store: Finished, path: Path, planes: Sequence[_Plane]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.fits"
        _write_plain(store, plain, planes)
        with fits.open(plain, memmap=True) as hdus:
            kind = "GZIP_2" if planes[0].type == _FLOAT else "RICE_1"
            hdu = fits.CompImageHDU(
                hdus[0].data, hdus[0].header, compression_type=kind, quantize_level=0
            )  # else astropy rounds floats
            hdu.writeto(path)


def _make_header(store: Finished, planes: Sequence[_Plane]) -> fits.Header:
    """Give the header: the structure, then the cards of the input that hold for the planes."""
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
        warnings.simplefilter("ignore")  # of what was wrong in the input already
        header.extend(_keep(store.cards, is_cube), end=True)
    if is_cube:
        _add_third_axis(header, planes)
    return header


def _add_third_axis(header: fits.Header, planes: Sequence[_Plane]) -> None:
    """Count the planes along the third axis, and name them."""
    linear = {"CTYPE3": "PLANE", "CRPIX3": 1.0, "CRVAL3": 1.0, "CDELT3": 1.0}
    if any(card.startswith("CD1_") for card in header):
        linear["CD3_3"] = 1.0
    header.update(linear)
    for number, plane in enumerate(planes, 1):
        header[f"PLANE{number}"] = plane.name


def _keep(cards: Iterable[str], is_cube: bool) -> Iterable[fits.Card]:
    for text in cards:
        card = fits.Card.fromstring(text)
        foreign = card.keyword.startswith(STRUCTURE) or (is_cube and _THIRD.fullmatch(card.keyword))
        if card.keyword and not foreign and _is_sound(card):
            yield card


def _is_sound(card: fits.Card) -> bool:
    """Whether a card can be written, mended where need be, and read again."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            card.verify("silentfix")
            return bool(fits.Card.fromstring(str(card)).keyword)
    except (fits.VerifyError, Warning):
        return False


def _strips(store: Finished, plane: _Plane) -> Iterable[np.ndarray]:
    (height, width), step = store.layout.shape, store.layout.edge[0]
    for y in range(0, height, step):
        data = store.read(plane.name, Box(y, 0, min(y + step, height), width))
        data = data if plane.index is None else data[plane.index]
        data = data / np.float32(plane.whole) if plane.whole else data
        yield data.astype(plane.type[1])
