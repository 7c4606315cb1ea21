"""Find and remove the leftovers of killed runs in a folder.

=========  =================================================================  ==============================
kind       description                                                        action
=========  =================================================================  ==============================
partial    OUT.zarr.partial of a run that was not resumed                     remove, with its report
finished   OUT.zarr.partial of a complete run that was not renamed            rename to OUT.zarr
replaced   .OUT.zarr.replaced, an old result after its replacement            remove, if OUT.zarr exists
building   OUT.zarr.partial.HEX.new, a store whose creation was interrupted   remove
catalogue  OUT.parquet.partial without a store                                remove
claim      OUT.zarr.claim of a run without other leftovers                    remove, and release its URL
temporary  an unfinished file of an atomic write, or a decompressed image     remove
lock       watch-*.lock that no process holds                                 remove
=========  =================================================================  ==============================

A store that a run has locked is kept, with its decompressed images and its claim. Leftovers that have changed within a
given time are kept, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from fcnpipe.core.errors import InputError, StoreError
from fcnpipe.remote import uploads
from fcnpipe.stores.lifecycle import (
    CLAIM_SUFFIX,
    finish_publishing,
    lock_output,
    read_attributes,
    remove_partial,
)
from fcnpipe.stores.paths import final_path, partial_path
from fcnpipe.survey.incoming_files import exclusive_lock

UNLOCKED_KINDS = frozenset({"building", "catalogue", "temporary"})
"""Kinds of files that a running process may have for a short time without a lock."""
MIN_UNLOCKED_SECONDS = 3600.0
"""Minimum age of leftovers of these kinds, s, even if a lower age is requested."""

_BUILDING = re.compile(r".+\.partial\.[0-9a-f]{32}\.new")
_REPLACED = re.compile(r"\.(.+)\.replaced")
_TEMPORARY = re.compile(r".+\.[0-9a-f]{32}\.partial|\.[0-9a-f]{32}\..+")
_LOCK = re.compile(r"watch-.+\.lock")
_DECOMPRESSION_FOLDER = re.compile(r"fcnpipe-.+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that a killed run has left behind.

    Attributes
    ----------
    kind : str
        One of the kinds in the table of this module.
    path : str
        Path of the file or folder.
    age_seconds : float
        Time since the last change of the path or of any file in it, s.
    size_bytes : int
        Size on disk, bytes.
    action : str
        ``remove``; ``finish`` to publish a complete result; ``keep`` if a run has locked it or it is the only copy.
    reason : str
        Reason of the action.
    """

    kind: str
    path: str
    age_seconds: float
    size_bytes: int
    action: str
    reason: str


def find_leftovers(folder: str, age_seconds: float) -> list[Leftover]:
    """Return the leftovers in a folder and its subfolders that have at least a given age; nothing is changed.

    Parameters
    ----------
    folder : str
        Folder with stores.
    age_seconds : float
        Minimum time since the last change, s.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: choose a folder with stores")
    now = time.time()
    found = (_measure(kind, path, now) for kind, path in _find_candidates(Path(folder)))
    return [_decide(one) for one in found if one.age_seconds >= _min_age(one.kind, age_seconds)]


def _min_age(kind: str, age_seconds: float) -> float:
    return max(age_seconds, MIN_UNLOCKED_SECONDS) if kind in UNLOCKED_KINDS else age_seconds


def clean_up(leftover: Leftover) -> None:
    """Remove or finish a leftover, unless a run has locked it in the meantime.

    Raises
    ------
    OSError
        If it is locked, or cannot be removed.
    """
    path = Path(leftover.path)
    with ExitStack() as stack:
        _lock(leftover.kind, path, stack)
        if leftover.action == "finish":
            finish_publishing(_store_of_catalogue(path) if leftover.kind == "catalogue" else path)
        elif leftover.kind == "claim":
            _release_claim(path)
        elif leftover.kind == "partial":
            remove_partial(path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lock(kind: str, path: Path, stack: ExitStack) -> None:
    """Acquire the locks that a running process would hold; raise StoreError if one holds them."""
    if kind == "lock":
        stack.enter_context(exclusive_lock(path))
        return
    claim = final_path(path).with_name(final_path(path).name + CLAIM_SUFFIX)
    for one in (claim, path):
        if one.exists():
            stack.enter_context(lock_output(one))


def _release_claim(claim: Path) -> None:
    """Remove a claim, and its marker behind the URL unless another run owns the marker."""
    token, _, url = claim.read_text().strip().partition("\n")
    owner = json.loads((uploads.get(f"{url}.partial") if url else None) or b"{}")
    if token and owner.get("token") == token:
        uploads.remove([f"{url}.partial"])
    claim.unlink()


def _find_candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield kind and path of each candidate, without descending into stores."""
    for place, folders, files in os.walk(folder):
        for name in list(folders):
            path = Path(place, name)
            kind = _folder_kind(path)
            if kind or (path / "zarr.json").exists():
                folders.remove(name)
            if kind:
                yield kind, path
        for name in files:
            if kind := _file_kind(Path(place, name)):
                yield kind, Path(place, name)


def _folder_kind(path: Path) -> str:
    if _BUILDING.fullmatch(path.name):
        return "building"
    if _DECOMPRESSION_FOLDER.fullmatch(path.name):
        return "temporary" if os.listdir(path) == ["unpacked.fits"] else ""
    attributes = read_attributes(path)
    if "run_key" not in attributes:
        return ""
    if _REPLACED.fullmatch(path.name):
        return "replaced"
    if path.name.endswith(".partial"):
        return "finished" if attributes.get("status") == "complete" else "partial"
    return ""


def _file_kind(path: Path) -> str:
    if _TEMPORARY.fullmatch(path.name):
        return "temporary"
    if path.name.endswith(".parquet.partial"):
        return "" if _store_of_catalogue(path).exists() else "catalogue"
    if path.name.endswith(f".zarr{CLAIM_SUFFIX}"):
        store = path.with_name(path.name.removesuffix(CLAIM_SUFFIX))
        return "" if store.exists() or partial_path(store).exists() else "claim"
    return "lock" if _LOCK.fullmatch(path.name) else ""


def _store_of_catalogue(catalogue: Path) -> Path:
    """Return OUT.zarr.partial, or OUT.partial, for OUT.parquet.partial."""
    stem = catalogue.name.removesuffix(".parquet.partial")
    plain = catalogue.with_name(f"{stem}.partial")
    has_plain_name = plain.exists() or (plain.with_name(stem) / "zarr.json").exists()
    return plain if has_plain_name else catalogue.with_name(f"{stem}.zarr.partial")


def _measure(kind: str, path: Path, now: float) -> Leftover:
    """Measure age and size; the age is 0 if a file vanishes in the meantime, negative for times in the future."""
    newest, size = 0.0, 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        try:
            status = file.lstat()
        except OSError:
            newest = now
            continue
        newest, size = max(newest, status.st_mtime), size + status.st_size
    return Leftover(kind, str(path), now - newest, size, "remove", _REASONS[kind])


_REASONS = {
    "partial": "no run has locked it",
    "finished": "complete, but not renamed",
    "replaced": "its replacement exists",
    "building": "its creation was interrupted",
    "catalogue": "its store is missing",
    "claim": "nothing else is left of its run",
    "temporary": "its process has ended",
    "lock": "no process holds it",
}


def _decide(leftover: Leftover) -> Leftover:
    """Decide the action: keep locked leftovers and only copies, finish complete results, remove others."""
    path = Path(leftover.path)
    if leftover.kind == "replaced":
        out = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        return (
            leftover
            if out.exists()
            else replace(leftover, action="keep", reason=f"{out.name} does not exist")
        )
    if leftover.kind == "catalogue" and "run_key" in read_attributes(
        final_path(_store_of_catalogue(path))
    ):
        return replace(leftover, action="finish", reason="its store is published already")
    try:
        with ExitStack() as stack:
            _lock(leftover.kind, path, stack)
    except StoreError as error:
        return replace(leftover, action="keep", reason=str(error))
    if leftover.kind == "finished":
        return replace(
            leftover, action="finish", reason=f"to be renamed to {final_path(path).name}"
        )
    return leftover
