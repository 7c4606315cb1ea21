r"""What every image is, and what a new format must give: a `Reader` in one file of this folder.

::

    open_image --> Image --- band 0 --> Reader (FITS, zarr, TIFF, ...) --> cut(box) --> Scaling
                        \-- band 1 --> the same reader, or that of another file

Readers keep no open file: they are small frozen records that travel to workers by pickle, and each
process opens what it needs when it reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.core.paths import split_part
from fcnpipe.core.records import ImageInfo
from fcnpipe.core.resource_usage import count_read
from fcnpipe.images.axes import number_bands, say_shape
from fcnpipe.images.digests import _hash
from fcnpipe.images.headers import find_number
from fcnpipe.images.scaling import Float, Scaling

CHUNKS_IN_FLIGHT = 10
"""Chunks that zarr decodes at a time, as it comes."""


class Reader(Protocol):
    """One file (or store, or HDU) of one format; picklable and hashable, without open handles.

    Notes
    -----
    A module of this folder also gives ``recognises(path) -> bool`` and
    ``open_reader(path, hdu) -> Reader``.
    """

    @property
    def info(self) -> ImageInfo:
        """What is known before a pixel is read."""
        ...

    @property
    def scaling(self) -> Scaling:
        """How a stored number becomes a pixel value."""
        ...

    @property
    def overhead_bytes(self) -> int:
        """Most memory that a process takes for reading, over and above the box itself."""
        ...

    def cut(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Give the stored numbers of a box as strips of its rows, (n, w) of any real dtype, from the top.

        Notes
        -----
        Safe from several threads. A strip may be overwritten when the next one is asked for.
        """
        ...

    def digest(self) -> str:
        """Hexadecimal digest of the content, read as a stream."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one or more bands, read by box and never as a whole.

    Attributes
    ----------
    readers : tuple of Reader
        One for each file; the bands of the first come first.
    info : ImageInfo
        What is known before a pixel is read; its ``digest`` is empty, see :meth:`digest`.
    """

    readers: tuple[Reader, ...]
    info: ImageInfo

    def read(self, box: Box, band: int = 0) -> Float:
        """Give a box of a band.

        Parameters
        ----------
        box : Box
            Inside the image.
        band : int
            Counted from 0.

        Returns
        -------
        (h, w) float32
            Native and contiguous; NaN where there is no data (the ``BLANK`` of integers too).

        Raises
        ------
        InputError
            If the file is gone, damaged or shorter than it was.
        """
        values = np.empty(box.shape, np.float32)
        self._fill(values, box, band)
        return values

    def read_double(self, box: Box, band: int = 0) -> NDArray[np.float64]:
        """Give a box of a band, (h, w) float64: :meth:`read` for what a float32 may not hold."""
        values = np.empty(box.shape, np.float64)
        self._fill(values, box, band)
        return values

    def _fill(self, values: NDArray[Any], box: Box, band: int) -> None:
        reader, own = self._find(box, band)
        for rows, stored in _cut(reader, box, own):
            reader.scaling.fill(values[rows], stored)

    def read_integer(self, box: Box, band: int = 0) -> NDArray[np.int64]:
        """Give a box of a mask, (h, w) int64: every bit kept, -1 where there is no data.

        Raises
        ------
        InputError
            As for :meth:`read`.
        """
        reader, own = self._find(box, band)
        values = np.empty(box.shape, np.int64)
        for rows, stored in _cut(reader, box, own):
            values[rows] = reader.scaling.to_integer(stored)
        return values

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the content; reads all of it, as a stream.

        Notes
        -----
        FITS: header and data unit of the HDU, unpacked. zarr: every stored object below the array,
        metadata and chunks, in order of name. Other formats: the file.
        """
        digests = [reader.digest() for reader in self.readers]
        return digests[0] if len(digests) == 1 else _hash(",".join(digests).encode())

    @property
    def satur_level(self) -> float | None:
        """Least saturation level that a header states, image units; none if unknown."""
        levels = (find_number(r.info, ("SATURATE", "SATLEVEL")) for r in self.readers)
        return min((level for level in levels if level is not None), default=None)

    @property
    def gain(self) -> float | None:
        """Electrons per unit as the first header states, if positive; none if unknown."""
        value = find_number(self.info, ("GAIN", "EGAIN"))
        return value if value is not None and value > 0 else None

    @property
    def overhead_bytes(self) -> int:
        """Most memory that a process takes for reading, over and above the box itself."""
        return max(reader.overhead_bytes for reader in self.readers)

    def _find(self, box: Box, band: int) -> tuple[Reader, int]:
        bands, height, width = self.info.shape
        if not Box(0, 0, height, width).contains(box) or not 0 <= band < bands:
            raise IndexError(f"{box} of band {band} is not inside an image of {self.info.shape}")
        for reader in self.readers:
            if band < reader.info.shape[0]:
                return reader, band
            band -= reader.info.shape[0]
        raise AssertionError("bands of the readers add up to those of the image")


def _cut(reader: Reader, box: Box, band: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Give each strip of a box and the rows where it belongs."""
    start = 0
    for stored in reader.cut(box, band):
        count_read(stored.nbytes)
        yield slice(start, start + len(stored)), stored
        start += len(stored)


def stack_readers(readers: Sequence[Reader], names: Sequence[str]) -> Image:
    """Give one image with the bands of all readers, in order.

    Parameters
    ----------
    readers : sequence of Reader
        At least one.
    names : sequence of str
        File of each reader, for messages and for the names of the bands.

    Raises
    ------
    InputError
        If heights or widths differ.
    """
    first = readers[0].info
    for reader, name in zip(readers, names, strict=True):
        if reader.info.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{name} is {say_shape(reader.info.shape)} px but {names[0]} is "
                f"{say_shape(first.shape)} px: bands of one image have one shape; resample them"
            )
    if len(readers) == 1:
        return Image((readers[0],), first)
    count = sum(reader.info.shape[0] for reader in readers)
    info = replace(first, shape=(count, *first.shape[1:]), bands=_name_bands(readers, names))
    return Image(tuple(readers), info)


def _name_bands(readers: Sequence[Reader], names: Sequence[str]) -> tuple[str, ...]:
    files = [split_part(name) for name in names]
    stems = [os.path.basename(file.rstrip("/")).split(".")[0] for file, _ in files]
    if len(set(stems)) < len(stems):
        parts = (f".{part}" if part else "" for _, part in files)
        stems = [stem + part for stem, part in zip(stems, parts, strict=True)]
    bands = [
        stem if len(reader.info.bands) == 1 else f"{stem}.{band}"
        for stem, reader in zip(stems, readers, strict=True)
        for band in reader.info.bands
    ]
    return tuple(bands) if len(set(bands)) == len(bands) else number_bands(len(bands))
