"""Listings of the objects below a URL, with their versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from fsspec import asyn

from fcnpipe.remote.byte_ranges import MAX_REQUESTS, ObjectVersion, fetch_version_async
from fcnpipe.remote.errors import Missing
from fcnpipe.remote.file_systems import connect
from fcnpipe.remote.retries import retry


def list_objects(url: str) -> dict[str, ObjectVersion]:
    """Return the versions of all objects below a URL or folder, by relative path, sorted.

    Raises
    ------
    RemoteError
        If the server does not answer, or cannot list objects (https).
    """
    return {name: _parse_version(about) for name, about in find_objects(url).items()}


def find_objects(url: str, deep: bool = True) -> dict[str, dict[str, Any]]:
    """Return fsspec's description of all objects below a URL or folder, by relative path, sorted.

    Parameters
    ----------
    url : str
        URL or folder.
    deep : bool
        Whether to include folders within folders.

    Raises
    ------
    RemoteError
        As for `list_objects`.
    """
    system, root = connect(url.rstrip("/"))
    find = _find if deep else _list_files
    found = asyn.sync(asyn.get_loop(), retry, url, partial(find, system, root))
    return {name.removeprefix(root).lstrip("/"): found[name] for name in sorted(found)}


def list_folder(url: str) -> tuple[dict[str, ObjectVersion], list[str]]:
    """Return the versions of the objects directly below a URL, by name, and the names of its subfolders.

    Both are empty if there is nothing below the URL.

    Raises
    ------
    RemoteError
        If the server does not answer.
    """
    system, root = connect(url.rstrip("/"))
    found = asyn.sync(asyn.get_loop(), retry, url, partial(_list, system, root))
    named = {about["name"].rstrip("/").rpartition("/")[2]: about for about in found}
    objects = {name: _parse_version(a) for name, a in named.items() if a["type"] == "file"}
    return objects, [name for name, about in named.items() if about["type"] == "directory"]


async def _list(system: Any, root: str) -> list[dict[str, Any]]:
    try:
        if system.async_impl:
            return list(await system._ls(root, detail=True))
        return list(system.ls(root, detail=True))
    except FileNotFoundError:
        return []


def match_objects(pattern: str) -> list[str]:
    """Return the sorted URLs that match a glob pattern.

    Raises
    ------
    RemoteError
        If the server does not answer.
    """
    system, name = connect(pattern)
    found = asyn.sync(asyn.get_loop(), retry, pattern, partial(_glob, system, name))
    return [str(system.unstrip_protocol(name)) for name in sorted(found)]


async def _glob(system: Any, name: str) -> list[str]:
    return list(await system._glob(name) if system.async_impl else system.glob(name))


def fetch_versions(url: str, names: Iterable[str]) -> dict[str, ObjectVersion]:
    """Request the version of each named object below a URL, and return those that exist, by name.

    Raises
    ------
    RemoteError
        If the server does not answer or denies access.
    """
    urls = {name: f"{url.rstrip('/')}/{name}" for name in sorted(names)}
    found = asyn.sync(asyn.get_loop(), _fetch_versions, list(urls.values()))
    return {name: version for name, version in zip(urls, found, strict=True) if version is not None}


async def _fetch_versions(urls: list[str]) -> list[ObjectVersion | None]:
    free = asyncio.Semaphore(MAX_REQUESTS)

    async def fetch(url: str) -> ObjectVersion | None:
        async with free:
            try:
                return await fetch_version_async(url)
            except Missing:
                return None

    return await asyncio.gather(*map(fetch, urls))


async def _find(system: Any, root: str) -> dict[str, Any]:
    if system.async_impl:
        return dict(await system._find(root, detail=True))
    return dict(system.find(root, detail=True))


async def _list_files(system: Any, root: str) -> dict[str, Any]:
    return {a["name"]: a for a in await _list(system, root) if a["type"] == "file"}


def _parse_version(about: dict[str, Any]) -> ObjectVersion:
    etag = about.get("generation") or about.get("ETag") or ""
    modified = about.get("LastModified") or about.get("updated") or ""
    return ObjectVersion(int(about["size"]), str(etag), str(modified))
