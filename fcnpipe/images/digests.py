"""SHA-256 digests of image files and of parts of them."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fcnpipe.images.file_access import Version, open_bytes, size_of, stamp
from fcnpipe.remote import Stamp

_READ_BYTES = 1 << 20
_PART_BYTES = 32 << 20


def digest_file(
    path: str, when: Version, extent: tuple[int, int] | None = None, prefix: str = ""
) -> str:
    """Hexadecimal digest of a file or of part of it, from start to stop.

    Notes
    -----
    Of an object, what the server says names its content (ETag or generation) with size and date;
    the content itself where the server says nothing.
    """
    if isinstance(when, Stamp) and when.names_content:
        return new_digest(f"{prefix}{when}{extent}").hexdigest()
    start, stop = extent or (0, None)
    return hash_file(path, start, stop, prefix, when)


def hash_file(
    path: str,
    start: int = 0,
    stop: int | None = None,
    prefix: str = "",
    when: Version | None = None,
) -> str:
    """Hexadecimal SHA-256 of ``prefix`` and of the digests of a file's parts, from start to stop.

    Each part is :data:`_PART_BYTES` long, so that all cores can work on a large file.
    """
    if stop is None:
        stop = size_of(path, stamp(path) if when is None else when)
    digest = new_digest(prefix)
    cuts = range(start, stop, _PART_BYTES)
    ends = [min(cut + _PART_BYTES, stop) for cut in cuts]
    with ThreadPoolExecutor(max(1, min(len(cuts), os.cpu_count() or 1))) as pool:
        for part in pool.map(partial(_hash_part, path, when), cuts, ends):
            digest.update(part)
    return digest.hexdigest()


def _hash_part(path: str, when: Version | None, start: int, stop: int) -> bytes:
    digest = new_digest()
    with open_bytes(path, when) as handle:
        handle.seek(start)
        while start < stop and (block := handle.read(min(stop - start, _READ_BYTES))):
            digest.update(block)
            start += len(block)
    return digest.digest()


def new_digest(prefix: str = "") -> hashlib._Hash:
    """Start a digest: of those without known collisions what CPUs have instructions for."""
    return hashlib.sha256(prefix.encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
