r"""Segmentation of new images in a folder or a bucket, each once, as a Prefect flow for a schedule.

::

    list -- wait -- list again --+-- changed, or shorter than its header states: skipped
                                 +-- known content: recorded as a copy
                                 \-- new content: segment (subflow)

The digest of its content identifies a file. A second run does nothing, a copy under another name is
recorded, and a replaced file is processed again into the same store. The next runs retry a file that has
failed, up to a number of attempts. Images that were finished when a run was killed are not processed
again. A lock on the state file admits one run at a time.

Run the flow from the command line, with or without a Prefect server::

    python -m flows.watch INCOMING OUT --settle 60 --model none
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from fcnpipe.cli.options import with_run_options
from fcnpipe.core.errors import SpecError, first_line
from fcnpipe.pipeline.plan import Command
from fcnpipe.remote import is_remote
from fcnpipe.survey import incoming_files
from fcnpipe.survey.image_list import (
    check_encoding,
    list_images,
    printable_name,
    safe_stem,
    short_digest,
)
from fcnpipe.survey.incoming_files import FileRegistry, FileStamp
from fcnpipe.survey.result_table import SurveyRow
from flows.artifacts import MAX_ROWS
from flows.command_line import AtOnce, run_as_command
from flows.stage_tasks import Patience
from flows.subflows import BatchOptions, describe_failure, run_subflows
from flows.survey import create_folder, raise_for_failed
from flows.temporary_server import temporary_server


class Look(BaseModel):
    """Files to look for, and when they count as complete."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settle_seconds: float = Field(
        60.0, ge=0, description="Seconds for which a file must not change."
    )
    patterns: tuple[str, ...] = Field(
        incoming_files.PATTERNS, description="Patterns of file names."
    )
    recursive: bool = Field(False, description="Whether to search subfolders.")
    attempts: int = Field(3, ge=1, description="Maximum number of runs that try a file.")


@flow(name="watch", flow_run_name="{source}", retries=0, persist_result=False)
def watch(
    source: str,
    folder: str,
    options: dict[str, Any] | None = None,
    look: Look = Look(),  # noqa: B008  frozen
    at_once: Annotated[int, Field(ge=1)] = 1,
    command: Command = "segment",
    patience: Patience = Patience(),  # noqa: B008  frozen
    state: str | None = None,
) -> dict[str, int]:
    """Find the sources of new images.

    Parameters
    ----------
    source : str
        Folder or URL (``s3://bucket/prefix``) with the images.
    folder : str
        Folder or URL for the stores, which are named after the files.
    options : dict, optional
        Options of all images, as on the command line.
    look : Look
        Files to look for, and when they count as complete.
    at_once : int
        Number of images processed at the same time.
    command : str
        ``segment`` or ``predict``.
    patience : Patience
        Retries and time limit of each stage, and the concurrency limit.
    state : str, optional
        File that records the known files; by default a file in FOLDER named after the source.

    Returns
    -------
    dict
        Number of files by status: ``done``, ``failed``, ``copy``, ``incomplete`` (skipped).

    Raises
    ------
    ImagesFailed
        If images have failed; all others are finished.
    StoreError
        If another run uses the same state file.
    SpecError
        If ``folder`` is remote and ``state`` is not given, or an option is wrong.
    """
    path = _locate_state(source, folder, state)
    create_folder(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with incoming_files.exclusive_lock(path.with_name(f"{path.name}.lock")):
        this_run = WatchRun(path, incoming_files.load_registry(path))
        _register_arrivals(this_run, source, look)
        batch = BatchOptions(command, at_once, patience, since="")
        rows = this_run.process(options or {}, folder, batch)
    this_run.publish(source)
    raise_for_failed(rows)
    return dict(this_run.counts)


def _register_arrivals(this_run: WatchRun, source: str, look: Look) -> None:
    """Register the files that do not change for ``settle_seconds``."""
    found = incoming_files.list_files(source, look.patterns, look.recursive)
    if not incoming_files.select_pending_files(found, this_run.registry, look.attempts):
        return
    time.sleep(look.settle_seconds)
    again = incoming_files.list_files(source, look.patterns, look.recursive)
    settled = {name: stamp for name, stamp in again.items() if found.get(name) == stamp}
    this_run.add_changing(again.keys() - settled.keys())
    pending = incoming_files.select_pending_files(settled, this_run.registry, look.attempts)
    this_run.register(settled, pending)


@dataclass
class WatchRun:
    """The registry of known files, and the files and rows of one run of the flow.

    Attributes
    ----------
    path : Path
        File of the registry.
    registry : dict
        State of each known file.
    rows : list of dict
        A row for each file that this run has processed or skipped.
    pending : list of str
        Files to be processed.
    """

    path: Path
    registry: FileRegistry

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pending: list[str] = []

    @property
    def counts(self) -> Counter[str]:
        """Number of files by status."""
        return Counter(row["status"] for row in self.rows)

    def add_changing(self, paths: Any) -> None:
        """Add rows for files that are still changing."""
        for path in sorted(paths):
            self._add_row(path, "incomplete", reason="still changing")

    def register(self, found: dict[str, FileStamp], paths: list[str]) -> None:
        """Register files that do not change: incomplete, copies, already known, or to be processed."""
        for path in paths:
            try:
                self._register_file(path, found[path])
            except Exception as error:  # one file, whatever it raises, must not stop the others
                reason = (
                    first_line(error) if isinstance(error, OSError) else describe_failure(error)
                )
                self._add_row(path, "incomplete", reason=reason)
        incoming_files.save_registry(self.path, self.registry)

    def _register_file(self, path: str, stamp: FileStamp) -> None:
        missing = incoming_files.describe_missing(path, stamp.size)
        if missing:
            self._add_row(path, "incomplete", reason=missing)
            return
        known = self.registry[path] = incoming_files.register_file(path, stamp, self.registry)
        if known.status == "copy":
            self._add_row(path, "copy", known.out)
        elif known.status != "done":
            self.pending.append(path)

    def process(self, options: dict[str, Any], folder: str, batch: BatchOptions) -> list[SurveyRow]:
        """Process the pending files; the registry is saved before and after each."""
        images = [self._image_options(path) for path in self.pending]
        entries = list_images(images, folder, options) if images else []
        for entry in entries:
            known = self.registry[entry.name]
            self.registry[entry.name] = replace(known, status="begun", attempts=known.attempts + 1)
        if entries:
            incoming_files.save_registry(self.path, self.registry)
        names = {SurveyRow(entry.name, entry.out, "left").out: entry.name for entry in entries}
        ended = run_subflows(entries, batch) if entries else []
        return [self._record(names[row.out], row) for row in ended]

    def _image_options(self, path: str) -> dict[str, Any]:
        known = self.registry[path]
        return {
            "image": [path],
            "out": known.out,
            **({"overwrite": True} if known.replaced else {}),
        }

    def _record(self, path: str, row: SurveyRow) -> SurveyRow:
        status = "failed" if row.status == "failed" else "done"
        known = self.registry[path]
        replaced = known.replaced and status == "failed"
        self.registry[path] = replace(known, status=status, error=row.error, replaced=replaced)
        incoming_files.save_registry(self.path, self.registry)
        self._add_row(path, status, row.out, row.error)
        return row

    def _add_row(self, path: str, status: str, out: str = "", reason: str = "") -> None:
        path, reason = printable_name(path), printable_name(reason)
        get_run_logger().info(f"{path}: {status} {reason}".rstrip())
        self.rows.append({"image": path, "status": status, "out": out, "reason": reason})

    def publish(self, source: str) -> None:
        """Create a table artifact, if there are rows."""
        if self.rows:
            counts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
            text = f"{source}: {counts}; {len(self.registry)} known files"
            create_table_artifact(self.rows[:MAX_ROWS], key="arrivals", description=text)


def _locate_state(source: str, folder: str, state: str | None) -> Path:
    if state is None and is_remote(folder):
        raise SpecError(f"state not given: {folder} is remote: use a local file (--state FILE)")
    name = f"watch-{safe_stem(source)[:40]}-{short_digest(source)}.json"
    return Path(state) if state else Path(folder) / name


# --- command line ---------------------------------------------------------------------------------


PATHS = (
    "SOURCE FOLDER",
    "Folder or URL with the images, then the folder or URL for the stores.",
)


@partial(with_run_options, paths=PATHS)
def start(
    options: dict[str, Any],
    settle: Annotated[
        float, typer.Option(metavar="s", min=0, help="Time for which a file must not change.")
    ] = 60.0,
    recursive: Annotated[
        bool, typer.Option(metavar="", show_default=False, help="Search subfolders too.")
    ] = False,
    attempts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Maximum number of runs that try a file.")
    ] = 3,
    at_once: AtOnce = 1,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File that records the known files; a file in FOLDER by default."
        ),
    ] = None,
) -> None:
    """Find the sources of the new images in a folder or under a URL."""
    images, folder = options.pop("image", ()), options.pop("out", None)
    if len(images) != 1 or not folder:
        raise SpecError("SOURCE and FOLDER not given: python -m flows.watch SOURCE FOLDER")
    check_encoding([images[0], folder, state, *options.values()])
    look = Look(settle_seconds=settle, recursive=recursive, attempts=attempts)
    with temporary_server():
        counts = watch(images[0], folder, options, look, at_once, state=state)
    if not options.get("quiet"):
        summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        typer.echo(f"{images[0]}: {summary or 'nothing new'}")


if __name__ == "__main__":
    run_as_command(start, "flows.watch", "incoming found --settle 60")
