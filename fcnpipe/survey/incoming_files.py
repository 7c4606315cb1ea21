"""Files that arrive in a folder or below a URL: detection of new, complete and already known files.

::

    list -- new? --> wait --> list again -- unchanged? --> complete? --> digest -- known? --> a copy
             no: known          changed, or too short: ignored                   new: to be processed

A file is stable if it has not changed between two listings; no clocks are compared. The registry of known files is
one small file, which is replaced atomically. If it is lost no results are lost, since each finished store contains
the digest of its input.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from astropy.io import fits

from fcnpipe.core.errors import InputError, StoreError
from fcnpipe.export.base import atomic_write
from fcnpipe.images.digests import hash_file
from fcnpipe.images.file_access import open_bytes
from fcnpipe.remote import connect, find_objects, is_remote
from fcnpipe.survey.image_list import safe_stem, short_digest

PATTERNS = ("*.fits", "*.fits.gz", "*.fits.fz", "*.fits.bz2", "*.fit", "*.fts", "*.fz")
"""Patterns of the names of files to process; case is ignored."""
TEMPORARY_SUFFIXES = (
    ".part",
    ".partial",
    ".tmp",
    ".temp",
    ".crdownload",
    ".download",
    ".filepart",
    "~",
)
"""Suffixes of names that programs use for files that are being transferred."""
CHANGE_KEYS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")
"""Keys of the modification time, or of an equivalent, in different file systems; the first that exists is used."""
BLOCK_BYTES = 2880
"""Size of a FITS block; headers and data are padded to a multiple of it."""
MAX_HEADER_BLOCKS = 5000
"""Maximum length of a header that is read, blocks (14 MB)."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size and modification time of a file, by which a change of the file is detected.

    Attributes
    ----------
    size : int
        Size, bytes.
    changed : str
        Modification time, or an equivalent, as reported by the file system.
    """

    size: int
    changed: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Entry of the registry for one file.

    Attributes
    ----------
    stamp : FileStamp
        Stamp at the time of the digest.
    digest : str
        Digest of the content.
    out : str
        Name of its store; for a copy, of the store of the original.
    status : str
        ``begun`` before and during processing, ``done``, ``failed``, or ``copy`` of another file.
    attempts : int
        Number of times that processing of this content was started.
    replaced : bool
        Whether ``out`` may contain the result of an earlier content of the file.
    error : str
        Reason of the failure, one line.
    """

    stamp: FileStamp
    digest: str
    out: str
    status: str = "begun"
    attempts: int = 0
    replaced: bool = False
    error: str = ""


FileRegistry = dict[str, FileRecord]
"""Known files by path or URL."""


# --- listing --------------------------------------------------------------------------------------


def list_files(
    source: str, patterns: Sequence[str] = PATTERNS, recursive: bool = False
) -> dict[str, FileStamp]:
    """Return the files in a folder or below a URL whose names match, without files that are being transferred.

    Parameters
    ----------
    source : str
        Folder or URL.
    patterns : sequence of str
        Patterns of file names, as in a shell.
    recursive : bool
        Whether to include subfolders.

    Raises
    ------
    InputError
        If there is no such folder.
    RemoteError
        If a server does not answer.
    """
    system, root = connect(source)
    if not is_remote(source) and not os.path.isdir(root):
        raise InputError(f"{source} is not a folder: create it, or choose another")
    folder = (system.unstrip_protocol(root) if is_remote(source) else root).rstrip("/")
    return {
        f"{folder}/{name}": _read_stamp(facts)
        for name, facts in find_objects(source, recursive).items()
        if _is_wanted(name, patterns)
    }


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    parts = name.lower().split("/")
    hidden = any(part.startswith(".") for part in parts)
    matches = any(fnmatch(parts[-1], pattern.lower()) for pattern in patterns)
    return matches and not hidden and not parts[-1].endswith(TEMPORARY_SUFFIXES)


def _read_stamp(facts: Mapping[str, Any]) -> FileStamp:
    changed = next((facts[name] for name in CHANGE_KEYS if facts.get(name) is not None), "")
    return FileStamp(int(facts.get("size") or 0), str(changed))


def select_pending_files(
    found: Mapping[str, FileStamp], registry: FileRegistry, attempts: int
) -> list[str]:
    """Return the files that are new or changed, or that failed fewer than ``attempts`` times.

    Parameters
    ----------
    found : mapping
        Stamps of the listed files.
    registry : dict
        Registry of known files.
    attempts : int
        Maximum number of attempts for the same content.
    """
    originals = {known.digest for known in registry.values() if known.status != "copy"}

    def is_settled(path: str, stamp: FileStamp) -> bool:
        known = registry.get(path)
        if known is None or known.stamp != stamp:
            return False
        if known.status == "copy":  # pending again if its original has changed
            return known.digest in originals
        return known.status == "done" or known.attempts >= attempts

    return [path for path, stamp in found.items() if not is_settled(path, stamp)]


# --- completeness ---------------------------------------------------------------------------------


def describe_missing(path: str, size: int) -> str:
    """Describe what is missing from a file; empty if it is complete or not an uncompressed FITS file.

    A file whose headers cannot be understood counts as complete, so that its reader states the fault.

    Parameters
    ----------
    path : str
        Path or URL of the file; only its headers are read.
    size : int
        Current size, bytes.
    """
    if not size:
        return "empty"
    with open_bytes(path) as file:
        if not b"SIMPLE".startswith(file.read(6)):
            return ""
        needed = _expected_fits_size(file, size)
    return f"{needed - size} bytes are missing" if needed > size else ""


def _expected_fits_size(file: BinaryIO, size: int) -> int:
    """Return the size of a FITS file according to the headers that are present, bytes."""
    start, needed = 0, 0
    while start < size:
        file.seek(start)
        text = _read_header(file)
        if text is None:
            return size + BLOCK_BYTES  # the file ends within a header
        if start and not text.startswith(b"XTENSION"):
            return needed  # the remaining bytes are not an HDU
        length = _data_size(text)
        if length is None:
            return needed
        needed = start + len(text) + length
        start = -(-needed // BLOCK_BYTES) * BLOCK_BYTES
    return needed


def _read_header(file: BinaryIO) -> bytes | None:
    """Return the blocks up to END, or the first block if it is not a header; None if END is missing."""
    text = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = file.read(BLOCK_BYTES)
        text += block
        if not text.startswith((b"SIMPLE", b"XTENSION")) and len(text) >= len(b"XTENSION"):
            return text
        if len(block) < BLOCK_BYTES:
            return None
        if any(block[i : i + 8] == b"END     " for i in range(0, BLOCK_BYTES, 80)):
            return text
    return None


def _data_size(text: bytes) -> int | None:
    """Return the size of the data of an HDU, bytes; None if its header cannot be understood."""
    try:
        header = fits.Header.fromstring(text)
        axes = [int(header[f"NAXIS{i + 1}"]) for i in range(int(header["NAXIS"]))]
        groups, extra = int(header.get("GCOUNT", 1)), int(header.get("PCOUNT", 0))
        bits = abs(int(header["BITPIX"]))
        if axes and axes[0] == 0 and header.get("GROUPS"):
            axes = axes[1:]
    except (
        Exception
    ):  # astropy raises errors of many types; the reader of the image states the fault
        return None
    if min((groups, extra, *axes)) < 0:
        return None
    return bits // 8 * groups * (extra + (math.prod(axes) if axes else 0))


# --- registry -------------------------------------------------------------------------------------


def register_file(path: str, stamp: FileStamp, registry: FileRegistry) -> FileRecord:
    """Compute the digest of a file and return its new entry for the registry, which is not changed.

    Parameters
    ----------
    path : str
        Path or URL of the file.
    stamp : FileStamp
        Stamp of the file in the listing.
    registry : dict
        Registry of known files.

    Returns
    -------
    FileRecord
        With status ``begun`` if the file is to be processed, ``copy`` if another file has the same content, and
        the earlier status if only the stamp has changed.
    """
    digest, before = hash_file(path), registry.get(path)
    if before is not None and before.digest == digest and before.status != "copy":
        return replace(before, stamp=stamp)
    original = _find_original(path, digest, registry)
    if original is not None:
        return FileRecord(stamp, digest, original.out, "copy")
    has_store = before is not None and before.status != "copy"
    out = before.out if before is not None and has_store else _choose_out(path, digest, registry)
    return FileRecord(stamp, digest, out, replaced=has_store)


def _find_original(path: str, digest: str, registry: FileRegistry) -> FileRecord | None:
    for other, known in registry.items():
        if other != path and known.digest == digest and known.status != "copy":
            return known
    return None


def _choose_out(path: str, digest: str, registry: FileRegistry) -> str:
    """Return a store name that no other file has: the stem of the file, with a short digest if it is taken."""
    taken = {
        known.out for other, known in registry.items() if other != path and known.status != "copy"
    }
    stem = safe_stem(path)
    return (
        f"{stem}-{short_digest(digest + path)}.zarr" if f"{stem}.zarr" in taken else f"{stem}.zarr"
    )


def load_registry(path: Path) -> FileRegistry:
    """Read the registry; empty if its file does not exist.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    try:
        found = json.loads(path.read_bytes())["files"]
        return {
            name: FileRecord(**(item | {"stamp": FileStamp(**item["stamp"])}))
            for name, item in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} cannot be read ({type(error).__name__}): move it away, finished stores are recognized without it"
        ) from None


def save_registry(path: Path, registry: FileRegistry) -> None:
    """Write the registry atomically, and flush it to disk."""
    with atomic_write(path) as temporary, temporary.open("w") as file:
        json.dump(
            {"files": {name: asdict(known) for name, known in registry.items()}}, file, indent=1
        )
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock within the context; the lock of a killed process is released.

    Parameters
    ----------
    path : Path
        Lock file. It is empty and may be removed while the lock is not held.

    Raises
    ------
    StoreError
        If another process holds the lock.
    """
    handle = _open_lock(path)
    try:
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise StoreError(f"{path} is locked by another run: wait until it ends") from None
        except OSError:
            return handle  # a file system without locks
        if _is_same_file(path, handle):
            return handle
        os.close(handle)  # another process has removed the file in the meantime


def _is_same_file(path: Path, handle: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
