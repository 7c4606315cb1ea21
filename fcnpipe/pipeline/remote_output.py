"""Runs whose output is behind a URL: written to local scratch, then uploaded, root metadata last.

::

    claim OUT.zarr.partial --> run in the scratch folder, an ordinary store on disk
        --> remove the old root --> upload the files, 8 at a time, each logged when it is uploaded
        --> compare the listing: sizes, nothing missing, nothing left over
        --> upload OUT.zarr/zarr.json --> remove the scratch store and the claim

A reader of OUT.zarr sees no store before the last object is uploaded, and a complete one afterwards.
The claim is one object that the server lets only one run create. It names the run and remains if the
run is killed: the same command in the same folder resumes the run.
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
MAX_NAMES = 10_000
"""Maximum number of objects in one listing: 3 MB."""
REPORT_SUFFIXES = ("json", "html")
UPLOAD_LOG = ".landed"
"""File in the finished store on disk: names of the files uploaded so far. It is deleted with that store."""


def segment(spec: RunSpec, observer: Observer | None = None) -> Result:
    """Run :func:`fcnpipe.pipeline.run.segment` for an output on disk or behind a URL."""
    with local_output(spec, "segment") as local:
        result = run.segment(local, observer) if local is not None else None
    if result is None:
        store = open_store(spec.out)
        return Result(spec.out, locate_catalogue(spec.out), store.n_sources, 0.0, resumed=True)
    if local is spec:
        return result
    return replace(result, path=spec.out, catalogue=locate_catalogue(spec.out))


def predict(spec: RunSpec, observer: Observer | None = None) -> Prediction:
    """Run :func:`fcnpipe.pipeline.run.predict` for an output on disk or behind a URL."""
    with local_output(spec, "predict") as local:
        result = run.predict(local, observer) if local is not None else None
    if result is None:
        outputs = tuple(output.name for output in open_store(spec.out).layout.maps)
        return Prediction(spec.out, outputs, 0.0, resumed=True)
    return replace(result, path=spec.out)


@contextmanager
def local_output(spec: RunSpec, command: Command) -> Iterator[RunSpec | None]:
    """Yield the spec of the run on disk; upload its store to the output at the end.

    Yields
    ------
    RunSpec or None
        The same spec if the output is on disk; else the spec with the local store as its output, or
        None if the finished result of this run is already behind the URL.

    Raises
    ------
    SpecError, StoreError
        If the URL cannot be written, or belongs to another run.
    RemoteError
        If the server refuses a request or does not respond.
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
    with lock_output(target.token_file):  # for the life of this process
        try:
            # A finished store on disk is uploaded as it is, unless the inputs have changed since.
            overwrite = spec.overwrite and not target.holds(spec, command)
            yield spec.model_copy(update={"out": str(target.local), "overwrite": overwrite})
        except BaseException:
            target.release_if_unused()
            raise
        with lock_output(target.local):
            target.upload()
        target.clear()


def locate_scratch(spec: RunSpec) -> Path:
    """Return the local store of an output behind a URL: SCRATCH/NAME-DIGEST.zarr."""
    url = spec.out.rstrip("/")
    name = url.rpartition("/")[2].removesuffix(".zarr")
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(spec.scratch or ".").absolute() / f"{name}-{digest}.zarr"


def list_scratch(spec: RunSpec) -> list[tuple[str, str]]:
    """Return (item, value) rows for display: the scratch folder of an output behind a URL; else none."""
    if not remote.is_remote(spec.out):
        return []
    folder = locate_scratch(spec).parent
    return [("scratch", f"{folder}: holds the whole store until it is uploaded to {spec.out}")]


def locate_catalogue(out: str) -> str:
    """Return the path or URL of the parquet catalogue of a run, next to its store.

    Examples
    --------
    >>> locate_catalogue("s3://bucket/field.zarr"), locate_catalogue("field.zarr")
    ('s3://bucket/field.parquet', 'field.parquet')
    """
    if not remote.is_remote(out):
        return str(parquet_path(out))
    return f"{out.rstrip('/').removesuffix('.zarr')}.parquet"


def locate_report(out: str, suffix: str = "json") -> str:
    """Return the path or URL of the report of a run, next to its store.

    Examples
    --------
    >>> locate_report("s3://bucket/field.zarr"), locate_report("field.zarr", "html")
    ('s3://bucket/field.report.json', 'field.report.html')
    """
    return f"{locate_catalogue(out).removesuffix('.parquet')}.report.{suffix}"


def read_report(out: str) -> RunReport | None:
    """Return the report of the last run on an output; None if there is none."""
    where = locate_report(out)
    if remote.is_remote(out):
        data = uploads.get(where)
    elif Path(where).is_file():
        data = Path(where).read_bytes()
    else:
        data = None
    return parse_report(data) if data is not None else None


def was_finished(spec: RunSpec, command: Command, since: str = "") -> bool:
    """Return whether the result of this run exists, and was finished at or after a time.

    Parameters
    ----------
    spec : RunSpec
        The run.
    command : {"segment", "predict"}
        What the run produces.
    since : str
        Time in the format of :func:`fcnpipe.reporting.event_log.utc_timestamp`; empty: any time.

    Raises
    ------
    FcnpipeError
        If the output, the inputs or the model cannot be read.
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


def _check_writable(url: str) -> str:
    """Return the URL without a trailing slash; raise SpecError if it cannot be written."""
    if not remote.can_list(url):
        raise SpecError(f"{url} cannot be written: choose an output on disk, s3:// or gs://")
    return url.rstrip("/")


@dataclass(frozen=True)
class Target:
    """An output behind a URL and its local store.

    Attributes
    ----------
    url : str
        OUT.zarr.
    local : Path
        The store on disk.
    """

    url: str
    local: Path

    # -- ownership -----------------------------------------------------------------------

    def is_finished(self, spec: RunSpec, command: Command) -> bool:
        """Return whether the finished result of this run is behind the URL.

        Raises
        ------
        StoreError
            If the URL contains the result of another run, or something other than a store.
        """
        attributes = self._read_root()
        if attributes is None:
            return False
        identify(spec, command).check_same_run(self.url, load_identity(attributes))
        return True

    def holds(self, spec: RunSpec, command: Command) -> bool:
        """Return whether the finished store of this run is still on disk."""
        found = read_attributes(self.local)
        return "run_key" in found and found["run_key"] == identify(spec, command).key

    def claim(self, overwrite: bool) -> None:
        """Claim the URL, so that no other run writes to it until `clear`.

        Raises
        ------
        StoreError
            If another run has claimed the URL, or it contains something other than a store.
        """
        owner = self._read_owner()
        if owner is not None and owner.get("token") == self._read_token():
            return
        if self._read_root() is None and owner is None and remote.list_objects(self.url):
            raise self._foreign_object_error()
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
        """Raise an error if the URL is no longer claimed by this run.

        Raises
        ------
        StoreError
            If another run has claimed it.
        """
        owner = self._read_owner() or {}
        if owner.get("token") == self._read_token():
            return
        who = f" ({owner['folder']} on {owner['host']})" if owner else ""
        raise StoreError(
            f"{self.url} is being written by another run{who}: wait for it, resume it there, "
            "or take over the output with --overwrite"
        )

    @property
    def _claim_url(self) -> str:
        return f"{self.url}.partial"

    @property
    def token_file(self) -> Path:
        """File with the token of this run's claim and its URL; locked while the run is active."""
        return self.local.with_name(f"{self.local.name}{CLAIM_SUFFIX}")

    def _read_token(self) -> str:
        content = self.token_file.read_text() if self.token_file.exists() else ""
        return content.partition("\n")[0]

    def _make_token(self) -> str:
        self.local.parent.mkdir(parents=True, exist_ok=True)
        if not self._read_token():
            self.token_file.write_text(f"{uuid.uuid4().hex}\n{self.url}\n")
        return self._read_token()

    def _read_owner(self) -> dict[str, Any] | None:
        data = uploads.get(self._claim_url)
        return None if data is None else dict(json.loads(data))

    def _read_root(self) -> dict[str, Any] | None:
        """Return the root attributes of the store behind the URL; None if there is none."""
        data = uploads.get(f"{self.url}/{ROOT}")
        if data is None:
            return None
        try:
            attributes = json.loads(data)["attributes"]
            assert "run_key" in attributes
        except (ValueError, KeyError, TypeError, AssertionError):
            raise self._foreign_object_error() from None
        return dict(attributes)

    def _foreign_object_error(self) -> StoreError:
        return StoreError(f"{self.url} exists and is not an fcnpipe store: choose another output")

    # -- upload --------------------------------------------------------------------------

    def upload(self) -> None:
        """Upload the finished store; continue where an earlier attempt stopped.

        Raises
        ------
        StoreError
            If another run has claimed the URL, or uploaded objects are missing.
        RemoteError
            If the server refuses an upload.
        """
        self.check_owner()
        shrink_ledger(self.local)
        uploads.remove([f"{self.url}/{ROOT}"])  # readers see no store until all is uploaded
        log_file = self._upload_log
        uploaded = set(log_file.read_text().split("\n")) if log_file.exists() else set()
        files = ((name, path) for name, path in self._files(self.local) if name not in uploaded)
        with log_file.open("a") as log:

            def record(name: str) -> None:
                log.write(f"{name}\n")
                log.flush()

            uploads.put_files(self.url, files, record)
        self._check_uploaded()
        if parquet_path(self.local).exists():
            self._upload_next_to(locate_catalogue(self.url), parquet_path(self.local))
        self._put_report()
        self.check_owner()
        uploads.put(f"{self.url}/{ROOT}", (self.local / ROOT).read_bytes())

    def _put_report(self) -> None:
        """Upload the report of the run, with the output's URL in it."""
        report = read_report(str(self.local))
        if report is not None:
            write_report(report.model_copy(update={"out": self.url}), self.local)
            for suffix in REPORT_SUFFIXES:
                self._upload_next_to(
                    locate_report(self.url, suffix), report_path(self.local, suffix)
                )

    def _upload_next_to(self, url: str, file: Path) -> None:
        folder, _, name = url.rpartition("/")
        uploads.put_files(folder, [(name, file)], on_uploaded=lambda name: None)

    def release_if_unused(self) -> None:
        """Remove the claim if the run has left nothing to resume."""
        if not self.local.exists() and not partial_path(self.local).exists():
            self.clear()

    def clear(self) -> None:
        """Remove the local store and the claim."""
        shutil.rmtree(self.local, ignore_errors=True)
        parquet_path(self.local).unlink(missing_ok=True)
        for suffix in REPORT_SUFFIXES:
            report_path(self.local, suffix).unlink(missing_ok=True)
        if (self._read_owner() or {}).get("token") == self._read_token():
            uploads.remove([self._claim_url])
        self.token_file.unlink(missing_ok=True)

    @property
    def _upload_log(self) -> Path:
        return self.local / UPLOAD_LOG

    def _files(self, folder: Path, deep: bool = True) -> Iterator[tuple[str, Path]]:
        """Yield name and path of the files in and below a folder, except the root metadata and the upload log."""
        for there, inner, names in os.walk(folder):
            for name in names:
                path = Path(there, name)
                if path not in (self.local / ROOT, self._upload_log):
                    yield path.relative_to(folder).as_posix(), path
            if not deep:
                inner.clear()

    def _check_uploaded(self) -> None:
        """Compare the listing with the local files, and remove leftovers of an earlier store."""
        missing = next(self._list_missing(self.local, self.url), None)
        if missing is not None:
            self._upload_log.unlink()
            raise StoreError(
                f"{missing} is missing or has another size than its local file: run the same command again"
            )

    def _list_missing(self, folder: Path, url: str) -> Iterator[str]:
        """Yield the URLs below a folder that are missing or incomplete; remove objects without a local file.

        Notes
        -----
        Holds at most `MAX_NAMES` names, or those of one folder: larger trees are compared folder by
        folder. For a small store, one listing is faster than one for each folder.
        """
        small = sum(1 for _ in islice(self._files(folder), MAX_NAMES + 1)) <= MAX_NAMES
        here = {name: path.stat().st_size for name, path in self._files(folder, small)}
        there, folders = (remote.list_objects(url), []) if small else remote.list_folder(url)
        uploads.remove(f"{url}/{name}" for name in there if name not in here)
        for name, size in here.items():
            if name not in there or there[name].size_bytes != size:
                yield f"{url}/{name}"
        inner = [] if small else [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        for name in sorted({*inner, *folders}):
            yield from self._list_missing(folder / name, f"{url}/{name}")


def shrink_ledger(path: Path) -> None:
    """Rewrite the ledger of a finished store, in which every mark is set, as one chunk.

    Notes
    -----
    On disk it is one file per tile and stage; behind a URL each would cost a request.
    """
    spec = ledger_spec(load_layout(read_attributes(path)["layout"]))
    shutil.rmtree(path / "ledger", ignore_errors=True)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    create_array(root, "ledger", replace(spec, chunks=spec.shape))[...] = np.uint8(1)
    consolidate(path, {})
