"""The file system behind a URL."""

from __future__ import annotations

from typing import Any

import fsspec

from fcnpipe.core.paths import WEB_SCHEMES
from fcnpipe.remote.errors import RemoteError

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}


def connect(url: str) -> tuple[Any, str]:
    """Give the file system of a URL, one for each process and server, and the name in it.

    Raises
    ------
    RemoteError
        If no package is installed that knows the protocol.
    """
    try:
        system, name = fsspec.core.url_to_fs(url, **storage_options(url))
    except (ImportError, ValueError) as error:
        raise RemoteError(_missing_package(url, url.partition("://")[0], error)) from None
    return system, str(name)


def protocols(system: Any) -> tuple[str, ...]:
    """Give the names of what a file system speaks."""
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def storage_options(url: str) -> dict[str, Any]:
    """Give what fsspec is told, over and above its own config files."""
    options: dict[str, Any] = {"use_listings_cache": False}  # an old listing hides a new object
    if url.startswith(WEB_SCHEMES):
        options["client_kwargs"] = {"trust_env": True}  # proxies, and credentials of ~/.netrc
    return options


def _missing_package(url: str, protocol: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    package = _PACKAGES.get(protocol)
    mend = f"pip install {package}, or 'fcnpipe[remote]'" if package else "or copy it here"
    return f"{url} cannot be reached: {reason}; {mend}"
