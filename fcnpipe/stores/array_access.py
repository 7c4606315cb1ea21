"""Opening of arrays on disk, and one-line errors for damaged arrays in place of what zarr and its codecs raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import zarr

from fcnpipe.core.errors import FcnpipeError, StoreError, first_line


def open_array(store: Path, name: str) -> zarr.Array[Any]:
    """Open an array of the store in a folder.

    Raises
    ------
    StoreError
        If there is no such array, or its metadata are damaged.
    """
    path = store / name
    try:
        status = (path / "zarr.json").stat()
    except FileNotFoundError:
        raise StoreError(f"{store} has no array {name}") from None
    with convert_metadata_errors(store, name):
        return _open_cached_array(path, (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=256)
def _open_cached_array(path: Path, stamp: tuple[int, int]) -> zarr.Array[Any]:
    # The stamp distinguishes an array from one created later at the same path.
    return zarr.open_array(path, mode="r+", zarr_format=3)


@contextmanager
def convert_metadata_errors(store: Path, name: str) -> Iterator[None]:
    """Raise a StoreError in place of the errors of zarr for damaged metadata."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError(
            f"metadata of {name} in {store} cannot be read: "
            f"restore them with 'fcnpipe verify --repair {store}'"
        ) from None


@contextmanager
def convert_data_errors(place: object, name: str, fix: str) -> Iterator[None]:
    """Raise a StoreError, which ends in ``fix``, in place of all errors of zarr and its codecs.

    Notes
    -----
    A codec raises RuntimeError, ValueError or TypeError for damaged bytes, or MemoryError if they state a
    length of terabytes; a disk raises OSError.
    """
    try:
        yield
    except FcnpipeError:
        raise
    except Exception as error:
        raise StoreError(
            f"{name} in {place} cannot be decoded ({first_line(error)}): {fix}"
        ) from None
