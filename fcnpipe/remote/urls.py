"""URLs: which paths are some, which are refused, and the file system behind them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import fsspec

from fcnpipe.errors import SpecError
from fcnpipe.remote.errors import RemoteError

_SECRET = re.compile(
    r"signature|credential|token|secret|passw|auth|api_?key|accesskey|^(sig|key)$", re.I
)
_WEB = ("http://", "https://")
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}


def is_remote(path: str) -> bool:
    """Whether a path is a URL for fsspec."""
    return "://" in path


def knows_lists(url: str) -> bool:
    """Whether its server says which objects there are; one of the web does not."""
    return not url.startswith(_WEB)


def check_url(path: str) -> str:
    """Give a path or URL back, unless it carries a secret.

    Raises
    ------
    SpecError
        If there is a password or a signature in it. The message does not repeat it.

    Examples
    --------
    >>> check_url("s3://bucket/field.fits")
    's3://bucket/field.fits'
    """
    for part in path.split("::"):
        found = _find_secret(part) if is_remote(part) else ""
        if found:
            raise SpecError(
                f"URL {_without_secrets(part)} carries {found}, which would be kept in stores and logs: "
                "give credentials in the environment or in config files (docs/object-stores.md)"
            )
    return path


def _find_secret(url: str) -> str:
    split = urlsplit(url)
    user, at, _ = split.netloc.rpartition("@")
    if at and (":" in user or split.scheme in _PACKAGES):
        return "a user or password"
    names = [
        name for name, _ in parse_qsl(f"{split.query}&{split.fragment}", keep_blank_values=True)
    ]
    return next((f"a secret ({name})" for name in names if _SECRET.search(name)), "")


def _without_secrets(url: str) -> str:
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"


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
        raise RemoteError(_say_missing(url, url.partition("://")[0], error)) from None
    return system, str(name)


def storage_options(url: str) -> dict[str, Any]:
    """Give what fsspec is told, over and above its own config files."""
    options: dict[str, Any] = {"use_listings_cache": False}  # an old listing hides a new object
    if url.startswith(_WEB):
        options["client_kwargs"] = {"trust_env": True}  # proxies, and credentials of ~/.netrc
    return options


def _say_missing(url: str, protocol: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    package = _PACKAGES.get(protocol)
    mend = f"pip install {package}, or 'fcnpipe[remote]'" if package else "or copy it here"
    return f"{url} cannot be reached: {reason}; {mend}"
