"""Reading and writing of zarr v3 shards by box, without the event loop of zarr.

A tile has a few megabytes. For arrays of that size zarr-python spends two to four times as long on
passing chunks between threads as on the codec (docs/decisions/0009). The format is the
``sharding_indexed`` codec of zarr with zstd inside and the index at the end::

    chunk, chunk, ...     zstd; chunks of fill value only are omitted
    index                 (offset, bytes) uint64 of each chunk in C order, 2**64 - 1 if omitted
    crc32c                uint32 of the index

zarr reads the files that this module writes, and vice versa; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from fcnpipe.core.errors import ShardDamaged
from fcnpipe.core.geometry import Box
from fcnpipe.core.resource_usage import count_read, count_written
from fcnpipe.stores.atomic_writes import atomic_write

ZSTD_LEVEL = -1
"""Level 1 makes maps of noise 8 % smaller but takes twice as long to write and to read."""
NO_FILE = 0
"""Checksum of a shard that contains only the fill value and therefore has no file."""
_OMITTED = np.iinfo(np.uint64).max
_CRC_BYTES = 4
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ShardedMap:
    """A sharded array of a store, with axes (y, x) or (n, y, x).

    A shard holds all n planes; a chunk holds one of them.

    Attributes
    ----------
    path : Path
        Folder of the array.
    lead : tuple of int
        Length of the axis before (y, x); empty if there is none.
    shard, chunk : (int, int)
        Height and width, px; a shard is a whole number of chunks.
    dtype : numpy.dtype
        Type of the values; little-endian on disk.
    fill : float
        Value of pixels that were never written.
    """

    path: Path
    lead: tuple[int, ...]
    shard: tuple[int, int]
    chunk: tuple[int, int]
    dtype: np.dtype[Any]
    fill: float

    def write(self, box: Box, data: NDArray[Any]) -> int:
        """Write one shard, atomically.

        Parameters
        ----------
        box : Box
            The part of the shard that is inside the image.
        data : (..., h, w) ndarray
            Values of the box.

        Returns
        -------
        int
            CRC-32C of the file; 0 if all values are the fill value, in which case there is no file.
        """
        chunks, index, offset = [], np.full((*self._chunk_counts, 2), _OMITTED, np.uint64), 0
        for place in np.ndindex(*self._chunk_counts):
            values = self._chunk_values(data, place)
            if values is not None:
                chunks.append(Zstd(ZSTD_LEVEL).encode(values))
                index[place] = offset, len(chunks[-1])
                offset += len(chunks[-1])
        path = self.file(box)
        if not chunks:
            path.unlink(missing_ok=True)
            return NO_FILE
        table = index.astype("<u8").tobytes()
        parts = [*chunks, table, _encode_checksum(table)]
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.writelines(parts)
        count_written(sum(map(len, parts)))
        return reduce(google_crc32c.extend, parts, 0)

    def checksum(self, box: Box) -> int:
        """Return the CRC-32C of the file of a shard on disk; 0 if there is none."""
        return extend_checksum(NO_FILE, self.file(box))

    def is_whole(self, box: Box) -> bool:
        """Return whether the file of a shard has the length that its index states.

        Only the index is read. The result is False if there is no file.
        """
        path = self.file(box)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            index = self._read_index(file, path)
            stored = index[index[..., 0] != _OMITTED]
            end = int(stored.sum(axis=-1).max(initial=0)) + 16 * index[..., 0].size + _CRC_BYTES
            return os.fstat(file).st_size == end
        except ShardDamaged:
            return False
        finally:
            os.close(file)

    def read(self, box: Box) -> NDArray[Any]:
        """Read the values of a box, (..., h, w).

        Raises
        ------
        StoreError
            If a shard is damaged.
        """
        values = np.empty((*self.lead, *box.shape), self.dtype)
        for row, column in product(
            _overlapping_cells(box.y0, box.y1, self.shard[0]),
            _overlapping_cells(box.x0, box.x1, self.shard[1]),
        ):
            y0, x0 = row * self.shard[0], column * self.shard[1]
            shard = Box(y0, x0, y0 + self.shard[0], x0 + self.shard[1])
            part = values[(..., *shard.clip(box).within(box))]
            self._read_shard(self._file(row, column), shard, shard.clip(box), part)
        return values

    @property
    def _chunk_counts(self) -> tuple[int, ...]:
        """Number of chunks of a shard along each axis."""
        return (*self.lead, self.shard[0] // self.chunk[0], self.shard[1] // self.chunk[1])

    def file(self, box: Box) -> Path:
        """Return the path of the shard of a box; there is no file if all values are the fill value."""
        return self._file(box.y0 // self.shard[0], box.x0 // self.shard[1])

    def _file(self, row: int, column: int) -> Path:
        return self.path.joinpath("c", *("0" for _ in self.lead), str(row), str(column))

    def _chunk_values(self, data: NDArray[Any], place: tuple[int, ...]) -> NDArray[Any] | None:
        """Return a chunk, padded at the edge of the image; None if all values are the fill value."""
        y, x = place[-2] * self.chunk[0], place[-1] * self.chunk[1]
        values = data[place[:-2]][y : y + self.chunk[0], x : x + self.chunk[1]]
        if not (values.any() if self.fill == 0 else (~np.isnan(values)).any()):
            return None
        if values.shape != self.chunk:
            missing = [(0, n - m) for n, m in zip(self.chunk, values.shape, strict=True)]
            values = np.pad(values, missing, constant_values=self.fill)
        return np.ascontiguousarray(values, self.dtype.newbyteorder("<"))

    def _read_shard(self, path: Path, shard: Box, wanted: Box, out: NDArray[Any]) -> None:
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            out[...] = self.fill
            return
        try:
            index = self._read_index(file, path)
            for place, box in self._chunks(shard, wanted):
                cut = box.clip(wanted)
                part = out[place[:-2]][cut.within(wanted)]
                offset, size = (int(n) for n in index[place])
                if offset == _OMITTED:
                    part[...] = self.fill
                else:
                    count_read(size)
                    part[...] = self._decode(os.pread(file, size, offset), path)[cut.within(box)]
        finally:
            os.close(file)

    def _chunks(self, shard: Box, wanted: Box) -> Iterator[tuple[tuple[int, ...], Box]]:
        """Yield index and box of each chunk of a shard that overlaps ``wanted``, a box inside it."""
        height, width = self.chunk
        rows = _overlapping_cells(wanted.y0 - shard.y0, wanted.y1 - shard.y0, height)
        columns = _overlapping_cells(wanted.x0 - shard.x0, wanted.x1 - shard.x0, width)
        for *lead, row, column in product(*map(range, self.lead), rows, columns):
            y0, x0 = shard.y0 + row * height, shard.x0 + column * width
            yield (*lead, row, column), Box(y0, x0, y0 + height, x0 + width)

    def _read_index(self, file: int, path: Path) -> NDArray[np.uint64]:
        size = 16 * int(np.prod(self._chunk_counts))
        start = os.fstat(file).st_size - size - _CRC_BYTES
        tail = os.pread(file, size + _CRC_BYTES, max(start, 0))
        if start < 0 or _encode_checksum(tail[:size]) != tail[size:]:
            raise _damaged_shard(path)
        return np.frombuffer(tail[:size], "<u8").reshape(*self._chunk_counts, 2)

    def _decode(self, stored: bytes, path: Path) -> NDArray[Any]:
        try:
            raw = Zstd(ZSTD_LEVEL).decode(stored)
            return np.frombuffer(raw, self.dtype.newbyteorder("<")).reshape(self.chunk)
        except (RuntimeError, ValueError):
            raise _damaged_shard(path) from None


def extend_checksum(checksum: int, path: Path) -> int:
    """Return the CRC-32C extended by the bytes of a file; unchanged if there is no file."""
    try:
        with path.open("rb") as file:
            return reduce(
                google_crc32c.extend, iter(partial(file.read, _READ_BYTES), b""), checksum
            )
    except FileNotFoundError:
        return checksum


def _overlapping_cells(start: int, stop: int, size: int) -> range:
    """Return the indices of the cells of ``size`` px that overlap [start, stop)."""
    return range(start // size, -(-stop // size))


def _encode_checksum(table: bytes) -> bytes:
    return int(google_crc32c.value(table)).to_bytes(_CRC_BYTES, "little")


def _damaged_shard(path: Path) -> ShardDamaged:
    return ShardDamaged(
        f"shard {path} is damaged: run 'fcnpipe verify --repair' on a finished store, "
        "or resume an unfinished run with the same command",
        path,
    )
