"""Temporary decompressed copies of gzip and bzip2 files."""

from __future__ import annotations

import atexit
import bz2
import fcntl
import gzip
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fcnpipe.images.errors import LIBRARY_ERRORS, first_line, reading_error
from fcnpipe.images.file_access import FileVersion, file_size, file_version, open_bytes, peek

MAX_COPIES = 16
"""Maximum number of decompressed copies that a process keeps."""
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
"""First two bytes of a compressed file -> function that opens it."""
_COPIES_LOCK = threading.Lock()
_COPIES: OrderedDict[tuple[str, FileVersion, int], str] = OrderedDict()
"""Path, version and process -> decompressed copy."""
_FOLDER_HANDLES: dict[str, int] = {}
"""Decompressed copy -> handle of its folder, which is locked."""


@dataclass(frozen=True, slots=True)
class DecompressedFile:
    """A file or object, with its decompressed copy if it is a gzip or bzip2 file.

    Attributes
    ----------
    path : str
        Absolute path or URL.
    version : (int, int) or ObjectVersion
        Size in bytes and modification time in ns, or the server's version, when it was opened.
    copy : str
        Temporary file with the decompressed bytes, written by the process that opened the file; empty
        if the file is not compressed.
    """

    path: str
    version: FileVersion
    copy: str = ""

    def content_path(self) -> str:
        """Return the path of the decompressed bytes; a process on another machine writes its own copy."""
        if not self.copy:
            return self.path
        return self.copy if os.path.exists(self.copy) else _decompress(self.path, self.version)

    @property
    def content_version(self) -> FileVersion:
        """Version of the decompressed bytes."""
        return file_version(self.content_path()) if self.copy else self.version

    @property
    def size_bytes(self) -> int:
        """Number of decompressed bytes."""
        return file_size(self.content_path(), self.content_version)


def open_decompressed(path: str) -> DecompressedFile:
    """Return the file at ``path`` with its current version; a compressed file gets a temporary copy."""
    version = file_version(path)
    copy = _decompress(path, version) if peek(path, 2) in _OPENERS else ""
    return DecompressedFile(path, version, copy)


def peek_decompressed(path: str, count: int) -> bytes:
    """Return the first ``count`` decompressed bytes of a file; empty if it cannot be read."""
    start = peek(path, count)
    opener = _OPENERS.get(start[:2])
    if opener is None:
        return start
    try:
        with open_bytes(path) as source, opener(source) as handle:
            return cast(bytes, handle.read(count))
    except LIBRARY_ERRORS:
        return b""


def _decompress(path: str, version: FileVersion) -> str:
    """Return the temporary decompressed copy of a file, which is written once per process."""
    key = (path, version, os.getpid())
    with _COPIES_LOCK:
        if not os.path.exists(_COPIES.get(key, "")):
            _COPIES[key] = _write_copy(path, version)
        while len(_COPIES) > MAX_COPIES:
            _remove_copy(_COPIES.popitem(last=False)[1], os.getpid())
        return _COPIES[key]


def _write_copy(path: str, version: FileVersion) -> str:
    folder = tempfile.mkdtemp(prefix="fcnpipe-")
    target = os.path.join(folder, "unpacked.fits")
    _FOLDER_HANDLES[target] = _lock_folder(folder)
    atexit.register(_remove_copy, target, os.getpid())
    opener = _OPENERS[peek(path, 2)]
    try:
        with (
            open_bytes(path, version) as compressed,
            opener(compressed) as source,
            open(target, "wb") as sink,
        ):
            shutil.copyfileobj(cast(BinaryIO, source), sink, 1 << 20)
    except LIBRARY_ERRORS as error:
        _remove_copy(target, os.getpid())
        raise reading_error(
            error,
            f"{path} cannot be decompressed to {folder}: {first_line(error)}; check that the file is "
            "complete and the disk has space (TMPDIR selects another folder), or decompress it yourself",
        ) from None
    return target


def _lock_folder(folder: str) -> int:
    """Lock a folder while this process lives, so that `fcnpipe.survey.cleanup` keeps it."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _remove_copy(copy: str, owner: int) -> None:
    """Remove a copy and its folder, but only in the process that wrote the copy, not in its forks."""
    if os.getpid() == owner:
        if copy in _FOLDER_HANDLES:
            os.close(_FOLDER_HANDLES.pop(copy))
        shutil.rmtree(os.path.dirname(copy), ignore_errors=True)
