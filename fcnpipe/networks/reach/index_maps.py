"""Index maps: the input pixels that an operation reads for given output pixels, along one axis.

``k`` is the size of the kernel, ``s`` the stride, ``p`` the padding, ``d`` the dilation, ``o`` an
output index, ``i`` an input index, and ``r`` the number of input pixels for each output pixel. Indices
are unbounded: the border of the image does not cut them off.

::

    convolution, pooling           i = o s - p + d t                       t = 0 ... k-1
    transposed convolution,        all i with  i s - p + d t = o           t = 0 ... k-1
      max-unpooling
    nearest                        i = floor(o r)
    nearest-exact                  i = floor((o + 1/2) r)
    bilinear                       i = floor((o + 1/2) r - 1/2) + {0, 1}
    bicubic                        i = floor((o + 1/2) r - 1/2) + {-1, 0, 1, 2}
    crop, padding                  i = o step + start;  i = o - pad

Sets of indices are mapped, not only their first and last index, because the sets have gaps: a
dilated kernel skips pixels, and a transposed convolution skips outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
"""Sorted pixel indices along one axis, (n,) int64, without repeats."""


@dataclass(frozen=True, slots=True)
class IndexMap:
    """Map from the output pixels of an operation to the input pixels that they read, along one axis.

    Attributes
    ----------
    scale : Fraction
        Input pixels for each output pixel: the stride of a convolution, 1/stride of a transposed one.
    to_input : callable
        Maps sorted output indices to the sorted input indices that they depend on.
    """

    scale: Fraction
    to_input: Callable[[Indices], Indices]


IDENTITY = IndexMap(Fraction(1), lambda output: output)
"""Each output pixel reads the input pixel of the same index."""


def convolution_map(kernel: int, stride: int, padding: int, dilation: int) -> IndexMap:
    """Return the index map of a convolution or a pooling.

    Examples
    --------
    >>> convolution_map(kernel=3, stride=2, padding=1, dilation=2).to_input(np.array([0, 5]))
    array([-1,  1,  3,  9, 11, 13])
    """
    taps = dilation * np.arange(kernel) - padding
    return IndexMap(Fraction(stride), lambda o: np.unique(o[:, np.newaxis] * stride + taps))


def transposed_convolution_map(kernel: int, stride: int, padding: int, dilation: int) -> IndexMap:
    """Return the index map of a transposed convolution or a max-unpooling.

    Examples
    --------
    >>> transposed_convolution_map(kernel=3, stride=2, padding=1, dilation=1).to_input(np.array([5]))
    array([2, 3])
    """
    taps = padding - dilation * np.arange(kernel)

    def to_input(pixels: Indices) -> Indices:
        sums = pixels[:, np.newaxis] + taps
        return np.unique(sums[sums % stride == 0] // stride)

    return IndexMap(Fraction(1, stride), to_input)


def crop_map(start: int, step: int = 1) -> IndexMap:
    """Return the index map of a crop (``start`` > 0) or of a padding (``start`` < 0)."""
    return IndexMap(Fraction(step), lambda o: o * step + start)


def interpolation_map(ratio: Fraction, kind: str) -> IndexMap:
    """Return the index map of an interpolation with ``align_corners=False``.

    Parameters
    ----------
    ratio : Fraction
        Input pixels for each output pixel.
    kind : {"nearest", "nearest_exact", "bilinear", "bicubic"}
        The interpolation.
    """
    p, q = ratio.numerator, ratio.denominator
    if kind == "nearest":
        return IndexMap(ratio, lambda o: np.unique(o * p // q))
    if kind == "nearest_exact":
        return IndexMap(ratio, lambda o: np.unique((2 * o + 1) * p // (2 * q)))
    taps = np.arange(2) if kind == "bilinear" else np.arange(-1, 3)
    return IndexMap(
        ratio, lambda o: np.unique(((2 * o + 1) * p - q)[:, np.newaxis] // (2 * q) + taps)
    )
