"""What killed runs have left in a folder, and how it is cleared.

=========  =========================================================  =======================
kind       what                                                       what is done
=========  =========================================================  =======================
partial    OUT.zarr.partial of a run that nobody takes up             remove, with its report
finished   OUT.zarr.partial that only wants its name                  give it its name
replaced   .OUT.zarr.replaced, an old result whose successor is there  remove
building   OUT.zarr.partial.HEX.new, a store that was never begun     remove
catalogue  OUT.parquet.partial without a store to go with             remove
claim      OUT.zarr.claim of a run of which nothing is left           remove, give the URL free
temporary  a file that was being written, an image that was unpacked  remove
lock       watch-*.lock that nobody holds                             remove
=========  =========================================================  =======================

A store that a run holds is kept, with what it has unpacked and claimed, and so is all that has changed
within an age.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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

BRIEF = frozenset({"building", "catalogue", "temporary"})
"""What a live run has without a lock, but not for long."""
BRIEF_SECONDS = 3600.0
"""Age below which it may be that of a live run, whatever age is asked for."""

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
    return [_judge(one) for one in found if one.age_seconds >= _least_age(one.kind, age_seconds)]


def _least_age(kind: str, age_seconds: float) -> float:
    return max(age_seconds, BRIEF_SECONDS) if kind in BRIEF else age_seconds


def clean_up(leftover: Leftover) -> None:
    """Do what is to be done with a leftover, unless a run has taken it up meanwhile.

    Raises
    ------
    OSError
        If it is held, or cannot be removed.
    """
    path = Path(leftover.path)
    with ExitStack() as stack:
        _hold(leftover.kind, path, stack)
        if leftover.action == "finish":
            finish_publishing(_partial_of(path) if leftover.kind == "catalogue" else path)
        elif leftover.kind == "claim":
            _give_free(path)
        elif leftover.kind == "partial":
            remove_partial(path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _hold(kind: str, path: Path, stack: ExitStack) -> None:
    """Lock what a run that is alive has locked; refused if there is one."""
    if kind == "lock":
        stack.enter_context(exclusive_lock(path))
        return
    claim = final_path(path).with_name(final_path(path).name + CLAIM_SUFFIX)
    for one in (claim, path):
        if one.exists():
            stack.enter_context(lock_output(one))


def _give_free(claim: Path) -> None:
    """Remove a claim and what it says behind its URL, unless that is another's by now."""
    token, _, url = claim.read_text().strip().partition("\n")
    owner = json.loads((uploads.get(f"{url}.partial") if url else None) or b"{}")
    if token and owner.get("token") == token:
        uploads.remove([f"{url}.partial"])
    claim.unlink()


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
        return "" if _partial_of(path).exists() else "catalogue"
    if path.name.endswith(f".zarr{CLAIM_SUFFIX}"):
        store = path.with_name(path.name.removesuffix(CLAIM_SUFFIX))
        return "" if store.exists() or partial_path(store).exists() else "claim"
    return "lock" if _LOCK.fullmatch(path.name) else ""


def _partial_of(catalogue: Path) -> Path:
    """Give OUT.zarr.partial, or OUT.partial, of OUT.parquet.partial."""
    stem = catalogue.name.removesuffix(".parquet.partial")
    plain = catalogue.with_name(f"{stem}.partial")
    there = plain.exists() or (plain.with_name(stem) / "zarr.json").exists()
    return plain if there else catalogue.with_name(f"{stem}.zarr.partial")


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
    "claim": "nothing is left of its run",
    "temporary": "its writer is gone",
    "lock": "nobody holds it",
}


def _judge(found: Leftover) -> Leftover:
    """Keep what is held, or is the only copy; finish what is complete."""
    path = Path(found.path)
    if found.kind == "replaced":
        out = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        return found if out.exists() else _as(found, "keep", f"{out.name} is not there")
    if found.kind == "catalogue" and "run_key" in read_attributes(final_path(_partial_of(path))):
        return _as(found, "finish", "its store has its name already")
    try:
        with ExitStack() as stack:
            _hold(found.kind, path, stack)
    except StoreError as error:
        return _as(found, "keep", str(error))
    if found.kind == "finished":
        return _as(found, "finish", f"becomes {final_path(path).name}")
    return found


def _as(found: Leftover, action: str, reason: str) -> Leftover:
    return Leftover(found.kind, found.path, found.age_seconds, found.size_bytes, action, reason)
