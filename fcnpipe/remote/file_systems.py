"""fsspec file systems of URLs, and their options."""

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
    """Return the file system of a URL (one for each process and server) and the object's name in it.

    Raises
    ------
    RemoteError
        If the package for the protocol is not installed.
    """
    try:
        system, name = fsspec.core.url_to_fs(url, **storage_options(url))
    except (ImportError, ValueError) as error:
        raise RemoteError(_describe_missing_package(url, url.partition("://")[0], error)) from None
    return system, str(name)


def protocols(system: Any) -> tuple[str, ...]:
    """Return the names of the protocols of a file system."""
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def storage_options(url: str) -> dict[str, Any]:
    """Return options for fsspec, in addition to those of its config files."""
    options: dict[str, Any] = {"use_listings_cache": False}  # a cached listing hides new objects
    if url.startswith(WEB_SCHEMES):
        options["client_kwargs"] = {"trust_env": True}  # use proxies, and credentials in ~/.netrc
    return options


def _describe_missing_package(url: str, protocol: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    package = _PACKAGES.get(protocol)
    fix = (
        f"pip install {package}, or 'fcnpipe[remote]'" if package else "or copy it to a local disk"
    )
    return f"{url} cannot be reached: {reason}; {fix}"
