"""Checks of the sizes in a FITS header, before a library allocates or seeks by them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 2880
"""Size of a FITS block; headers and data are padded to a multiple of it."""
MAX_HEADER_BLOCKS = 5000
"""Maximum length of a header, blocks (14 MB)."""
MAX_DATA_BYTES = 1 << 62
"""Maximum size of the data of an HDU; larger ones cannot be positions in a file."""
_MAX_AXES, _MAX_COLUMNS = 999, 999
_BITPIX = (8, 16, 32, 64, -32, -64)
_CARD_BYTES = 80
_STARTS = (b"SIMPLE  =", b"XTENSION=")
_SIZE = re.compile(
    rb"\s*(?:HIERARCH\s+)?(Z?BITPIX|Z?NAXIS\d{0,3}|ZTILE\d{1,3}|PCOUNT|GCOUNT|TFIELDS|ZIMAGE)\s*=(.*)",
    re.IGNORECASE | re.DOTALL,
)
_INTEGER = re.compile(rb"\s*([+-]?\d+)\.?0*\s*(?:/.*)?", re.DOTALL)
_Sizes = list[tuple[str, bytes]]


def check_sizes(file: BinaryIO, start: int, name: str) -> None:
    """Check the header that starts at a byte of a file; bytes that are no header are accepted.

    Parameters
    ----------
    file : binary file
        Its position changes.
    start : int
        First byte of the header.
    name : str
        The HDU, for messages.

    Raises
    ------
    ValueError
        If the header has no end, or if the size or number of its axes, columns, groups or tiles is not an integer
        within the limits of the FITS standard.

    Notes
    -----
    astropy does not check these. A negative length moves the next HDU in front of this one, so that its list of
    HDUs never ends, and it counts to a NAXIS or TFIELDS of any size.
    """
    file.seek(start)
    sizes = list(_read_sizes(file, name))
    compressed = any(key == "ZIMAGE" for key, _ in sizes)
    prefixes = ("", "Z") if compressed else ("",)
    for prefix in prefixes:
        _check_axes(sizes, prefix, name)
    _check_range(sizes, "PCOUNT", 0, MAX_DATA_BYTES, name)
    _check_range(sizes, "GCOUNT", 0, MAX_DATA_BYTES, name)
    _check_range(sizes, "TFIELDS", 0, _MAX_COLUMNS, name)


def _read_sizes(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the keywords and values of a header that state sizes."""
    for number in range(MAX_HEADER_BLOCKS):
        block = file.read(BLOCK_BYTES)
        if not number and not block.startswith(_STARTS):
            return
        for at in range(0, len(block), _CARD_BYTES):
            card = block[at : at + _CARD_BYTES]
            if card[:8].rstrip() == b"END":
                return
            if found := _SIZE.match(card):
                yield found[1].decode().upper(), found[2]
        if len(block) < BLOCK_BYTES:
            return  # truncated: astropy reports it
    raise ValueError(
        f"{name} has no END card within {MAX_HEADER_BLOCKS * BLOCK_BYTES} bytes, which is the limit of a header"
    )


def _check_axes(sizes: _Sizes, prefix: str, name: str) -> None:
    """Check the axes of the stored array, or with the prefix Z those of a compressed image."""
    for value in _read_integers(sizes, f"{prefix}BITPIX", name):
        if value not in _BITPIX:
            raise ValueError(f"{name} has {prefix}BITPIX={value}, but it must be one of {_BITPIX}")
    naxis = max(_check_range(sizes, f"{prefix}NAXIS", 0, _MAX_AXES, name), default=0)
    lengths = [
        max(_check_range(sizes, f"{prefix}NAXIS{axis}", 0, MAX_DATA_BYTES, name), default=1)
        for axis in range(1, naxis + 1)
    ]
    if prefix:
        for axis in range(1, naxis + 1):
            _check_range(sizes, f"ZTILE{axis}", 1, MAX_DATA_BYTES, name)
    if math.prod(lengths) > MAX_DATA_BYTES:
        raise ValueError(
            f"{name} has axes whose product is above {MAX_DATA_BYTES}, the limit of a file"
        )


def _check_range(sizes: _Sizes, key: str, low: int, high: int, name: str) -> list[int]:
    values = _read_integers(sizes, key, name)
    for value in values:
        if not low <= value <= high:
            raise ValueError(f"{name} has {key}={value}, but it must be from {low} to {high}")
    return values


def _read_integers(sizes: _Sizes, key: str, name: str) -> list[int]:
    """Return the values of all cards with a keyword; libraries differ in which one of several they use."""
    texts = [text for other, text in sizes if other == key]
    matches = [_INTEGER.fullmatch(text) for text in texts]
    for text, found in zip(texts, matches, strict=True):
        if not found:
            shown = text.decode("latin-1").split("/")[0].strip()
            raise ValueError(f"{name} has {key}={shown}, but it must be an integer")
    return [int(found[1]) for found in matches if found]
