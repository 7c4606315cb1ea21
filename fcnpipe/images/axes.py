"""Axes and pixel types of image arrays, folded to (band, y, x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcnpipe.core.errors import InputError

MAX_COLOUR_CHANNELS = 4
"""Red, green, blue and alpha: a last axis of at most this length is assumed to hold colours."""


MAX_IMAGE_PIXELS, MAX_BANDS = 1 << 44, 1 << 20
"""Maximum size of a band, px, and maximum number of bands: beyond these the list of tiles does not fit the memory."""
MAX_SHOWN = 80
"""Maximum number of characters of a shape in a message."""


def fold_axes(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Return (bands, height, width) of an array; leading axes of length 1 are dropped.

    Parameters
    ----------
    shape : sequence of int
        All axes of the array.
    name : str
        The array, for messages.

    Raises
    ------
    InputError
        If more than three axes are longer than 1, if there are fewer than two axes, if one is empty,
        if the image is too large to be listed, or if the bands come last.

    Examples
    --------
    >>> fold_axes((1, 3, 20, 30), "radio.fits"), fold_axes((20, 30), "a.fits")
    ((3, 20, 30), (1, 20, 30))
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) < 2 or sum(n > 1 for n in shape[:-2]) > 1:
        raise InputError(
            f"{name} has axes {shorten(shape)}: an image has (y, x) or (band, y, x), and any others of "
            "length 1; cut out one plane or cube first"
        )
    if min(shape) <= 0:
        raise InputError(
            f"{name} has axes {shorten(shape)}: it has no pixels; every axis must be at least 1"
        )
    bands, height, width = math.prod(shape[:-2]), shape[-2], shape[-1]
    if height * width > MAX_IMAGE_PIXELS or bands > MAX_BANDS:
        raise InputError(
            f"{name} has axes {shorten(shape)}, but a band may have {MAX_IMAGE_PIXELS} px and an image "
            f"{MAX_BANDS} bands at most: if its header is right, cut out a part"
        )
    if width <= MAX_COLOUR_CHANNELS and min(bands, height) > MAX_COLOUR_CHANNELS**2:
        raise InputError(
            f"{name} has axes {shorten(shape)}, as if they were (y, x, band): move the last one to the front"
        )
    return bands, height, width


def shorten(value: object) -> str:
    """Return the text of a value for messages, with at most :data:`MAX_SHOWN` characters.

    Examples
    --------
    >>> shorten((1, 20, 30)), len(shorten((1,) * 999))
    ('(1, 20, 30)', 80)
    """
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


def band_index(shape: Sequence[int], band: int) -> tuple[int, ...]:
    """Return the index into all axes but the last two that selects a band.

    Examples
    --------
    >>> band_index((1, 3, 1, 20, 30), 2)
    (0, 2, 0)
    """
    return tuple(band if n > 1 else 0 for n in shape[:-2])


def number_bands(count: int) -> tuple[str, ...]:
    """Return names for unnamed bands: '0', '1', ..."""
    return tuple(str(i) for i in range(count))


def check_real_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raise InputError unless pixels of this dtype are real numbers: booleans, integers or floats."""
    if dtype.kind not in "biuf":
        raise InputError(
            f"{name} holds {dtype} pixels: only images of integers or floats can be read; "
            "write the modulus or the part you want to a new file"
        )


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape for messages, '3 x 20 x 30'; the band axis is omitted if there is a single band."""
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return " x ".join(str(n) for n in shape)
