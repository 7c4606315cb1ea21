"""Atomic uploads of objects and files to URLs, and their removal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import asyn

from fcnpipe.remote.byte_ranges import fetch_version, read
from fcnpipe.remote.errors import Missing
from fcnpipe.remote.file_systems import connect, protocols
from fcnpipe.remote.retries import retry

MAX_UPLOADS = 8
"""Maximum number of concurrent file uploads."""
PART_BYTES = 16 << 20
"""Size of a part of a multipart upload; each concurrent upload holds one or two parts in memory."""


def get(url: str) -> bytes | None:
    """Return the content of a small object; None if it does not exist.

    Raises
    ------
    RemoteError
        If the server does not return it.
    """
    try:
        version = fetch_version(url)
    except Missing:
        return None
    return read(url, version, 0, version.size_bytes)


def put(url: str, data: bytes) -> None:
    """Write a small object, replacing an existing one.

    Raises
    ------
    RemoteError
        If the server does not accept it.
    """
    system, name = connect(url)
    asyn.sync(asyn.get_loop(), retry, url, partial(system._pipe_file, name, data))


def put_new(url: str, data: bytes) -> bool:
    """Write a small object unless it exists, and return whether it was written.

    Raises
    ------
    RemoteError
        If the server does not accept it.

    Notes
    -----
    The server decides (``If-None-Match``), so only one of two concurrent calls succeeds. If the answer of a
    successful request is lost, the retry returns False.
    """
    system, name = connect(url)

    async def create() -> bool:
        try:
            await system._pipe_file(name, data, mode="create")
        except FileExistsError:
            return False
        return True

    made: bool = asyn.sync(asyn.get_loop(), retry, url, create)
    return made


def put_files(
    url: str, files: Iterable[tuple[str, Path]], on_uploaded: Callable[[str], None]
) -> None:
    """Upload files below a URL, several at a time.

    Parameters
    ----------
    url : str
        Parent of the files.
    files : iterable of (str, Path)
        Name below the URL, and the file.
    on_uploaded : callable
        Called with the name of each file when the server has it.

    Raises
    ------
    RemoteError
        If the server does not accept a file; others may have been written.
    """
    asyn.sync(asyn.get_loop(), _put_files, url.rstrip("/"), iter(files), on_uploaded)


async def _put_files(parent: str, files: Any, on_uploaded: Callable[[str], None]) -> None:
    async def work() -> None:
        for name, path in files:  # shared iterator: each worker takes the next file
            url = f"{parent}/{name}"
            system, target = connect(url)
            options = _multipart_options(system)
            await retry(url, partial(system._put_file, str(path), target, **options))
            on_uploaded(name)

    workers = [asyncio.ensure_future(work()) for _ in range(MAX_UPLOADS)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()


def _multipart_options(system: Any) -> dict[str, int]:
    """Return options that limit the memory of an upload; the default of s3fs is 500 MB per file."""
    if "s3" in protocols(system):
        return {"chunksize": PART_BYTES, "max_concurrency": 1}
    return {"chunksize": PART_BYTES} if "gs" in protocols(system) else {}


def remove(urls: Iterable[str]) -> None:
    """Delete objects; missing ones are ignored.

    Raises
    ------
    RemoteError
        If the server does not delete an object.
    """
    for url in urls:
        system, name = connect(url)
        asyn.sync(asyn.get_loop(), retry, url, partial(_remove, system, name))


async def _remove(system: Any, name: str) -> None:
    try:
        await system._rm_file(name)
    except FileNotFoundError:
        return
