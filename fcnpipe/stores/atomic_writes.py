"""Files that appear whole or not at all, and what the file system refuses."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcnpipe.core.errors import StoreError

TEMPORARY = ".partial"
"""Suffix of a file that is being written; zarr uses the same."""


@contextmanager
def convert_os_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one clear line.

    Raises
    ------
    StoreError
        Disk full, no permission, a file where a folder should be, ...
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot write {path}: {reason}; make room or choose another output, "
            "then run the same command again"
        ) from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` at the end, or vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
