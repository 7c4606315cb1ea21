"""Shards of zarr v3, read and written by box without zarr's event loop.

A tile moves a few megabytes at a time, for which zarr-python spends two to four times as long on
handing chunks between threads as on the codec (docs/decisions/0009). The format is zarr's own
``sharding_indexed`` with zstd inside and the index at the end::

    chunk, chunk, ...     zstd; chunks that are all fill value are left out
    index                 (offset, bytes) uint64 of each chunk in C order, 2**64 - 1 if left out
    crc32c                uint32 of the index

so zarr reads what is written here, and the other way round; a test holds them side by side.
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
"""Maps of noise gain 8 % from level 1, which takes twice as long to write them and to read them."""
NO_FILE = 0
"""Checksum of a shard that is all fill value, of which there is no file."""
_LEFT_OUT = np.iinfo(np.uint64).max
_CRC_BYTES = 4
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ShardedMap:
    """A map of a store: axes (y, x), or (n, y, x) with all of n in each shard, chunk by chunk.

    Attributes
    ----------
    path : Path
        Folder of the array.
    lead : tuple of int
        Length of the axis in front of (y, x), or nothing.
    shard, chunk : (int, int)
        Height and width, px; a shard is a whole number of chunks.
    dtype : numpy.dtype
        Of the values; little-endian on disk.
    fill : float
        Value of what was never written.
    """

    path: Path
    lead: tuple[int, ...]
    shard: tuple[int, int]
    chunk: tuple[int, int]
    dtype: np.dtype[Any]
    fill: float

    def write(self, box: Box, data: NDArray[Any]) -> int:
        """Write one shard, whole or not at all; give the CRC-32C of its file, 0 if it has none.

        Parameters
        ----------
        box : Box
            What the image has of the shard.
        data : (..., h, w) ndarray
            Its values.
        """
        chunks, index, offset = [], np.full((*self._counts, 2), _LEFT_OUT, np.uint64), 0
        for place in np.ndindex(*self._counts):
            block = self._block(data, place)
            if block is not None:
                chunks.append(Zstd(ZSTD_LEVEL).encode(block))
                index[place] = offset, len(chunks[-1])
                offset += len(chunks[-1])
        path = self.file(box)
        if not chunks:
            path.unlink(missing_ok=True)
            return NO_FILE
        table = index.astype("<u8").tobytes()
        parts = [*chunks, table, _checksum(table)]
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.writelines(parts)
        count_written(sum(map(len, parts)))
        return reduce(google_crc32c.extend, parts, 0)

    def checksum(self, box: Box) -> int:
        """Give the CRC-32C of the file of a shard as it lies on disk now, 0 if there is none."""
        return add_file(NO_FILE, self.file(box))

    def is_whole(self, box: Box) -> bool:
        """Whether the file of a shard is as long as its index says; reads the index alone."""
        path = self.file(box)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            index = self._read_index(file, path)
            stored = index[index[..., 0] != _LEFT_OUT]
            end = int(stored.sum(axis=-1).max(initial=0)) + 16 * index[..., 0].size + _CRC_BYTES
            return os.fstat(file).st_size == end
        except ShardDamaged:
            return False
        finally:
            os.close(file)

    def read(self, box: Box) -> NDArray[Any]:
        """Give the values of a box, (..., h, w).

        Raises
        ------
        StoreError
            If a shard is damaged.
        """
        values = np.empty((*self.lead, *box.shape), self.dtype)
        for row, column in product(
            _steps(box.y0, box.y1, self.shard[0]), _steps(box.x0, box.x1, self.shard[1])
        ):
            y0, x0 = row * self.shard[0], column * self.shard[1]
            shard = Box(y0, x0, y0 + self.shard[0], x0 + self.shard[1])
            part = values[(..., *shard.clip(box).within(box))]
            self._read_shard(self._file(row, column), shard, shard.clip(box), part)
        return values

    @property
    def _counts(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return (*self.lead, self.shard[0] // self.chunk[0], self.shard[1] // self.chunk[1])

    def file(self, box: Box) -> Path:
        """Give where the shard of a box lies, if it is not all fill value."""
        return self._file(box.y0 // self.shard[0], box.x0 // self.shard[1])

    def _file(self, row: int, column: int) -> Path:
        return self.path.joinpath("c", *("0" for _ in self.lead), str(row), str(column))

    def _block(self, data: NDArray[Any], place: tuple[int, ...]) -> NDArray[Any] | None:
        """Give a chunk, filled up where the image ends; None if there is nothing but fill."""
        y, x = place[-2] * self.chunk[0], place[-1] * self.chunk[1]
        block = data[place[:-2]][y : y + self.chunk[0], x : x + self.chunk[1]]
        if not (block.any() if self.fill == 0 else (~np.isnan(block)).any()):
            return None
        if block.shape != self.chunk:
            missing = [(0, n - m) for n, m in zip(self.chunk, block.shape, strict=True)]
            block = np.pad(block, missing, constant_values=self.fill)
        return np.ascontiguousarray(block, self.dtype.newbyteorder("<"))

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
                if offset == _LEFT_OUT:
                    part[...] = self.fill
                else:
                    count_read(size)
                    part[...] = self._decode(os.pread(file, size, offset), path)[cut.within(box)]
        finally:
            os.close(file)

    def _chunks(self, shard: Box, wanted: Box) -> Iterator[tuple[tuple[int, ...], Box]]:
        """Give place and box of each chunk of a shard that touches a box inside it."""
        height, width = self.chunk
        rows = _steps(wanted.y0 - shard.y0, wanted.y1 - shard.y0, height)
        columns = _steps(wanted.x0 - shard.x0, wanted.x1 - shard.x0, width)
        for *lead, row, column in product(*map(range, self.lead), rows, columns):
            y0, x0 = shard.y0 + row * height, shard.x0 + column * width
            yield (*lead, row, column), Box(y0, x0, y0 + height, x0 + width)

    def _read_index(self, file: int, path: Path) -> NDArray[np.uint64]:
        size = 16 * int(np.prod(self._counts))
        start = os.fstat(file).st_size - size - _CRC_BYTES
        tail = os.pread(file, size + _CRC_BYTES, max(start, 0))
        if start < 0 or _checksum(tail[:size]) != tail[size:]:
            raise _damaged(path)
        return np.frombuffer(tail[:size], "<u8").reshape(*self._counts, 2)

    def _decode(self, stored: bytes, path: Path) -> NDArray[Any]:
        try:
            raw = Zstd(ZSTD_LEVEL).decode(stored)
            return np.frombuffer(raw, self.dtype.newbyteorder("<")).reshape(self.chunk)
        except (RuntimeError, ValueError):
            raise _damaged(path) from None


def add_file(checksum: int, path: Path) -> int:
    """Go on with a CRC-32C over the bytes of a file; one that is missing has none."""
    try:
        with path.open("rb") as file:
            return reduce(
                google_crc32c.extend, iter(partial(file.read, _READ_BYTES), b""), checksum
            )
    except FileNotFoundError:
        return checksum


def _steps(start: int, stop: int, step: int) -> range:
    """Give the numbers of the steps that [start, stop) touches."""
    return range(start // step, -(-stop // step))


def _checksum(table: bytes) -> bytes:
    return int(google_crc32c.value(table)).to_bytes(_CRC_BYTES, "little")


def _damaged(path: Path) -> ShardDamaged:
    return ShardDamaged(
        f"shard {path} is damaged: 'fcnpipe verify --repair' mends a finished store, "
        "the same command again an unfinished one",
        path,
    )
