"""Commands that read a finished store: ``info``, ``verify``, ``export``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fcnpipe.cli import tables
from fcnpipe.cli.options import Quiet
from fcnpipe.core.errors import StoreError, VerificationError

app = typer.Typer()
StorePath = Annotated[str, typer.Argument(metavar="OUT.zarr", help="A finished store.")]
MAX_LISTED = 20
"""Maximum number of parts of a store that a message names."""


@app.command(epilog="Example: fcnpipe info field.zarr --report")
def info(
    store: StorePath,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            metavar="",
            help="Show instead the report of the last run: time and memory of each stage.",
        ),
    ] = False,
) -> None:
    """Show the contents of a store and the image, model and options it was made from."""
    from fcnpipe.stores import open_store

    if report:
        _print_report(store)
        return
    found = open_store(store)
    layout, attributes = found.layout, found.attrs
    rows = [
        ("status", attributes.get("status", "unknown")),
        ("image", f"{len(layout.bands)} x {layout.shape[0]} x {layout.shape[1]} px"),
        ("tiles", f"{layout.grid.counts[0]} x {layout.grid.counts[1]} of {layout.edge[0]} px"),
    ]
    if layout.maps:
        rows += [(output.name, f"{output.role}, {output.dtype}") for output in layout.maps]
    else:
        rows += [
            ("classes", ", ".join(layout.classes)),
            ("sources", str(found.n_sources)),
            ("columns", ", ".join(found.columns)),
            ("sky", _describe_sky(found.cards)),
        ]
    kept = ("input", "model", "tiling", "run_key", "code_version", "spec")
    tables.print_rows(
        [*rows, *((name, str(attributes[name])) for name in kept if name in attributes)]
    )


def _describe_sky(cards: Sequence[str]) -> str:
    from fcnpipe.science.wcs import describe_wcs_error, read_wcs

    if reason := describe_wcs_error(cards):
        return f"no positions: {reason}"
    return "ICRS positions" if read_wcs(cards) else "no positions: the image has no coordinates"


@app.command(epilog="Example: fcnpipe verify field.zarr --deep")
def verify(
    store: StorePath,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", metavar="", help="Also read all arrays and compare their checksums."
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", metavar="", help="Check as --deep and recompute damaged parts."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Check that the labels, the catalogue and the ledger of a store agree.

    A repair needs the image and the model at their original paths. The
    network runs only on the damaged tiles.
    """
    from fcnpipe.stores import open_store

    if repair:
        _repair(store, quiet)
    if damage := [*open_store(store).find_damage()] if deep or repair else []:
        raise VerificationError(
            f"{store} is damaged: {_join_parts(damage)}; repair it with 'fcnpipe verify --repair {store}'"
        )
    found = open_store(store).verify()
    if not found.ok:
        raise VerificationError(
            f"{store} is inconsistent: {'; '.join(found.problems)}; segment the image again"
        )
    typer.echo(
        f"{store}: {found.sources} sources, {found.tiles} tiles and {found.pixels} pixels agree"
    )


def _repair(store: str, quiet: bool) -> None:
    from fcnpipe.pipeline import run
    from fcnpipe.reporting.progress import show_progress

    with show_progress(quiet) as progress:
        repaired = run.repair(store, progress)
    if repaired:
        typer.echo(f"{store}: repaired {_join_parts(repaired)}")


def _join_parts(parts: Sequence[object]) -> str:
    more = f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
    return "; ".join(map(str, parts[:MAX_LISTED])) + more


@app.command(epilog="Example: fcnpipe export field.zarr field.reg")
def export(
    store: StorePath,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File to write; its suffix selects the format.")
    ],
    what: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What to write if the suffix does not decide it; for a prediction, the name of an output.",
        ),
    ] = None,
) -> None:
    """Write the catalogue, a map, regions or a picture for other programs."""
    from fcnpipe.reading import results

    results.open(store).export(file, what)


def _print_report(out: str) -> None:
    from fcnpipe.pipeline.remote_output import locate_report, read_report
    from fcnpipe.reporting import report_rendering

    report = read_report(out)
    if report is None:
        raise StoreError(
            f"{locate_report(out)} is not the report of a run: use the OUT.zarr of a run"
        )
    tables.print_facts("run", report_rendering.list_run_facts(report))
    tables.print_table("stages", report_rendering.COLUMNS, report_rendering.list_stage_rows(report))
    tables.print_table(
        "slowest tiles",
        ("tile", "stage", "time", "process"),
        report_rendering.list_slowest_tiles(report),
    )
    if failures := report_rendering.list_failed_tasks(report):
        tables.print_table("failed", ("task", "reason"), failures)
