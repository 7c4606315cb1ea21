"""Paths and URLs of files: absolute forms, HDUs in brackets, and refusal of URLs with secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from fcnpipe.core.errors import SpecError

_SECRET_NAME = re.compile(
    r"signature|credential|token|secret|passw|auth|api_?key|accesskey|^(sig|key)$", re.I
)
WEB_SCHEMES = ("http://", "https://")
_KNOWN_SCHEMES = ("s3", "s3a", "gs", "gcs", "http", "https")


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, which fsspec opens."""
    return "://" in path


def can_list(url: str) -> bool:
    """Return whether the server of a URL can list its objects; a web server cannot."""
    return not url.startswith(WEB_SCHEMES)


def split_hdu(path: str) -> tuple[str, str]:
    """Split ``FILE[HDU]``, the notation of CFITSIO, into the file and the HDU.

    The HDU is empty if there is none. An existing file whose name ends with brackets is not split.

    Examples
    --------
    >>> split_hdu("field.fits[SCI,2]"), split_hdu("field.fits")
    (('field.fits', 'SCI,2'), ('field.fits', ''))
    """
    file, bracket, part = path.removesuffix("]").rpartition("[")
    if not (path.endswith("]") and bracket and part) or os.path.exists(path):
        return path, ""
    return file, part


def make_absolute(path: str) -> str:
    """Return an absolute path; an HDU in brackets is kept, and a URL is returned unchanged.

    Examples
    --------
    >>> make_absolute("/data/night/../field.fits[a/../b]")
    '/data/field.fits[a/../b]'
    """
    if is_remote(path):
        return path
    file, part = split_hdu(path)
    return os.path.abspath(os.path.expanduser(file)) + (part and f"[{part}]")


def check_url(path: str) -> str:
    """Return a path or URL unchanged if it contains no secret.

    Raises
    ------
    SpecError
        If it contains a password, a signature or another secret, or a user name in a URL of S3, Google Cloud
        Storage or a web server. The message does not repeat the secret.

    Examples
    --------
    >>> check_url("s3://bucket/field.fits")
    's3://bucket/field.fits'
    """
    for part in path.split("::"):
        found = _find_secret(part) if is_remote(part) else ""
        if found:
            raise SpecError(
                f"URL {_without_secrets(part)} contains {found}, which would be written to stores and logs: "
                "set credentials in the environment or in config files (docs/object-stores.md)"
            )
    return path


def _find_secret(url: str) -> str:
    split = urlsplit(url)
    user, at, _ = split.netloc.rpartition("@")
    if at and (":" in user or split.scheme in _KNOWN_SCHEMES):
        return "a user or password"
    names = [
        name for name, _ in parse_qsl(f"{split.query}&{split.fragment}", keep_blank_values=True)
    ]
    return next((f"a secret ({name})" for name in names if _SECRET_NAME.search(name)), "")


def _without_secrets(url: str) -> str:
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
