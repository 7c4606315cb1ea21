"""Axes and pixel types of image arrays, folded to (band, y, x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcnpipe.core.errors import InputError

COLOURS = 4
"""Most bands that an array has whose last axis they are: red, green, blue and alpha."""


def fold_axes(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Give (bands, height, width) of an array; axes of length 1 in front are dropped.

    Raises
    ------
    InputError
        If more than three axes are longer than 1, there are fewer than two, one is empty, or the bands
        come last.

    Examples
    --------
    >>> fold_axes((1, 3, 20, 30), "radio.fits"), fold_axes((20, 30), "a.fits")
    ((3, 20, 30), (1, 20, 30))
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) < 2 or sum(n > 1 for n in shape[:-2]) > 1:
        raise InputError(
            f"{name} has axes {shape}: an image has (y, x) or (band, y, x), and any others of "
            "length 1; cut out one plane or cube first"
        )
    if min(shape) == 0:
        raise InputError(
            f"{name} has axes {shape}: it has no pixels; every axis must be at least 1"
        )
    bands, height, width = math.prod(shape[:-2]), shape[-2], shape[-1]
    if width <= COLOURS and min(bands, height) > COLOURS**2:
        raise InputError(
            f"{name} has axes {shape}, as if they were (y, x, band): move the last one to the front"
        )
    return bands, height, width


def band_index(shape: Sequence[int], band: int) -> tuple[int, ...]:
    """Give the index into the axes before the last two that picks a band.

    Examples
    --------
    >>> band_index((1, 3, 1, 20, 30), 2)
    (0, 2, 0)
    """
    return tuple(band if n > 1 else 0 for n in shape[:-2])


def number_bands(count: int) -> tuple[str, ...]:
    """Give names for bands that have none: '0', '1', ..."""
    return tuple(str(i) for i in range(count))


def check_real(dtype: np.dtype[Any], name: str) -> None:
    """Refuse pixels that are not real numbers.

    Raises
    ------
    InputError
        If the dtype is complex, text, object or a record.
    """
    if dtype.kind not in "biuf":
        raise InputError(
            f"{name} holds {dtype} pixels: only integers and floats are images; "
            "write the modulus or the part you want to a new file"
        )


def say_shape(shape: Sequence[int]) -> str:
    """Give a shape for messages, '3 x 20 x 30', a single band left out."""
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return " x ".join(str(n) for n in shape)
