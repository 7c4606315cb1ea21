"""SHA-256 digests of image files and of parts of them."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fcnpipe.images.file_access import FileVersion, file_size, file_version, open_bytes
from fcnpipe.remote import ObjectVersion

_READ_BYTES = 1 << 20
_PART_BYTES = 32 << 20


def digest_file(
    path: str, version: FileVersion, extent: tuple[int, int] | None = None, prefix: str = ""
) -> str:
    """Return the hexadecimal digest that identifies the content of a file, or of part of it.

    Parameters
    ----------
    path, version
        File or object, and its version.
    extent : (int, int), optional
        First byte, and the byte after the last one; the whole file by default.
    prefix : str
        Text that the digest includes, before the content.

    Notes
    -----
    For an object whose server identifies its content (ETag or generation), the digest is that of the
    server's version and nothing is read. Otherwise it is that of the content, as in :func:`hash_file`.
    """
    if isinstance(version, ObjectVersion) and version.identifies_content:
        return new_digest(f"{prefix}{version}{extent}").hexdigest()
    start, stop = extent or (0, None)
    return hash_file(path, start, stop, prefix, version)


def hash_file(
    path: str,
    start: int = 0,
    stop: int | None = None,
    prefix: str = "",
    version: FileVersion | None = None,
) -> str:
    """Return the hexadecimal SHA-256 of a file's content from ``start`` to ``stop``.

    Parameters
    ----------
    path : str
        Local path or URL.
    start, stop : int
        First byte, and the byte after the last one; the whole file by default.
    prefix : str
        Text that the digest includes, before the content.
    version : FileVersion, optional
        Version of an object behind a URL; the current one by default.

    Notes
    -----
    It is the SHA-256 of ``prefix`` followed by the SHA-256 of each part of :data:`_PART_BYTES` bytes, so
    that all cores can hash a large file.
    """
    if stop is None:
        stop = file_size(path, file_version(path) if version is None else version)
    digest = new_digest(prefix)
    starts = range(start, stop, _PART_BYTES)
    stops = [min(part_start + _PART_BYTES, stop) for part_start in starts]
    with ThreadPoolExecutor(max(1, min(len(starts), os.cpu_count() or 1))) as pool:
        for part in pool.map(partial(_hash_part, path, version), starts, stops):
            digest.update(part)
    return digest.hexdigest()


def _hash_part(path: str, version: FileVersion | None, start: int, stop: int) -> bytes:
    digest = new_digest()
    with open_bytes(path, version) as handle:
        handle.seek(start)
        while start < stop and (block := handle.read(min(stop - start, _READ_BYTES))):
            digest.update(block)
            start += len(block)
    return digest.digest()


def new_digest(prefix: str = "") -> hashlib._Hash:
    """Return a new SHA-256 digest, updated with ``prefix``.

    Notes
    -----
    SHA-256 has no known collisions, and CPUs have instructions for it.
    """
    return hashlib.sha256(prefix.encode())


def hash_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()
