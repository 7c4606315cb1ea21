"""Scratch records: small sets of named arrays, one npz file each, kept while a run lasts."""

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

from fcnpipe.core.errors import StoreError, first_line
from fcnpipe.stores.atomic_writes import atomic_write
from fcnpipe.stores.base import Arrays

_NPY_SUFFIX = ".npy"
_PREFIX_BYTES = 10
"""Bytes before the header of an npy file: magic string, version, length of the header."""

_COUNT_PLACE = -12
"""Place of the number of arrays, counted from the end of an npz file."""


def write_record(folder: Path, name: str, arrays: Arrays) -> None:
    """Write arrays as ``folder/name.npz``, atomically."""
    with atomic_write(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_record(
    folder: Path, name: str, only: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Read the arrays of a record that ``only`` names; all by default.

    Raises
    ------
    KeyError
        If there is no such record, or no such array in it.
    StoreError
        If the record is damaged.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        raise KeyError(f"no scratch record {path}")
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as file:
            names = [n.removesuffix(_NPY_SUFFIX) for n in file.namelist()]
            stream.seek(_COUNT_PLACE, os.SEEK_END)
            if len(names) != int.from_bytes(stream.read(2), "little"):
                raise zipfile.BadZipFile("its list of arrays is not whole")  # zipfile ignores that
            wanted = names if only is None else [name for name in only if name in names]
            arrays = {key: _decode_npy(file.read(f"{key}{_NPY_SUFFIX}")) for key in wanted}
    except Exception as error:  # zipfile, zlib and numpy raise anything for damaged bytes
        raise StoreError(
            f"scratch record {path} is damaged ({first_line(error)}): "
            "run the same command again, which computes it again"
        ) from error
    if missing := set(only or ()) - set(arrays):
        raise KeyError(f"no {', '.join(sorted(missing))} in {path}")
    return arrays


def _decode_npy(stored: bytes) -> NDArray[Any]:
    end = _PREFIX_BYTES + int.from_bytes(stored[_PREFIX_BYTES - 2 : _PREFIX_BYTES], "little")
    shape, fortran_order, dtype = _parse_header(stored[:end])
    values = np.frombuffer(bytearray(stored), dtype, offset=end)
    return values.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(1024)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and dtype; cached, since numpy takes 0.1 ms and headers repeat."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(header[_PREFIX_BYTES - 2 :]))


def remove_damaged_records(scratch: Path) -> list[tuple[str, str]]:
    """Remove records that cannot be read, and return the folder and the name of each.

    Notes
    -----
    All records are read as a whole, because a changed byte shows in the checksum of its array only.
    """
    damaged = [file for file in scratch.rglob("*.npz") if not _is_readable(file)]
    for file in damaged:
        file.unlink()
    return [(file.parent.relative_to(scratch).as_posix(), file.stem) for file in damaged]


def _is_readable(path: Path) -> bool:
    try:
        read_record(path.parent, path.stem)
    except (StoreError, KeyError):
        return False
    return True


def list_records(folder: Path) -> list[str]:
    """Return the sorted names of the records in a folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".npz"))
