"""Small records that live only while a run does: one npz file each, whole or not there."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.stores.atomic_writes import atomic_write
from fcnpipe.stores.base import Arrays


def put_record(folder: Path, name: str, arrays: Arrays) -> None:
    """Write arrays as ``folder/name.npz``."""
    with atomic_write(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def get_record(
    folder: Path, name: str, only: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Read a record, or ``only`` some of its arrays; KeyError if there is none."""
    path = folder / f"{name}.npz"
    if not path.exists():
        raise KeyError(f"no scratch record {path}")
    with zipfile.ZipFile(path) as file:
        keys = (name.removesuffix(_NPY) for name in file.namelist()) if only is None else only
        return {key: _read_array(file.read(f"{key}{_NPY}")) for key in keys}


_NPY = ".npy"


def _read_array(stored: bytes) -> NDArray[Any]:
    """Give the array of a file as numpy writes it."""
    end = _PREFIX + int.from_bytes(stored[_PREFIX - 2 : _PREFIX], "little")
    shape, by_columns, dtype = _understand(stored[:end])
    values = np.frombuffer(bytearray(stored), dtype, offset=end)
    return values.reshape(shape, order="F" if by_columns else "C")


_PREFIX = 10
"""Bytes before a header: a mark, a version, and the header's length."""


@lru_cache(1024)
def _understand(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Give shape, order and type; records have few headers, each of which takes numpy .1 ms."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header[_PREFIX - 2 :]))


def drop_broken_records(scratch: Path) -> list[tuple[str, str]]:
    """Remove records that do not end as they should; give the folder and name of each."""
    broken = [file for file in scratch.rglob("*.npz") if not zipfile.is_zipfile(file)]
    for file in broken:
        file.unlink()
    return [(file.parent.relative_to(scratch).as_posix(), file.stem) for file in broken]


def list_records(folder: Path) -> list[str]:
    """Give the sorted names of the records in a folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".npz"))
