"""What killed runs have left in a folder, and how it is cleared.

=========  =========================================================  =======================
kind       what                                                       what is done
=========  =========================================================  =======================
partial    OUT.zarr.partial of a run that nobody takes up             remove
finished   OUT.zarr.partial that only wants its name                  give it its name
replaced   .OUT.zarr.replaced, an old result whose successor is there  remove
building   OUT.zarr.partial.HEX.new, a store that was never begun     remove
catalogue  OUT.parquet.partial without a store to go with             remove
temporary  a file that was being written, an image that was unpacked  remove
lock       watch-*.lock that nobody holds                             remove
=========  =========================================================  =======================

A store that a run holds is kept, and so is all that has changed within an age.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fcnpipe.arrivals import alone
from fcnpipe.errors import InputError, StoreError
from fcnpipe.stores.lifecycle import final_path, finish_publishing, hold, read_attributes

_BUILDING = re.compile(r".+\.partial\.[0-9a-f]{32}\.new")
_REPLACED = re.compile(r"\.(.+)\.replaced")
_TEMPORARY = re.compile(r".+\.[0-9a-f]{32}\.partial|\.[0-9a-f]{32}\..+")
_LOCK = re.compile(r"watch-.+\.lock")
_UNPACKED = re.compile(r"fcnpipe-.+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a killed run has left.

    Attributes
    ----------
    kind : str
        See the table of this module.
    path : str
        Where it lies.
    age_seconds : float
        Since anything in it has changed.
    size_bytes : int
        What it takes.
    action : str
        ``remove``; ``finish``; ``keep``: a run holds it, or it is the only copy.
    reason : str
        Why.
    """

    kind: str
    path: str
    age_seconds: float
    size_bytes: int
    action: str
    reason: str


def find_leftovers(folder: str, age_seconds: float) -> list[Leftover]:
    """Give what is older than an age in a folder and those below it; nothing is changed.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder: name one where stores lie")
    now = time.time()
    found = (_weigh(kind, path, now) for kind, path in _walk(Path(folder)))
    return [_judge(one) for one in found if one.age_seconds >= age_seconds]


def clear(leftover: Leftover) -> None:
    """Do what is to be done with a leftover, unless a run has taken it up meanwhile.

    Raises
    ------
    OSError
        If it is held, or cannot be removed.
    """
    path = Path(leftover.path)
    with ExitStack() as stack:
        if leftover.kind in ("partial", "finished"):
            stack.enter_context(hold(path))
        elif leftover.kind == "lock":
            stack.enter_context(alone(path))
        if leftover.action == "finish":
            finish_publishing(path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Give kind and path of each candidate; never look into a store."""
    for place, folders, files in os.walk(folder):
        for name in list(folders):
            path = Path(place, name)
            kind = _kind_of_folder(path)
            if kind or (path / "zarr.json").exists():
                folders.remove(name)
            if kind:
                yield kind, path
        for name in files:
            if kind := _kind_of_file(Path(place, name)):
                yield kind, Path(place, name)


def _kind_of_folder(path: Path) -> str:
    if _BUILDING.fullmatch(path.name):
        return "building"
    if _UNPACKED.fullmatch(path.name):
        return "temporary" if os.listdir(path) == ["unpacked.fits"] else ""
    attributes = read_attributes(path)
    if "run_key" not in attributes:
        return ""
    if _REPLACED.fullmatch(path.name):
        return "replaced"
    if path.name.endswith(".partial"):
        return "finished" if attributes.get("status") == "complete" else "partial"
    return ""


def _kind_of_file(path: Path) -> str:
    if _TEMPORARY.fullmatch(path.name):
        return "temporary"
    if path.name.endswith(".parquet.partial"):
        stem = path.name.removesuffix(".parquet.partial")
        stores = (path.with_name(f"{stem}{end}.partial") for end in (".zarr", ""))
        return "" if any(store.exists() for store in stores) else "catalogue"
    return "lock" if _LOCK.fullmatch(path.name) else ""


def _weigh(kind: str, path: Path, now: float) -> Leftover:
    """Give age and size; what vanishes meanwhile, or comes from the future, is new."""
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
    "partial": "no run works on it",
    "finished": "complete, but for its name",
    "replaced": "its successor is there",
    "building": "never begun",
    "catalogue": "its store is gone",
    "temporary": "its writer is gone",
    "lock": "nobody holds it",
}


def _judge(found: Leftover) -> Leftover:
    """Keep what is held, or is the only copy; finish what is complete."""
    path = Path(found.path)
    if found.kind == "replaced":
        out = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        return found if out.exists() else _as(found, "keep", f"{out.name} is not there")
    if found.kind not in ("partial", "finished", "lock"):
        return found
    try:
        with alone(path) if found.kind == "lock" else hold(path):
            pass
    except StoreError as error:
        return _as(found, "keep", str(error))
    if found.kind == "finished":
        return _as(found, "finish", f"becomes {final_path(path).name}")
    return found


def _as(found: Leftover, action: str, reason: str) -> Leftover:
    return Leftover(found.kind, found.path, found.age_seconds, found.size_bytes, action, reason)
