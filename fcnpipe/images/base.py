r"""Image of one or more bands, and the interface of the readers of file formats.

::

    open_image --> Image --- band 0 --> Reader (FITS, zarr, TIFF, ...) --> read_strips(box) --> Scaling
                        \-- band 1 --> the same reader, or that of another file

Readers keep no file open. They are small frozen records that travel to workers by pickle; each process
opens the files that it needs on the first read.
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
from fcnpipe.core.paths import split_hdu
from fcnpipe.core.records import ImageInfo
from fcnpipe.core.resource_usage import count_read
from fcnpipe.images.axes import format_shape, number_bands
from fcnpipe.images.digests import hash_bytes
from fcnpipe.images.headers import header_number
from fcnpipe.images.scaling import Float, Scaling

ZARR_CHUNKS_IN_FLIGHT = 10
"""Number of chunks that zarr decodes concurrently by default."""


class Reader(Protocol):
    """Reader of one file (or store, or HDU); picklable and hashable, without open handles.

    Notes
    -----
    A module of :mod:`fcnpipe.images.formats` also defines ``recognises(path) -> bool`` and
    ``open_reader(path, hdu) -> Reader``.
    """

    @property
    def info(self) -> ImageInfo:
        """Shape, dtype and header, known before a pixel is read."""
        ...

    @property
    def scaling(self) -> Scaling:
        """Conversion of stored numbers to pixel values."""
        ...

    @property
    def overhead_bytes(self) -> int:
        """Maximum memory that a process needs for reading, in addition to the box itself."""
        ...

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield the stored numbers of a box as strips of its rows, (n, w) of any real dtype, from the top.

        Raises
        ------
        InputError
            If the file is missing, damaged, or shorter than when it was opened.

        Notes
        -----
        Several threads may call it at the same time. A strip may be overwritten when the next one is requested.
        """
        ...

    def digest(self) -> str:
        """Return the hexadecimal digest of the content, read as a stream."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one or more bands, read by box and never as a whole.

    Attributes
    ----------
    readers : tuple of Reader
        One for each file, in the order of the bands.
    info : ImageInfo
        Shape, dtype and header, known before a pixel is read. Its ``digest`` is empty, see
        :meth:`digest`.
    """

    readers: tuple[Reader, ...]
    info: ImageInfo

    def read(self, box: Box, band: int = 0) -> Float:
        """Read a box of a band.

        Parameters
        ----------
        box : Box
            Inside the image.
        band : int
            Number of the band, from 0.

        Returns
        -------
        (h, w) float32
            Native and contiguous; NaN where there is no data (also the ``BLANK`` of integers).

        Raises
        ------
        InputError
            If the file is missing, damaged, or shorter than when it was opened.
        """
        values = np.empty(box.shape, np.float32)
        self._fill(values, box, band)
        return values

    def read_double(self, box: Box, band: int = 0) -> NDArray[np.float64]:
        """Read a box of a band as (h, w) float64, for values that float32 cannot hold; see :meth:`read`."""
        values = np.empty(box.shape, np.float64)
        self._fill(values, box, band)
        return values

    def _fill(self, values: NDArray[Any], box: Box, band: int) -> None:
        reader, own_band = self._find_reader(box, band)
        for rows, stored in _read_strips(reader, box, own_band):
            reader.scaling.fill(values[rows], stored)

    def read_integer(self, box: Box, band: int = 0) -> NDArray[np.int64]:
        """Read a box of a mask as (h, w) int64; every bit is kept, and -1 means no data.

        Raises
        ------
        InputError
            As for :meth:`read`.
        """
        reader, own_band = self._find_reader(box, band)
        values = np.empty(box.shape, np.int64)
        for rows, stored in _read_strips(reader, box, own_band):
            values[rows] = reader.scaling.to_integer(stored)
        return values

    def digest(self) -> str:
        """Return the hexadecimal SHA-256 of the content; reads all of it, as a stream.

        Notes
        -----
        FITS: header and data unit of the HDU, uncompressed by gzip or bzip2. zarr: every stored object
        of the array, metadata and chunks, in order of name. Other formats: the file. For objects behind
        URLs, the server's version stands for the content if it identifies it.
        """
        digests = [reader.digest() for reader in self.readers]
        return digests[0] if len(digests) == 1 else hash_bytes(",".join(digests).encode())

    @property
    def satur_level(self) -> float | None:
        """Lowest saturation level of the headers, image units; None if unknown."""
        levels = (header_number(r.info, ("SATURATE", "SATLEVEL")) for r in self.readers)
        return min((level for level in levels if level is not None), default=None)

    @property
    def gain(self) -> float | None:
        """Electrons per image unit from the first header, if positive; None if unknown."""
        value = header_number(self.info, ("GAIN", "EGAIN"))
        return value if value is not None and value > 0 else None

    @property
    def overhead_bytes(self) -> int:
        """Maximum memory that a process needs for reading, in addition to the box itself."""
        return max(reader.overhead_bytes for reader in self.readers)

    def _find_reader(self, box: Box, band: int) -> tuple[Reader, int]:
        """Return the reader of a band, and the band's number in that reader."""
        bands, height, width = self.info.shape
        if not Box(0, 0, height, width).contains(box) or not 0 <= band < bands:
            raise IndexError(f"{box} of band {band} is not inside an image of {self.info.shape}")
        for reader in self.readers:
            if band < reader.info.shape[0]:
                return reader, band
            band -= reader.info.shape[0]
        raise AssertionError("bands of the readers add up to those of the image")


def _read_strips(reader: Reader, box: Box, band: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield the strips of a box, each with the slice of its rows in the box."""
    start = 0
    for stored in reader.read_strips(box, band):
        count_read(stored.nbytes)
        yield slice(start, start + len(stored)), stored
        start += len(stored)


def stack_readers(readers: Sequence[Reader], names: Sequence[str]) -> Image:
    """Return one image with the bands of all readers, in order.

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
                f"{name} is {format_shape(reader.info.shape)} px but {names[0]} is "
                f"{format_shape(first.shape)} px: bands of one image have one shape; resample them"
            )
    if len(readers) == 1:
        return Image((readers[0],), first)
    count = sum(reader.info.shape[0] for reader in readers)
    info = replace(first, shape=(count, *first.shape[1:]), bands=_name_bands(readers, names))
    return Image(tuple(readers), info)


def _name_bands(readers: Sequence[Reader], names: Sequence[str]) -> tuple[str, ...]:
    """Return names for the bands from file names, HDUs and band names; numbers if these repeat."""
    files = [split_hdu(name) for name in names]
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
