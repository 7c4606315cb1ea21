r"""New images in a folder or a bucket, each once, as a Prefect flow to be scheduled.

::

    look -- wait -- look again --+-- changed, or shorter than it says: left alone
                                 +-- content known: noted as a copy
                                 \-- new content: segment (subflow)

A file is known by the digest of its content: a second run does nothing, a copy under another name is
noted, a file that was replaced is done again, into the same store. A file that fails is tried again
by the next runs, so many times; what had landed when a run was killed is not made again. One run at a
time works on a state file; another is refused.

By hand, with or without a server::

    python -m flows.watch INCOMING OUT --settle 60 --model none
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from fcnpipe.cli.options import with_run_options
from fcnpipe.core.errors import SpecError
from fcnpipe.pipeline.plan import Command
from fcnpipe.remote import is_remote
from fcnpipe.survey import incoming_files
from fcnpipe.survey.image_list import SurveyRow, list_images, safe_stem, short_digest
from fcnpipe.survey.incoming_files import FileRegistry, FileStamp
from flows.artifacts import ROWS_SHOWN
from flows.command_line import run_by_hand
from flows.stage_tasks import Patience
from flows.subflows import Order, run_each
from flows.survey import prepare_folder, refuse_failed
from flows.temporary_server import temporary_server


class Look(BaseModel):
    """How a place is looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settle_seconds: float = Field(60.0, ge=0, description="A file must stay as it is for so long.")
    patterns: tuple[str, ...] = Field(incoming_files.PATTERNS, description="Names to look for.")
    recursive: bool = Field(False, description="Whether to look into folders too.")
    attempts: int = Field(3, ge=1, description="Times that a file is tried, in as many runs.")


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
    """Find the sources of the images that are new.

    Parameters
    ----------
    source : str
        Folder or URL (``s3://bucket/prefix``) to look into.
    folder : str
        Where the stores go, named as the files.
    options : dict, optional
        Of all images, as on the command line.
    look : Look
        What to look for, and when a file has arrived.
    at_once : int
        Images at the same time.
    command : str
        ``segment`` or ``predict``.
    patience : Patience
        Retries and time limit of a stage.
    state : str, optional
        File of what is known; in FOLDER, named after the source.

    Returns
    -------
    dict
        How many files were ``done``, ``failed``, a ``copy``, left alone as ``incomplete``.

    Raises
    ------
    ImagesFailed
        If images have failed; all others have landed.
    StoreError
        If another run is at work on the same state.
    """
    path = _place_state(source, folder, state)
    prepare_folder(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with incoming_files.exclusive_lock(path.with_name(f"{path.name}.lock")):
        book = Book(path, incoming_files.load_registry(path))
        _enter_arrivals(book, source, look)
        rows = book.work(options or {}, folder, Order(command, at_once, patience, since=""))
    book.show(source)
    refuse_failed(rows)
    return dict(book.counts)


def _enter_arrivals(book: Book, source: str, look: Look) -> None:
    """Look, wait, look again, and take down what has stayed as it was."""
    found = incoming_files.list_files(source, look.patterns, look.recursive)
    if not incoming_files.select_pending_files(found, book.log, look.attempts):
        return
    time.sleep(look.settle_seconds)
    again = incoming_files.list_files(source, look.patterns, look.recursive)
    settled = {name: stamp for name, stamp in again.items() if found.get(name) == stamp}
    book.note_changing(again.keys() - settled.keys())
    book.enter_all(settled, incoming_files.select_pending_files(settled, book.log, look.attempts))


@dataclass
class Book:
    """What is known, and what this run has to say.

    Attributes
    ----------
    path : Path
        Where it is kept.
    log : dict
        What is known of each file.
    told : list of dict
        A row for each file that this run had to do with.
    waiting : list of str
        Files to be done.
    """

    path: Path
    log: FileRegistry

    def __post_init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.waiting: list[str] = []

    @property
    def counts(self) -> Counter[str]:
        """How many files had which end."""
        return Counter(row["status"] for row in self.told)

    def note_changing(self, paths: Any) -> None:
        """Tell of files that are on their way."""
        for path in sorted(paths):
            self._tell(path, "incomplete", reason="still changing")

    def enter_all(self, found: dict[str, FileStamp], paths: list[str]) -> None:
        """Take down what is settled: left alone, a copy, known after all, or to be done."""
        for path in paths:
            try:
                self._enter(path, found[path])
            except OSError as error:  # gone, or cannot be read: one bad file never stops the rest
                self._tell(path, "incomplete", reason=str(error).splitlines()[0])
        incoming_files.save_registry(self.path, self.log)

    def _enter(self, path: str, stamp: FileStamp) -> None:
        missing = incoming_files.describe_missing(path, stamp.size)
        if missing:
            self._tell(path, "incomplete", reason=missing)
            return
        known = self.log[path] = incoming_files.register_file(path, stamp, self.log)
        if known.status == "copy":
            self._tell(path, "copy", known.out)
        elif known.status != "done":
            self.waiting.append(path)

    def work(self, options: dict[str, Any], folder: str, order: Order) -> list[SurveyRow]:
        """Do what waits; each is taken down before it is begun and after it has ended."""
        given = [self._describe(path) for path in self.waiting]
        entries = list_images(given, folder, options) if given else []
        for entry in entries:
            known = self.log[entry.name]
            self.log[entry.name] = replace(known, status="begun", attempts=known.attempts + 1)
        if entries:
            incoming_files.save_registry(self.path, self.log)
        return [self._take_down(row) for row in run_each(entries, order)] if entries else []

    def _describe(self, path: str) -> dict[str, Any]:
        known = self.log[path]
        return {
            "image": [path],
            "out": known.out,
            **({"overwrite": True} if known.replaced else {}),
        }

    def _take_down(self, row: SurveyRow) -> SurveyRow:
        status = "failed" if row.status == "failed" else "done"
        known = self.log[row.image]
        kept = known.replaced and status == "failed"
        self.log[row.image] = replace(known, status=status, error=row.error, replaced=kept)
        incoming_files.save_registry(self.path, self.log)
        self._tell(row.image, status, row.out, row.error)
        return row

    def _tell(self, path: str, status: str, out: str = "", reason: str = "") -> None:
        get_run_logger().info(f"{path}: {status} {reason}".rstrip())
        self.told.append({"image": path, "status": status, "out": out, "reason": reason})

    def show(self, source: str) -> None:
        """Create the summary artifact, if there is something to tell."""
        if self.told:
            counts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
            text = f"{source}: {counts}; {len(self.log)} known"
            create_table_artifact(self.told[:ROWS_SHOWN], key="arrivals", description=text)


def _place_state(source: str, folder: str, state: str | None) -> Path:
    if state is None and is_remote(folder):
        raise SpecError(f"state not given: {folder} is remote, name a local file for what is known")
    name = f"watch-{safe_stem(source)[:40]}-{short_digest(source)}.json"
    return Path(state) if state else Path(folder) / name


# --- by hand --------------------------------------------------------------------------------------


@with_run_options
def start(
    options: dict[str, Any],
    settle: Annotated[
        float, typer.Option(min=0, help="Seconds that a file must stay as it is.")
    ] = 60.0,
    recursive: Annotated[bool, typer.Option(help="Look into folders too.")] = False,
    attempts: Annotated[int, typer.Option(min=1, help="Times that a file is tried.")] = 3,
    at_once: Annotated[int, typer.Option(min=1, help="Images at the same time.")] = 1,
    state: Annotated[str | None, typer.Option(help="File of what is known.")] = None,
) -> None:
    """Run the flow once, for the new images of the folder or URL IMAGE into the folder OUT."""
    images, folder = options.pop("image", ()), options.pop("out", None)
    if len(images) != 1 or not folder:
        raise SpecError("SOURCE and FOLDER not given: python -m flows.watch SOURCE FOLDER")
    look = Look(settle_seconds=settle, recursive=recursive, attempts=attempts)
    with temporary_server():
        counts = watch(images[0], folder, options, look, at_once, state=state)
    if not options.get("quiet"):
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        typer.echo(f"{images[0]}: {told or 'nothing new'}")


if __name__ == "__main__":
    run_by_hand(start, "flows.watch")
