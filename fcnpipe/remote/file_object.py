"""File object over a URL, for libraries that read and seek; blocks are cached."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from typing import Any

from fsspec import asyn

from fcnpipe.remote.byte_ranges import ObjectVersion, fetch_ranges, fetch_version
from fcnpipe.remote.file_systems import connect
from fcnpipe.remote.retries import retry

BLOCK_BYTES = 256 << 10
"""Size of a cached block."""
CACHE_BYTES = 64 << 20
"""Size of the block cache of a process, for all files together."""
READ_AHEAD_BLOCKS = 4
"""Number of blocks that are fetched at a time while a file is read sequentially."""

_Key = tuple[str, ObjectVersion, int]
_BLOCKS: OrderedDict[_Key, bytes] = OrderedDict()
_LOCK = threading.Lock()


def read_whole(url: str) -> bytes:
    """Read a small file, also from a server without byte ranges.

    Raises
    ------
    RemoteError
        If it is missing, access is denied, or its server does not answer.
    """
    system, name = connect(url)

    async def fetch() -> bytes:
        return bytes(await system._cat_file(name) if system.async_impl else system.cat_file(name))

    data: bytes = asyn.sync(asyn.get_loop(), retry, url, fetch)
    return data


class RemoteFile(io.RawIOBase):
    """Read-only file object over a URL; not thread-safe.

    Parameters
    ----------
    url : str
        The file.
    version : ObjectVersion, optional
        The version to read; the current one by default.
    """

    def __init__(self, url: str, version: ObjectVersion | None = None) -> None:
        super().__init__()
        self.name, self.mode = url, "rb"
        self._version = fetch_version(url) if version is None else version
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, and return it."""
        starts = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self._version.size_bytes,
        }
        self._position = max(0, starts[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes read, 0 at the end of the file."""
        wanted = memoryview(buffer).cast("B")
        stop = min(self._position + len(wanted), self._version.size_bytes)
        if stop <= self._position:
            return 0
        data = _read_blocks(self.name, self._version, self._position, stop)
        wanted[: len(data)] = data
        self._position = stop
        return len(data)


def _read_blocks(url: str, version: ObjectVersion, start: int, stop: int) -> bytes:
    numbers = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
    blocks = _find_cached(url, version, numbers)
    missing = [number for number in numbers if number not in blocks]
    if missing:
        blocks |= _fetch(url, version, _add_read_ahead(url, version, missing))
    data = b"".join(blocks[number] for number in numbers)
    return data[start - numbers[0] * BLOCK_BYTES : stop - numbers[0] * BLOCK_BYTES]


def _add_read_ahead(url: str, version: ObjectVersion, missing: list[int]) -> list[int]:
    """Add the blocks to read ahead if the file is read sequentially."""
    first, last = missing[0], missing[-1]
    if not _find_cached(url, version, range(first - 1, first)):
        return missing
    end = -(-version.size_bytes // BLOCK_BYTES)
    return [*missing, *range(last + 1, min(first + READ_AHEAD_BLOCKS, end))]


def _find_cached(url: str, version: ObjectVersion, numbers: range) -> dict[int, bytes]:
    with _LOCK:
        found = {n: _BLOCKS[url, version, n] for n in numbers if (url, version, n) in _BLOCKS}
        for number in found:
            _BLOCKS.move_to_end((url, version, number))
    return found


def _fetch(url: str, version: ObjectVersion, numbers: list[int]) -> dict[int, bytes]:
    starts = [number * BLOCK_BYTES for number in numbers]
    ranges = [(start, min(start + BLOCK_BYTES, version.size_bytes)) for start in starts]
    blocks = dict(zip(numbers, fetch_ranges(url, version, ranges), strict=True))
    with _LOCK:
        _BLOCKS.update({(url, version, number): block for number, block in blocks.items()})
        while len(_BLOCKS) > CACHE_BYTES // BLOCK_BYTES:
            _BLOCKS.popitem(last=False)
    return blocks
