"""Concurrent reads of byte ranges of one object, each answer checked against the object's version.

::

    rows of a box in a plain file        gaps are short             gaps are long
    [....xxxx....][....xxxx....][...     one range over all rows    one range for each row

"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fsspec import asyn
from numpy.typing import NDArray

from fcnpipe.remote.errors import Changed, RemoteError
from fcnpipe.remote.file_systems import connect, protocols
from fcnpipe.remote.retries import retry

MAX_REQUESTS = 16
"""Maximum number of concurrent requests."""
PART_BYTES = 8 << 20
"""Maximum number of bytes of one request: concurrent requests are faster, and a failed one costs less."""
GAP_BYTES = 64 << 10
"""Maximum gap between two rows, bytes, that is read with them to save a request."""

Range = tuple[int, int]
"""First byte, and the byte after the last one."""


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """Version of an object, by which a later change of the object is detected.

    Attributes
    ----------
    size_bytes : int
        Size of the object.
    etag, modified : str
        ``ETag`` (S3, https) or generation (GCS), and ``Last-Modified``; empty if unknown.
    """

    size_bytes: int
    etag: str = ""
    modified: str = ""

    def __str__(self) -> str:
        # This text is part of input digests, hence of run keys: it must stay as it is.
        return (
            f"Stamp(size_bytes={self.size_bytes!r}, etag={self.etag!r}, modified={self.modified!r})"
        )

    @property
    def identifies_content(self) -> bool:
        """Whether the server guarantees that no other content has this version (a strong ETag)."""
        return bool(self.etag) and not self.etag.startswith("W/")


@dataclass(frozen=True, slots=True)
class _Response:
    data: bytes
    version: ObjectVersion


def fetch_version(url: str) -> ObjectVersion:
    """Return the version of an object.

    Raises
    ------
    RemoteError
        If it is missing or access is denied, or if its server is unreachable or does not support byte ranges.
    """
    version: ObjectVersion = asyn.sync(asyn.get_loop(), fetch_version_async, url)
    return version


async def fetch_version_async(url: str) -> ObjectVersion:
    """Return the version of an object; the asynchronous form of `fetch_version`."""
    system, name = connect(url)
    return (await retry(url, partial(_request, system, name, (0, 1)))).version


def read(url: str, version: ObjectVersion, start: int, stop: int) -> bytes:
    """Read the bytes from ``start`` to ``stop`` of an object in the given version.

    Raises
    ------
    Changed
        If the object has another version now.
    RemoteError
        As for `fetch_version`.
    """
    starts = range(start, stop, PART_BYTES)
    return b"".join(
        fetch_ranges(url, version, [(first, min(first + PART_BYTES, stop)) for first in starts])
    )


def read_rows(
    url: str, version: ObjectVersion, start: int, row_bytes: int, step_bytes: int, count: int
) -> NDArray[np.uint8]:
    """Read equally spaced rows of bytes of an object.

    Parameters
    ----------
    url, version
        The object, and its version.
    start : int
        First byte of the first row.
    row_bytes, step_bytes : int
        Bytes of each row, and bytes from the start of one row to the next.
    count : int
        Number of rows.

    Returns
    -------
    (count, row_bytes) uint8
        The rows.

    Raises
    ------
    Changed, RemoteError
        As for `read`.
    """
    if step_bytes - row_bytes > GAP_BYTES:
        rows = [(start + i * step_bytes, start + i * step_bytes + row_bytes) for i in range(count)]
        data = b"".join(fetch_ranges(url, version, rows))
        return np.frombuffer(data, np.uint8).reshape(count, row_bytes)
    length = (count - 1) * step_bytes + row_bytes
    data = read(url, version, start, start + length).ljust(count * step_bytes, b"\0")
    return np.frombuffer(data, np.uint8).reshape(count, step_bytes)[:, :row_bytes]


def fetch_ranges(url: str, version: ObjectVersion, ranges: Sequence[Range]) -> list[bytes]:
    """Read ranges of bytes concurrently, and return them in the order of ``ranges``.

    Raises
    ------
    Changed, RemoteError
        As for `read`.
    """
    system, name = connect(url)
    found: list[bytes] = asyn.sync(asyn.get_loop(), _fetch_all, url, system, name, version, ranges)
    return found


async def _fetch_all(
    url: str, system: Any, name: str, version: ObjectVersion, ranges: Sequence[Range]
) -> list[bytes]:
    free = asyncio.Semaphore(MAX_REQUESTS)

    async def fetch_one(wanted: Range) -> bytes:
        async with free:
            answer = await retry(url, partial(_request, system, name, wanted))
        if answer.version != version:
            raise Changed(f"{url} changed while it was read: do not change inputs during a run")
        return answer.data

    tasks = [asyncio.ensure_future(fetch_one(wanted)) for wanted in ranges]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _request(system: Any, name: str, wanted: Range) -> _Response:
    get = next((get for kind, get in _GETTERS.items() if kind in protocols(system)), _get_from_any)
    answer = await get(system, name, wanted)
    stop = min(wanted[1], answer.version.size_bytes)
    if len(answer.data) != stop - wanted[0]:
        raise EOFError(f"received {len(answer.data)} bytes instead of {stop - wanted[0]}")
    return answer


def _range_header(wanted: Range) -> str:
    return f"bytes={wanted[0]}-{wanted[1] - 1}"


def _object_size(content_range: str | None, name: str) -> int:
    """Return the size of an object from a Content-Range such as 'bytes 0-99/1234'."""
    length = (content_range or "").rpartition("/")[2]
    if not length.isdecimal():
        raise RemoteError(
            f"{name}: its server does not support byte ranges; copy it to a local disk"
        )
    return int(length)


async def _get_from_s3(system: Any, name: str, wanted: Range) -> _Response:
    bucket, key, version = system.split_path(name)
    which = {"VersionId": version} if version else {}
    answer = await system._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=_range_header(wanted), **which
    )
    try:
        data = await answer["Body"].read()
    finally:
        answer["Body"].close()
    size = _object_size(answer.get("ContentRange"), f"s3://{name}")
    return _Response(data, ObjectVersion(size, answer["ETag"], answer["LastModified"].isoformat()))


async def _get_from_gcs(system: Any, name: str, wanted: Range) -> _Response:
    headers, data = await system._call(
        "GET", system.url(name), headers={"Range": _range_header(wanted)}
    )
    size = _object_size(headers.get("Content-Range"), f"gs://{name}")
    etag = headers.get("X-Goog-Generation") or headers.get("ETag", "")
    return _Response(data, ObjectVersion(size, etag, headers.get("Last-Modified", "")))


async def _get_from_web(system: Any, name: str, wanted: Range) -> _Response:
    options = dict(system.kwargs)
    headers = {
        **options.pop("headers", {}),
        "Range": _range_header(wanted),
        "Accept-Encoding": "identity",
    }
    session = await system.set_session()
    async with session.get(system.encode_url(name), headers=headers, **options) as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(name)
        if answer.status in (401, 403):
            raise PermissionError(f"{answer.status} {answer.reason}")
        answer.raise_for_status()
        size = _object_size(answer.headers.get("Content-Range"), name)
        data = await answer.read()
    etag, modified = (answer.headers.get(key, "") for key in ("ETag", "Last-Modified"))
    return _Response(data, ObjectVersion(size, etag, modified))


async def _get_from_any(system: Any, name: str, wanted: Range) -> _Response:
    if system.async_impl:
        about = await system._info(name)
        data = await system._cat_file(name, start=wanted[0], end=wanted[1])
    else:
        about = system.info(name)
        data = system.cat_file(name, start=wanted[0], end=wanted[1])
    etag = about.get("ETag") or about.get("etag") or ""
    modified = about.get("LastModified") or about.get("mtime") or about.get("created") or ""
    return _Response(data, ObjectVersion(int(about["size"]), str(etag), str(modified)))


_GETTERS = {"s3": _get_from_s3, "gs": _get_from_gcs, "https": _get_from_web}
