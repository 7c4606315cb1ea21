"""Runs whose output lies behind a URL: made on disk, then taken there, the root's metadata last.

::

    claim OUT.zarr.partial --> run in SCRATCH, a store on disk like any other, with all its laws
        --> the old root goes --> files, 8 at a time, each noted when it has landed
        --> list: sizes, nothing missing, nothing left over --> OUT.zarr/zarr.json --> clear up

Whoever reads OUT.zarr sees no store before its last object is there, and then a whole one. The
claim is one object that the server lets only one run make; it names the run, and stays when that
is killed: the same command in the same place takes it up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from fcnpipe import remote
from fcnpipe.core.errors import SpecError, StoreError
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline import run
from fcnpipe.pipeline.inputs import Command, identify
from fcnpipe.pipeline.run import Prediction, Result
from fcnpipe.remote import uploads
from fcnpipe.reporting.observers import Observer
from fcnpipe.reporting.run_recorder import write_report
from fcnpipe.reporting.run_report import RunReport, parse_report
from fcnpipe.stores import open_store, parquet_path, partial_path
from fcnpipe.stores.base import load_layout
from fcnpipe.stores.hierarchy import create_array, ledger_spec
from fcnpipe.stores.identity import load_identity
from fcnpipe.stores.lifecycle import CLAIM_SUFFIX, consolidate, lock_output, read_attributes
from fcnpipe.stores.paths import report_path

ROOT = "zarr.json"
MOST_NAMES = 10_000
"""Objects that are listed in one go: 3 MB."""
REPORT_SUFFIXES = ("json", "html")
LANDED = ".landed"
"""File in the finished store on disk: names of what is there already. It goes with that store."""


def segment(spec: RunSpec, observer: Observer | None = None) -> Result:
    """Do as :func:`fcnpipe.run.segment`, wherever the output lies."""
    with delivered(spec, "segment") as local:
        result = run.segment(local, observer) if local is not None else None
    if result is None:
        store = open_store(spec.out)
        return Result(spec.out, locate_catalogue(spec.out), store.n_sources, 0.0, resumed=True)
    if local is spec:
        return result
    return replace(result, path=spec.out, catalogue=locate_catalogue(spec.out))


def predict(spec: RunSpec, observer: Observer | None = None) -> Prediction:
    """Do as :func:`fcnpipe.run.predict`, wherever the output lies."""
    with delivered(spec, "predict") as local:
        result = run.predict(local, observer) if local is not None else None
    if result is None:
        outputs = tuple(output.name for output in open_store(spec.out).layout.maps)
        return Prediction(spec.out, outputs, 0.0, resumed=True)
    return replace(result, path=spec.out)


@contextmanager
def delivered(spec: RunSpec, command: Command) -> Iterator[RunSpec | None]:
    """Give the spec of the run on disk, and take its store to the output at the end.

    Yields
    ------
    RunSpec or None
        The same where the output is on disk; None if the finished result of this very run lies
        behind the URL.

    Raises
    ------
    SpecError, StoreError
        If the URL cannot be written, or belongs to another run.
    RemoteError
        If its server does not do what is needed.
    """
    if not remote.is_remote(spec.out):
        yield spec
        return
    target = Target(_check_writable(spec.out), locate_scratch(spec))
    if not spec.overwrite and target.is_finished(spec, command):
        target.clear()
        yield None
        return
    target.claim(spec.overwrite)
    with lock_output(target.token_file):  # as long as this process lives, whatever it is at
        try:
            # What waits on disk to be taken there is of this run, unless the inputs are others now.
            afresh = spec.overwrite and not target.holds(spec, command)
            yield spec.model_copy(update={"out": str(target.local), "overwrite": afresh})
        except BaseException:
            target.withdraw()
            raise
        with lock_output(target.local):
            target.deliver()
        target.clear()


def locate_scratch(spec: RunSpec) -> Path:
    """Give where the store of an output behind a URL is made: SCRATCH/NAME-DIGEST.zarr."""
    url = spec.out.rstrip("/")
    name = url.rpartition("/")[2].removesuffix(".zarr")
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(spec.scratch or ".").absolute() / f"{name}-{digest}.zarr"


def list_scratch(spec: RunSpec) -> list[tuple[str, str]]:
    """Give (what, how much) rows for people on what a run needs beside its output."""
    if not remote.is_remote(spec.out):
        return []
    folder = locate_scratch(spec).parent
    return [("scratch", f"{folder}: the whole store lies there until it is in {spec.out}")]


def locate_catalogue(out: str) -> str:
    """Give where the catalogue of a run lies as parquet, beside its store.

    Examples
    --------
    >>> locate_catalogue("s3://bucket/field.zarr"), locate_catalogue("field.zarr")
    ('s3://bucket/field.parquet', 'field.parquet')
    """
    if not remote.is_remote(out):
        return str(parquet_path(out))
    return f"{out.rstrip('/').removesuffix('.zarr')}.parquet"


def locate_report(out: str, suffix: str = "json") -> str:
    """Give where the account of a run lies, beside its store.

    Examples
    --------
    >>> locate_report("s3://bucket/field.zarr"), locate_report("field.zarr", "html")
    ('s3://bucket/field.report.json', 'field.report.html')
    """
    return f"{locate_catalogue(out).removesuffix('.parquet')}.report.{suffix}"


def read_report(out: str) -> RunReport | None:
    """Give the account of the last run that was to make a store; None if there is none."""
    where = locate_report(out)
    data = uploads.get(where) if remote.is_remote(out) else _read_file(Path(where))
    return parse_report(data) if data is not None else None


def was_finished(spec: RunSpec, command: Command, since: str = "") -> bool:
    """Whether the result of this very run is there, and was finished at a time or later.

    Parameters
    ----------
    spec : RunSpec
        The run.
    command : {"segment", "predict"}
        What is wanted of it.
    since : str
        As :func:`fcnpipe.reporting.event_log.utc_timestamp` gives it; any time if empty.

    Raises
    ------
    FcnpipeError
        If the server of the output, the inputs or the model cannot be had.
    """
    report = read_report(spec.out)
    if report is None or report.status != "complete" or report.ended < since:
        return False
    key = identify(spec, command).key
    return report.run_key == key and _find_key(spec.out) == key


def _find_key(out: str) -> str:
    try:
        return open_store(out).identity.key
    except StoreError:
        return ""


def _read_file(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _check_writable(url: str) -> str:
    if not remote.can_list(url):
        raise SpecError(f"{url} cannot be written: give an output on disk, s3:// or gs://")
    return url.rstrip("/")


@dataclass(frozen=True)
class Target:
    """An output behind a URL, and where it is made.

    Attributes
    ----------
    url : str
        OUT.zarr.
    local : Path
        The store on disk.
    """

    url: str
    local: Path

    # -- whose it is ---------------------------------------------------------------------

    def is_finished(self, spec: RunSpec, command: Command) -> bool:
        """Whether the result of this very run lies there.

        Raises
        ------
        StoreError
            If another one does, or something else.
        """
        attributes = self._read_root()
        if attributes is None:
            return False
        identify(spec, command).check_same_run(self.url, load_identity(attributes))
        return True

    def holds(self, spec: RunSpec, command: Command) -> bool:
        """Whether the finished store of this very run is on disk still."""
        found = read_attributes(self.local)
        return "run_key" in found and found["run_key"] == identify(spec, command).key

    def claim(self, overwrite: bool) -> None:
        """Keep other runs away from the URL, until it is cleared up.

        Raises
        ------
        StoreError
            If another run has it, or something lies there that is no store of ours.
        """
        owner = self._read_owner()
        if owner is not None and owner.get("token") == self._read_token():
            return
        if self._read_root() is None and owner is None:
            self._check_empty()
        mine = {
            "token": self._make_token(),
            "host": socket.gethostname(),
            "folder": str(self.local.parent),
        }
        data = json.dumps(mine).encode()
        if overwrite:
            uploads.put(self._claim_url, data)
        elif not uploads.put_new(self._claim_url, data):
            self.check_owner()

    def check_owner(self) -> None:
        """Make sure that the URL is still ours.

        Raises
        ------
        StoreError
            If another run has it.
        """
        owner = self._read_owner() or {}
        if owner.get("token") == self._read_token():
            return
        who = f" ({owner['folder']} on {owner['host']})" if owner else ""
        raise StoreError(
            f"{self.url} is being written by another run{who}: wait for it, take it up there, "
            "or take the output away from it with --overwrite"
        )

    @property
    def _claim_url(self) -> str:
        return f"{self.url}.partial"

    @property
    def token_file(self) -> Path:
        """File that says which claim is ours, and of what URL; locked while a run is at it."""
        return self.local.with_name(f"{self.local.name}{CLAIM_SUFFIX}")

    def _read_token(self) -> str:
        said = self.token_file.read_text() if self.token_file.exists() else ""
        return said.partition("\n")[0]

    def _make_token(self) -> str:
        self.local.parent.mkdir(parents=True, exist_ok=True)
        if not self._read_token():
            self.token_file.write_text(f"{uuid.uuid4().hex}\n{self.url}\n")
        return self._read_token()

    def _read_owner(self) -> dict[str, Any] | None:
        data = uploads.get(self._claim_url)
        return None if data is None else dict(json.loads(data))

    def _read_root(self) -> dict[str, Any] | None:
        """Give the attributes of the store there; None if there is none."""
        data = uploads.get(f"{self.url}/{ROOT}")
        if data is None:
            return None
        try:
            attributes = json.loads(data)["attributes"]
            assert "run_key" in attributes
        except (ValueError, KeyError, TypeError, AssertionError):
            raise self._not_ours() from None
        return dict(attributes)

    def _check_empty(self) -> None:
        if remote.list_objects(self.url):
            raise self._not_ours()

    def _not_ours(self) -> StoreError:
        return StoreError(f"{self.url} exists and is not an fcnpipe store: choose another output")

    # -- taking it there -----------------------------------------------------------------

    def deliver(self) -> None:
        """Put the finished store there, from where an earlier try has got to.

        Raises
        ------
        StoreError
            If another run has taken the URL, or objects have gone lost.
        RemoteError
            If the server does not take it.
        """
        self.check_owner()
        shrink_ledger(self.local)
        uploads.remove([f"{self.url}/{ROOT}"])  # from here on there is no store, until all is there
        landed = self._read_landed()
        with self._landed_file.open("a") as log:

            def note(name: str) -> None:
                log.write(f"{name}\n")
                log.flush()

            uploads.put_files(self.url, _others(self._files(self.local), landed), note)
        self._check_landed()
        if parquet_path(self.local).exists():
            self._put_beside(locate_catalogue(self.url), parquet_path(self.local))
        self._put_report()
        self.check_owner()
        uploads.put(f"{self.url}/{ROOT}", (self.local / ROOT).read_bytes())

    def _put_report(self) -> None:
        """Put the account of the run there, under the name that the output has there."""
        report = read_report(str(self.local))
        if report is not None:
            write_report(report.model_copy(update={"out": self.url}), self.local)
            for suffix in REPORT_SUFFIXES:
                self._put_beside(locate_report(self.url, suffix), report_path(self.local, suffix))

    def _put_beside(self, url: str, file: Path) -> None:
        folder, _, name = url.rpartition("/")
        uploads.put_files(folder, [(name, file)], landed=lambda name: None)

    def withdraw(self) -> None:
        """Give the URL free if the run has left nothing that it could be taken up from."""
        if not self.local.exists() and not partial_path(self.local).exists():
            self.clear()

    def clear(self) -> None:
        """Remove the store on disk, and give the URL free."""
        shutil.rmtree(self.local, ignore_errors=True)
        parquet_path(self.local).unlink(missing_ok=True)
        for suffix in REPORT_SUFFIXES:
            report_path(self.local, suffix).unlink(missing_ok=True)
        if (self._read_owner() or {}).get("token") == self._read_token():
            uploads.remove([self._claim_url])
        self.token_file.unlink(missing_ok=True)

    @property
    def _landed_file(self) -> Path:
        return self.local / LANDED

    def _read_landed(self) -> set[str]:
        return (
            set(self._landed_file.read_text().split("\n")) if self._landed_file.exists() else set()
        )

    def _files(self, folder: Path, deep: bool = True) -> Iterator[tuple[str, Path]]:
        """Give the files of a folder, and below it, with their names there; not the root's metadata."""
        for there, inner, names in os.walk(folder):
            for name in names:
                path = Path(there, name)
                if path not in (self.local / ROOT, self._landed_file):
                    yield path.relative_to(folder).as_posix(), path
            if not deep:
                inner.clear()

    def _check_landed(self) -> None:
        """Hold what is there against what was put, and remove what an earlier store has left."""
        lost = next(self._list_lost(self.local, self.url), None)
        if lost is not None:
            self._landed_file.unlink()
            raise StoreError(f"{lost} is not there as it was put: run the same command again")

    def _list_lost(self, folder: Path, url: str) -> Iterator[str]:
        """Give the URLs below a folder that are not there as they were put, and remove all others.

        Notes
        -----
        Holds no more than `MOST_NAMES`, or those of one folder: what has more is looked at folder by
        folder. One list of a small store is quicker than a list for each of its folders.
        """
        small = sum(1 for _ in islice(self._files(folder), MOST_NAMES + 1)) <= MOST_NAMES
        here = {name: path.stat().st_size for name, path in self._files(folder, small)}
        there, folders = (remote.list_objects(url), []) if small else remote.list_folder(url)
        uploads.remove(f"{url}/{name}" for name in there if name not in here)
        for name, size in here.items():
            if name not in there or there[name].size_bytes != size:
                yield f"{url}/{name}"
        inner = [] if small else [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        for name in sorted({*inner, *folders}):
            yield from self._list_lost(folder / name, f"{url}/{name}")


def _others(files: Iterator[tuple[str, Path]], landed: set[str]) -> Iterator[tuple[str, Path]]:
    return ((name, path) for name, path in files if name not in landed)


def shrink_ledger(path: Path) -> None:
    """Write the ledger of a finished store, in which every mark is set, as one chunk.

    Notes
    -----
    On disk it is a file for each tile and stage, which costs a request each behind a URL.
    """
    spec = ledger_spec(load_layout(read_attributes(path)["layout"]))
    shutil.rmtree(path / "ledger", ignore_errors=True)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    create_array(root, "ledger", replace(spec, chunks=spec.shape))[...] = np.uint8(1)
    consolidate(path, {})
