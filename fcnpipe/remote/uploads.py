"""Objects put behind URLs, each whole or not at all, and taken away again."""

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
"""Files on their way at the same time."""
PART_BYTES = 16 << 20
"""Of a large file, one part at a time: of each file on its way this is held, or twice as much."""


def get(url: str) -> bytes | None:
    """Give the content of a small object; None if there is none.

    Raises
    ------
    RemoteError
        If the server does not give it.
    """
    try:
        version = fetch_version(url)
    except Missing:
        return None
    return read(url, version, 0, version.size_bytes)


def put(url: str, data: bytes) -> None:
    """Put a small object, in the place of any that is there.

    Raises
    ------
    RemoteError
        If the server does not take it.
    """
    system, name = connect(url)
    asyn.sync(asyn.get_loop(), retry, url, partial(system._pipe_file, name, data))


def put_new(url: str, data: bytes) -> bool:
    """Put a small object where there is none; give whether there was none.

    Notes
    -----
    The server decides (``If-None-Match``), so that of two that come at once one is told no. An answer
    that was lost on the way reads as no.
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


def put_files(place: str, files: Iterable[tuple[str, Path]], landed: Callable[[str], None]) -> None:
    """Put files below a URL, some at a time.

    Parameters
    ----------
    place : str
        URL.
    files : iterable of (str, Path)
        Name below the URL, and the file.
    landed : callable
        Is told each name when the server has it.

    Raises
    ------
    RemoteError
        If the server does not take one; others may have landed.
    """
    asyn.sync(asyn.get_loop(), _put_files, place.rstrip("/"), iter(files), landed)


async def _put_files(place: str, files: Any, landed: Callable[[str], None]) -> None:
    async def work() -> None:
        for name, path in files:  # one iterator for all: each takes the next
            url = f"{place}/{name}"
            system, target = connect(url)
            await retry(url, partial(system._put_file, str(path), target, **_in_parts(system)))
            landed(name)

    workers = [asyncio.ensure_future(work()) for _ in range(MAX_UPLOADS)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()


def _in_parts(system: Any) -> dict[str, int]:
    """Give what keeps the memory of an upload small; by default it is 500 MB a file on S3."""
    if "s3" in protocols(system):
        return {"chunksize": PART_BYTES, "max_concurrency": 1}
    return {"chunksize": PART_BYTES} if "gs" in protocols(system) else {}


def remove(urls: Iterable[str]) -> None:
    """Take objects away; none that is not there."""
    for url in urls:
        system, name = connect(url)
        asyn.sync(asyn.get_loop(), retry, url, partial(_remove, system, name))


async def _remove(system: Any, name: str) -> None:
    try:
        await system._rm_file(name)
    except FileNotFoundError:
        return
