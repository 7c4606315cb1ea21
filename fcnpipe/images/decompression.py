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

UNPACKED_FILES = 16
"""Temporary files that a process keeps of packed images."""

_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}


def _peek_packed(opener: Any, path: str, count: int) -> bytes:
    try:
        with open_bytes(path) as source, opener(source) as handle:
            return cast(bytes, handle.read(count))
    except LIBRARY_ERRORS:
        return b""


@dataclass(frozen=True, slots=True)
class FitsFile:
    """A file as it was when it was opened.

    Attributes
    ----------
    path : str
        Absolute path or URL.
    version : (int, int) or Stamp
        Size in bytes and time of change in ns; what the server says for a URL.
    unpacked : str
        Temporary file with the unpacked bytes, written by the process that opened the image;
        empty if the file is not packed.
    """

    path: str
    version: FileVersion
    unpacked: str = ""

    def locate(self) -> str:
        """Give the path of the plain bytes; another machine unpacks its own copy."""
        if not self.unpacked:
            return self.path
        return self.unpacked if os.path.exists(self.unpacked) else _unpack(self.path, self.version)

    @property
    def unpacked_version(self) -> FileVersion:
        """Stamp of the plain bytes."""
        return file_version(self.locate()) if self.unpacked else self.version

    @property
    def size_bytes(self) -> int:
        """Length of the plain bytes."""
        return file_size(self.locate(), self.unpacked_version)


def _describe_file(path: str) -> FitsFile:
    version = file_version(path)
    return FitsFile(path, version, _unpack(path, version) if peek(path, 2) in _OPENERS else "")


_UNPACKING = threading.Lock()
_UNPACKED: OrderedDict[tuple[str, FileVersion, int], str] = OrderedDict()
_HELD: dict[str, int] = {}
"""Temporary file -> handle of its folder, which is locked."""


def _unpack(path: str, version: FileVersion) -> str:
    """Give a temporary file with the unpacked bytes, written once in a process."""
    key = (path, version, os.getpid())
    with _UNPACKING:
        if not os.path.exists(_UNPACKED.get(key, "")):
            _UNPACKED[key] = _write_unpacked(path, version)
        while len(_UNPACKED) > UNPACKED_FILES:
            _remove_folder(_UNPACKED.popitem(last=False)[1], os.getpid())
        return _UNPACKED[key]


def _write_unpacked(path: str, version: FileVersion) -> str:
    folder = tempfile.mkdtemp(prefix="fcnpipe-")
    target = os.path.join(folder, "unpacked.fits")
    _HELD[target] = _hold(folder)
    atexit.register(_remove_folder, target, os.getpid())
    opener = _OPENERS[peek(path, 2)]
    try:
        with (
            open_bytes(path, version) as packed,
            opener(packed) as source,
            open(target, "wb") as sink,
        ):
            shutil.copyfileobj(cast(BinaryIO, source), sink, 1 << 20)
    except LIBRARY_ERRORS as error:
        _remove_folder(target, os.getpid())
        raise reading_error(
            error,
            f"{path} cannot be unpacked to {folder}: {first_line(error)}; check that the file is "
            "whole and the disk has room (TMPDIR names another folder), or unpack it yourself",
        ) from None
    return target


def _hold(folder: str) -> int:
    """Show, as long as this process lives, that a folder is in use."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _remove_folder(file: str, owner: int) -> None:
    if os.getpid() == owner:
        if file in _HELD:
            os.close(_HELD.pop(file))
        shutil.rmtree(os.path.dirname(file), ignore_errors=True)
