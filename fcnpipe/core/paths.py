"""Names of files: which are URLs, which of these are refused, and which name a part of a file."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from fcnpipe.core.errors import SpecError

_SECRET = re.compile(
    r"signature|credential|token|secret|passw|auth|api_?key|accesskey|^(sig|key)$", re.I
)
WEB_SCHEMES = ("http://", "https://")
_KNOWN = ("s3", "s3a", "gs", "gcs", "http", "https")


def is_remote(path: str) -> bool:
    """Whether a path is a URL for fsspec."""
    return "://" in path


def can_list(url: str) -> bool:
    """Whether its server says which objects there are; one of the web does not."""
    return not url.startswith(WEB_SCHEMES)


def split_part(path: str) -> tuple[str, str]:
    """Give file and HDU of ``FILE[HDU]``, as CFITSIO writes it; a file of that very name wins.

    Examples
    --------
    >>> split_part("field.fits[SCI,2]"), split_part("field.fits")
    (('field.fits', 'SCI,2'), ('field.fits', ''))
    """
    file, bracket, part = path.removesuffix("]").rpartition("[")
    if not (path.endswith("]") and bracket and part) or os.path.exists(path):
        return path, ""
    return file, part


def make_absolute(path: str) -> str:
    """Give the path, or URL, that means the same in any folder; the part of the file is kept as it is.

    Examples
    --------
    >>> make_absolute("/data/night/../field.fits[a/../b]")
    '/data/field.fits[a/../b]'
    """
    if is_remote(path):
        return path
    file, part = split_part(path)
    return os.path.abspath(os.path.expanduser(file)) + (part and f"[{part}]")


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
    if at and (":" in user or split.scheme in _KNOWN):
        return "a user or password"
    names = [
        name for name, _ in parse_qsl(f"{split.query}&{split.fragment}", keep_blank_values=True)
    ]
    return next((f"a secret ({name})" for name in names if _SECRET.search(name)), "")


def _without_secrets(url: str) -> str:
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
