"""Commands that read a finished store: info, verify, export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fcnpipe.cli import tables
from fcnpipe.core.errors import StoreError, VerificationError

app = typer.Typer()
StorePath = Annotated[str, typer.Argument(metavar="OUT.zarr", help="A finished store.")]
SHOWN = 20
"""Damages that are listed."""


@app.command()
def info(
    store: StorePath,
    report: Annotated[
        bool, typer.Option("--report", help="Show what the last run took instead, stage by stage.")
    ] = False,
) -> None:
    """Show what a store holds and what it was made from."""
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
            ("sky", _say_sky(found.cards)),
        ]
    kept = ("input", "model", "tiling", "run_key", "code_version", "spec")
    tables.print_rows(
        [*rows, *((name, str(attributes[name])) for name in kept if name in attributes)]
    )


def _say_sky(cards: Sequence[str]) -> str:
    from fcnpipe.science.wcs import describe_wcs_error, read_wcs

    if reason := describe_wcs_error(cards):
        return f"no positions: {reason}"
    return "ICRS positions" if read_wcs(cards) else "no positions: the image has no coordinates"


@app.command()
def verify(
    store: StorePath,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read and decode all of it, and compare checksums.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="As --deep, and make anew what is damaged.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Check that labels, catalogue and ledger of a store agree, and maps and their checksums.

    A repair needs the image and the model where they were; the network runs on damaged tiles alone.
    """
    from fcnpipe.stores import open_store

    if repair:
        _repair(store, quiet)
    if damage := [*open_store(store).find_damage()] if deep or repair else []:
        raise VerificationError(
            f"{store} is damaged: {_list(damage)}; 'fcnpipe verify --repair {store}' makes it anew"
        )
    found = open_store(store).verify()
    if not found.ok:
        raise VerificationError(
            f"{store} contradicts itself: {'; '.join(found.problems)}; segment it again"
        )
    typer.echo(
        f"{store}: {found.sources} sources, {found.tiles} tiles and {found.pixels} pixels agree"
    )


def _repair(store: str, quiet: bool) -> None:
    from fcnpipe.pipeline import run
    from fcnpipe.reporting.progress import show_progress

    with show_progress(quiet) as progress:
        mended = run.repair(store, progress)
    if mended:
        typer.echo(f"{store}: mended {_list(mended)}")


def _list(things: Sequence[object]) -> str:
    """Give the first few in words."""
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return "; ".join(map(str, things[:SHOWN])) + more


@app.command()
def export(
    store: StorePath,
    file: Annotated[str, typer.Argument(help="File to write; its suffix says what.")],
    what: Annotated[
        str | None,
        typer.Option(help="What to write, where the suffix does not say; outputs of a prediction."),
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
        raise StoreError(f"{locate_report(out)} is no report of a run: give the OUT of one")
    tables.print_facts("run", report_rendering.list_run_facts(report))
    tables.print_table("stages", report_rendering.COLUMNS, report_rendering.list_stage_rows(report))
    tables.print_table(
        "slowest tiles",
        ("tile", "stage", "time", "process"),
        report_rendering.list_slowest_tiles(report),
    )
    if failures := report_rendering.list_failed_tasks(report):
        tables.print_table("failed", ("task", "reason"), failures)
