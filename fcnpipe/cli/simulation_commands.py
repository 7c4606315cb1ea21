"""Commands with simulated fields: simulate, evaluate, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fcnpipe.cli import tables
from fcnpipe.cli.store_commands import StorePath
from fcnpipe.core.errors import SpecError

LEAST_SIDE = 64
"""Least height and width of a simulated field, px."""

app = typer.Typer()


@app.command()
def simulate(
    kind: Annotated[
        str, typer.Argument(help="ground, crowded, cluster, globular, sparse, empty or wide.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.fits", help="Image and truth in one file.")],
    seed: Annotated[int, typer.Option(min=0, help="Another number is another sky.")] = 1,
    shape: Annotated[tuple[int, int], typer.Option(metavar="H W", help="Height and width, px.")] = (
        1024,
        1024,
    ),
) -> None:
    """Draw a field of stars and galaxies of which everything is known."""
    from fcnpipe.simulation import fits_fields

    if min(shape) < LEAST_SIDE:
        raise SpecError(f"shape={shape[0]} {shape[1]} is below {LEAST_SIDE} px: give larger sides")
    count = fits_fields.simulate(kind, shape, seed, out)
    typer.echo(f"{out}: {shape[0]} x {shape[1]} px, {count} sources")


@app.command()
def evaluate(
    store: StorePath,
    field: Annotated[
        str, typer.Argument(metavar="FIELD.fits", help="The simulated field it was made from.")
    ],
) -> None:
    """Compare the labels of a store with the truth of its simulated field."""
    from fcnpipe.simulation import fits_fields
    from fcnpipe.stores import open_store

    found = open_store(store)
    tables.print_rows(fits_fields.compare(found.read("label", found.layout.grid.frame), field))


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where everything goes.")] = "out",
    model: Annotated[str, typer.Option(metavar="NAME|FILE", help="Model to use.")] = "default",
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Segment the Hubble Deep Field and a simulated field, and draw pictures of what was found."""
    from fcnpipe.cli import demo as demonstration
    from fcnpipe.reporting.progress import show_progress

    with show_progress(quiet) as progress:
        shown = demonstration.show(Path(folder), model, progress)
    for one in shown:
        typer.echo(f"\n{one.title}")
        tables.print_rows(one.facts)
        tables.print_columns("ten brightest sources", one.brightest)
