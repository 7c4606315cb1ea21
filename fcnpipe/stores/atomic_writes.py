"""Atomic file writes, and the conversion of operating-system errors into StoreError."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcnpipe.core.errors import StoreError

TEMPORARY_SUFFIX = ".partial"
"""Suffix of a file that is being written; zarr uses the same."""


@contextmanager
def convert_os_errors(path: Path) -> Iterator[None]:
    """Raise a StoreError of one line in place of an OSError.

    Raises
    ------
    StoreError
        In place of any OSError, for example if the disk is full or permission is denied.
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
    """Yield a temporary path that is renamed to ``path`` at the end, or removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link, or a copy on file systems without hard links."""
    with atomic_write(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
