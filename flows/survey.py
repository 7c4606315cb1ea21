r"""Many images as one Prefect flow: one bad image never fails the rest.

::

    survey --- segment (subflow) --- field1
           \-- segment (subflow) --- field2     so many at once

The run is Failed if an image has failed, and its message names them; all others have landed. Run it
again: finished images are known by the run key of their stores, and only what is left is done; with
``overwrite`` too, where a mark beside the table says since when, until all have landed.

By hand, with or without a server::

    python -m flows.survey 'night/*.fits' OUT --at-once 4 --model none
    python -m flows.survey survey.yaml OUT
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from pydantic import Field

from fcnpipe.cli.options import with_run_options
from fcnpipe.core.errors import ImagesFailed, SpecError, StoreError
from fcnpipe.pipeline.plan import Command
from fcnpipe.survey import image_list
from fcnpipe.survey.image_list import SurveyImage, SurveyRow
from flows.artifacts import ROWS_SHOWN
from flows.command_line import run_by_hand
from flows.stage_tasks import Patience
from flows.subflows import Order, run_each
from flows.temporary_server import temporary_server

Images = str | list[str | dict[str, Any]]


@flow(name="survey", flow_run_name="{folder}", retries=0, persist_result=False)
def segment_survey(
    images: Images,
    folder: str,
    options: dict[str, Any] | None = None,
    at_once: Annotated[int, Field(ge=1)] = 1,
    command: Command = "segment",
    patience: Patience = Patience(),  # noqa: B008  frozen
    table: str | None = None,
    column: str = "image",
) -> list[dict[str, Any]]:
    """Find the sources of many images, or store what a network gives of each.

    Parameters
    ----------
    images : str or list
        Paths, URLs, globs, tables, YAML files, or mappings of options; see `fcnpipe.survey.image_list`.
    folder : str
        Where the stores go.
    options : dict, optional
        Of all images, as on the command line; an image's own win.
    at_once : int
        Images at the same time. Workers on this machine are shared out among them.
    command : str
        ``segment`` or ``predict``.
    patience : Patience
        Retries and time limit of a stage.
    table : str, optional
        File with one row an image: parquet, ECSV or CSV by its suffix; FOLDER/survey.ecsv.
    column : str
        Of a table of images.

    Returns
    -------
    list of dict
        A row for each image, in order.

    Raises
    ------
    ImagesFailed
        If images have failed; all others have landed.
    SpecError
        If what was given cannot be read.
    """
    table = table or f"{folder.rstrip('/')}/survey.ecsv"
    image_list.check_table_path(table)
    entries = image_list.list_images(images, folder, options, column)
    prepare_folder(folder)
    since = (
        image_list.mark_started(table) if any(e.options.get("overwrite") for e in entries) else None
    )
    rows = run_all(entries, Order(command, at_once, patience, since), table)
    refuse_failed(rows)
    if since is not None:
        image_list.mark_finished(table)
    return [image_list.as_dict(row) for row in rows]


def prepare_folder(folder: str) -> None:
    """Make the folder of the stores, if it is on this machine.

    Raises
    ------
    StoreError
        If it cannot be made.
    """
    try:
        if "://" not in folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror}; choose another") from None


def run_all(entries: list[SurveyImage], order: Order, table: str) -> list[SurveyRow]:
    """Run all images; write the table and show it, however this ends."""
    log, ended = get_run_logger(), dict[str, SurveyRow]()
    progress: Any = create_progress_artifact(0.0, key="images", description=f"{len(entries)}")
    try:
        for row in run_each(entries, order):
            ended[row.out] = row
            log.info(f"{row.image}: {row.status} in {row.seconds:.1f} s {row.error}".rstrip())
            update_progress_artifact(progress, 100.0 * len(ended) / len(entries))
    finally:
        rows = [ended.get(e.out, SurveyRow(e.name, e.out, "left")) for e in entries]
        image_list.write_table(rows, table)
        show_rows(rows, table)
    return rows


def show_rows(rows: list[SurveyRow], table: str) -> None:
    """Create the summary artifact; what has failed comes first."""
    counts = Counter(row.status for row in rows)
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    order = sorted(rows, key=lambda row: row.status != "failed")[:ROWS_SHOWN]
    create_table_artifact(
        [image_list.as_dict(replace(row, seconds=round(row.seconds, 1))) for row in order],
        key="survey",
        description=f"{len(rows)} images: {told}; all rows in {table}",
    )


def refuse_failed(rows: list[SurveyRow]) -> None:
    """Name the images that have failed.

    Raises
    ------
    ImagesFailed
        If there are any.
    """
    failed = [f"{row.image} ({row.error})" for row in rows if row.status == "failed"]
    if failed:
        raise ImagesFailed(failed, len(rows))


# --- by hand --------------------------------------------------------------------------------------


@with_run_options
def start(
    options: dict[str, Any],
    at_once: Annotated[int, typer.Option(min=1, help="Images at the same time.")] = 1,
    command: Annotated[str, typer.Option(help="segment or predict.")] = "segment",
    table: Annotated[
        str | None, typer.Option(metavar="FILE", help="One row an image: .parquet, .ecsv or .csv.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of a table with the images.")] = "image",
    retries: Annotated[int, typer.Option(min=0, help="Times that a stage is tried again.")] = 1,
) -> None:
    """Run the flow for IMAGE... (files, globs, tables, YAML files) into the folder OUT."""
    images, folder = list(options.pop("image", ())), options.pop("out", None)
    if not folder:
        raise SpecError("IMAGE or FOLDER not given: python -m flows.survey IMAGE... FOLDER")
    if command not in ("segment", "predict"):
        raise SpecError(f"command={command!r}: it is segment or predict")
    patience = Patience(retries=retries)
    with temporary_server():
        rows = segment_survey(images, folder, options, at_once, command, patience, table, column)
    if not options.get("quiet"):
        typer.echo(f"{folder}: {len(rows)} images, {sum(row['sources'] for row in rows)} sources")


if __name__ == "__main__":
    run_by_hand(start, "flows.survey")
