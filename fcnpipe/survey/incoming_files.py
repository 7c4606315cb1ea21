"""Files that arrive in a folder or below a URL: which are new, which are whole, which are known.

::

    look -- new? --> wait --> look again -- unchanged? --> whole? --> digest -- known? --> a copy
             no: known          changed, or too short: left alone              new: to be done

No clock is asked: a file is settled if it has not changed between two looks. What is known is kept
in one small file, which is replaced whole; without it nothing is lost, since a finished store knows
what it was made from.
"""

from __future__ import annotations

import fcntl
import json
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
"""Names of the files to look for, in any case."""
TEMPORARY = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".filepart", "~")
"""Ends of the names that programs give to files on their way."""
CHANGED = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")
"""What file systems call the time of the last change, or what stands for it; the first counts."""
BLOCK_BYTES = 2880
"""FITS headers and data are whole blocks of it."""
HEADER_BLOCKS = 5000
"""Longest header that is read, blocks: 14 MB."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file without its content: as long as this stays, so has the file.

    Attributes
    ----------
    size : int
        Bytes.
    changed : str
        When, as its file system says it.
    """

    size: int
    changed: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of one file.

    Attributes
    ----------
    stamp : Stamp
        When its digest was taken.
    digest : str
        Of its content.
    out : str
        Name of its store, or of that of the file of which it is a copy.
    status : str
        ``begun``, ``done``, ``failed``, or ``copy``.
    attempts : int
        Times that it was begun with this content.
    replaced : bool
        Whether ``out`` may hold what was made of another content.
    error : str
        Why it failed, one line.
    """

    stamp: FileStamp
    digest: str
    out: str
    status: str = "begun"
    attempts: int = 0
    replaced: bool = False
    error: str = ""


FileRegistry = dict[str, FileRecord]
"""What is known, by path or URL."""


# --- looking --------------------------------------------------------------------------------------


def list_files(
    source: str, patterns: Sequence[str] = PATTERNS, recursive: bool = False
) -> dict[str, FileStamp]:
    """Give the files in a folder or below a URL that are not still on their way by their name.

    Parameters
    ----------
    source : str
        Folder or URL.
    patterns : sequence of str
        Of names, as in a shell.
    recursive : bool
        Whether to look into folders too.

    Raises
    ------
    InputError
        If there is no such folder.
    RemoteError
        If a server does not answer.
    """
    system, root = connect(source)
    if not is_remote(source) and not os.path.isdir(root):
        raise InputError(f"{source} is no folder: make it, or name another")
    folder = (system.unstrip_protocol(root) if is_remote(source) else root).rstrip("/")
    return {
        f"{folder}/{name}": _stamp(facts)
        for name, facts in find_objects(source, recursive).items()
        if _is_wanted(name, patterns)
    }


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    parts = name.lower().split("/")
    hidden = any(part.startswith(".") for part in parts)
    matches = any(fnmatch(parts[-1], pattern.lower()) for pattern in patterns)
    return matches and not hidden and not parts[-1].endswith(TEMPORARY)


def _stamp(facts: Mapping[str, Any]) -> FileStamp:
    changed = next((facts[name] for name in CHANGED if facts.get(name) is not None), "")
    return FileStamp(int(facts.get("size") or 0), str(changed))


def select_pending_files(
    found: Mapping[str, FileStamp], log: FileRegistry, attempts: int
) -> list[str]:
    """Give the files that are new, have changed, or are worth another attempt."""
    made = {known.digest for known in log.values() if known.status != "copy"}

    def is_settled(path: str, stamp: FileStamp) -> bool:
        known = log.get(path)
        if known is None or known.stamp != stamp:
            return False
        if known.status == "copy":  # unless its original has become another
            return known.digest in made
        return known.status == "done" or known.attempts >= attempts

    return [path for path, stamp in found.items() if not is_settled(path, stamp)]


# --- whole or not ---------------------------------------------------------------------------------


def describe_missing(path: str, size: int) -> str:
    """Say what a file lacks; nothing if it is whole, or no plain FITS file and so nobody knows.

    Parameters
    ----------
    path : str
        File or URL; only its headers are read.
    size : int
        Bytes that are there.
    """
    if not size:
        return "empty"
    with open_bytes(path) as file:
        if not b"SIMPLE".startswith(file.read(6)):
            return ""
        needed = _measure_fits(file, size)
    return f"{needed - size} bytes are missing" if needed > size else ""


def _measure_fits(file: BinaryIO, size: int) -> int:
    """Give the bytes that the headers of a FITS file promise, as far as they are there."""
    start, needed = 0, 0
    while start < size:
        file.seek(start)
        text = _read_header(file)
        if text is None:
            return size + BLOCK_BYTES  # it ends within a header
        if start and not text.startswith(b"XTENSION"):
            return needed  # whatever follows, it is no HDU
        data = start + len(text)
        needed = data + _count_data(fits.Header.fromstring(text))
        start = -(-needed // BLOCK_BYTES) * BLOCK_BYTES
    return needed


def _read_header(file: BinaryIO) -> bytes | None:
    """Give the blocks up to END, or only the first if it is no header; None if END is missing."""
    text = b""
    for _ in range(HEADER_BLOCKS):
        block = file.read(BLOCK_BYTES)
        text += block
        if not text.startswith((b"SIMPLE", b"XTENSION")) and len(text) >= len(b"XTENSION"):
            return text
        if len(block) < BLOCK_BYTES:
            return None
        if any(block[i : i + 8] == b"END     " for i in range(0, BLOCK_BYTES, 80)):
            return text
    return None


def _count_data(header: fits.Header) -> int:
    axes = [int(header[f"NAXIS{i + 1}"]) for i in range(int(header["NAXIS"]))]
    if axes and axes[0] == 0 and header.get("GROUPS"):
        axes = axes[1:]
    count = 1 if axes else 0
    for length in axes:
        count *= length
    values = int(header.get("GCOUNT", 1)) * (int(header.get("PCOUNT", 0)) + count)
    return abs(int(header["BITPIX"])) // 8 * values


# --- known or not ---------------------------------------------------------------------------------


def register_file(path: str, stamp: FileStamp, log: FileRegistry) -> FileRecord:
    """Take the digest of a file and give what is then known of it.

    Returns
    -------
    Known
        ``begun``: to be done; ``copy``: another file of the log has this content; ``done``: it has
        been done already, only its time of change is new.
    """
    digest, before = hash_file(path), log.get(path)
    if before is not None and before.digest == digest and before.status != "copy":
        return replace(before, stamp=stamp)
    original = _find_original(path, digest, log)
    if original is not None:
        return FileRecord(stamp, digest, original.out, "copy")
    own = before is not None and before.status != "copy"
    out = before.out if before is not None and own else _choose_out(path, digest, log)
    return FileRecord(stamp, digest, out, replaced=own)


def _find_original(path: str, digest: str, log: FileRegistry) -> FileRecord | None:
    for other, known in log.items():
        if other != path and known.digest == digest and known.status != "copy":
            return known
    return None


def _choose_out(path: str, digest: str, log: FileRegistry) -> str:
    """Give a store that no other file has: named as the file, else with a part of the digest."""
    taken = {known.out for other, known in log.items() if other != path and known.status != "copy"}
    stem = safe_stem(path)
    return (
        f"{stem}-{short_digest(digest + path)}.zarr" if f"{stem}.zarr" in taken else f"{stem}.zarr"
    )


def load_registry(path: Path) -> FileRegistry:
    """Read what is known; nothing if there is no file yet.

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
            f"{path} cannot be read ({type(error).__name__}): move it away, finished stores are found again"
        ) from None


def save_registry(path: Path, log: FileRegistry) -> None:
    """Write what is known, whole or not at all, and on the disk."""
    with atomic_write(path) as temporary, temporary.open("w") as file:
        json.dump({"files": {name: asdict(known) for name, known in log.items()}}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Keep others from the same work; who is killed lets go.

    Parameters
    ----------
    path : Path
        Of the lock, an empty file that may be removed while nobody holds it.

    Raises
    ------
    StoreError
        If somebody is at it.
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
            raise StoreError(f"{path} is held by another run: one at a time; wait for it") from None
        except OSError:
            return handle  # a file system without locks: nobody can be kept away
        if _is_there(path, handle):
            return handle
        os.close(handle)  # somebody removed it meanwhile


def _is_there(path: Path, handle: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
