r"""Segmentation of many images as a Prefect flow, in which a bad image does not affect the others.

::

    survey --- segment (subflow) --- field1
           \-- segment (subflow) --- field2     up to at_once at the same time

If images have failed, the state of the run is Failed and its message names them; all other images are
finished. The same flow started again processes only the rest: the run keys of their stores identify the
finished images. With ``overwrite``, a file next to the table records the start of the survey until all
images are finished, so that a restart does not repeat an image.

Run the flow from the command line, with or without a Prefect server::

    python -m flows.survey 'night/*.fits' OUT --at-once 4 --model none
    python -m flows.survey survey.yaml OUT
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from functools import partial
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
from fcnpipe.survey import image_list, result_table
from fcnpipe.survey.image_list import SurveyImage
from fcnpipe.survey.result_table import SurveyRow
from flows.artifacts import MAX_ROWS
from flows.command_line import AtOnce, Retries, run_as_command
from flows.stage_tasks import Patience
from flows.subflows import BatchOptions, run_subflows
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
    """Find the sources of many images, or store the outputs of a network for each.

    Parameters
    ----------
    images : str or list
        Paths, URLs, globs, tables, YAML files, or mappings of options; see `fcnpipe.survey.image_list`.
    folder : str
        Folder or URL for the stores.
    options : dict, optional
        Options of all images, as on the command line; options of an image take precedence.
    at_once : int
        Number of images processed at the same time. They share the cores of this machine.
    command : str
        ``segment`` or ``predict``.
    patience : Patience
        Retries and time limit of each stage, and the concurrency limit.
    table : str, optional
        File for a table with one row for each image: parquet, ECSV or CSV by its suffix;
        FOLDER/survey.ecsv by default.
    column : str
        Column with the images, if ``images`` is a table.

    Returns
    -------
    list of dict
        A row for each image, in the order of the images.

    Raises
    ------
    ImagesFailed
        If images have failed; all others are finished.
    SpecError
        If the list of images cannot be read, or an option is wrong.
    """
    table = table or f"{folder.rstrip('/')}/survey.ecsv"
    result_table.check_table_path(table)
    entries = image_list.list_images(images, folder, options, column)
    _check_table_is_free(entries, table)
    create_folder(folder)
    since = (
        result_table.mark_started(table)
        if any(e.options.get("overwrite") for e in entries)
        else None
    )
    rows = run_images(entries, BatchOptions(command, at_once, patience, since), table)
    raise_for_failed(rows)
    if since is not None:
        result_table.mark_finished(table)
    return [asdict(row) for row in rows]


def _check_table_is_free(entries: list[SurveyImage], table: str) -> None:
    taken = {image_list.normalise_store(name) for name in (table, f"{table}.begun")}
    for entry in entries:
        if image_list.normalise_store(entry.out) in taken:
            raise SpecError(
                f"the store of {entry.name}, {entry.out}, is a file of the survey: change its 'out'"
            )


def create_folder(folder: str) -> None:
    """Create the folder of the stores, unless it is a URL.

    Raises
    ------
    StoreError
        If the folder cannot be created.
    """
    try:
        if "://" not in folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"folder {folder} cannot be created: {error.strerror}; choose another folder"
        ) from None


def run_images(entries: list[SurveyImage], batch: BatchOptions, table: str) -> list[SurveyRow]:
    """Run all images; write and publish the table even if the flow is interrupted."""
    log, ended = get_run_logger(), dict[str, SurveyRow]()
    progress: Any = create_progress_artifact(
        0.0, key="images", description=f"{len(entries)} images"
    )
    try:
        for row in run_subflows(entries, batch):
            ended[row.out] = row
            log.info(f"{row.image}: {row.status} in {row.seconds:.1f} s {row.error}".rstrip())
            update_progress_artifact(progress, 100.0 * len(ended) / len(entries))
    finally:
        left = [SurveyRow(entry.name, entry.out, "left") for entry in entries]
        rows = [ended.get(row.out, row) for row in left]
        result_table.write_table(rows, table)
        publish_table(rows, table)
    return rows


def publish_table(rows: list[SurveyRow], table: str) -> None:
    """Create a table artifact, with the failed images first."""
    counts = Counter(row.status for row in rows)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    order = sorted(rows, key=lambda row: row.status != "failed")[:MAX_ROWS]
    create_table_artifact(
        [asdict(replace(row, seconds=round(row.seconds, 1))) for row in order],
        key="survey",
        description=f"{len(rows)} images: {summary}; all rows in {table}",
    )


def raise_for_failed(rows: list[SurveyRow]) -> None:
    """Raise an error that names the failed images, if there are any.

    Raises
    ------
    ImagesFailed
        If images have failed.
    """
    failed = [f"{row.image} ({row.error})" for row in rows if row.status == "failed"]
    if failed:
        raise ImagesFailed(failed, len(rows))


# --- command line ---------------------------------------------------------------------------------


PATHS = (
    "IMAGE... FOLDER",
    "Images: files, URLs, globs, tables or YAML files; then the folder or URL for the stores.",
)


@partial(with_run_options, paths=PATHS)
def start(
    options: dict[str, Any],
    at_once: AtOnce = 1,
    command: Annotated[
        str, typer.Option(metavar="COMMAND", help="Command for each image: segment or predict.")
    ] = "segment",
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File for a table with one row for each image, .parquet, .ecsv or .csv; "
            "FOLDER/survey.ecsv by default.",
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(metavar="NAME", help="Column with the images, if IMAGE is a table.")
    ] = "image",
    retries: Retries = 1,
) -> None:
    """Find the sources of many images, or store the outputs of a network for each; run again to resume."""
    images, folder = list(options.pop("image", ())), options.pop("out", None)
    if not folder:
        raise SpecError("IMAGE or FOLDER not given: python -m flows.survey IMAGE... FOLDER")
    if command not in ("segment", "predict"):
        raise SpecError(f"command={command!r} is unknown: use segment or predict")
    image_list.check_encoding([folder, table, column, *options.values()])
    images = [image_list.escape_name(image) for image in images]
    patience = Patience(retries=retries)
    with temporary_server():
        rows = segment_survey(images, folder, options, at_once, command, patience, table, column)
    if not options.get("quiet"):
        typer.echo(f"{folder}: {len(rows)} images, {sum(row['sources'] for row in rows)} sources")


if __name__ == "__main__":
    run_as_command(start, "flows.survey", "'night/*.fits' night --at-once 4")
