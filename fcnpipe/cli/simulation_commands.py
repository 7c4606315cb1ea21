"""Commands for simulated fields: ``simulate``, ``evaluate``, ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fcnpipe.cli import tables
from fcnpipe.cli.options import Quiet
from fcnpipe.cli.store_commands import StorePath
from fcnpipe.core.errors import SpecError

MIN_SIDE = 64
"""Minimum height and width of a simulated field, px."""

app = typer.Typer()


@app.command(epilog="Example: fcnpipe simulate crowded crowded.fits --shape 2048 2048 --seed 3")
def simulate(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="Kind of field: ground, crowded, cluster, globular, sparse, empty or wide.",
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT.fits", help="FITS file for the image and its truth.")
    ],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the random numbers.")] = 1,
    shape: Annotated[
        tuple[int, int], typer.Option(metavar="HEIGHT WIDTH", help="Size of the image in px.")
    ] = (1024, 1024),
) -> None:
    """Simulate an image of stars and galaxies whose true sources are known."""
    from fcnpipe.simulation import fits_fields

    if min(shape) < MIN_SIDE:
        raise SpecError(f"shape={shape[0]} {shape[1]} is below {MIN_SIDE} px: use larger sides")
    count = fits_fields.simulate(kind, shape, seed, out)
    typer.echo(f"{out}: {shape[0]} x {shape[1]} px, {count} sources")


@app.command(epilog="Example: fcnpipe evaluate crowded.zarr crowded.fits")
def evaluate(
    store: StorePath,
    field: Annotated[
        str,
        typer.Argument(metavar="FIELD.fits", help="The simulated field that was segmented."),
    ],
) -> None:
    """Compare the labels of a store with the truth of its simulated field."""
    from fcnpipe.simulation import fits_fields
    from fcnpipe.stores import open_store

    found = open_store(store)
    tables.print_rows(fits_fields.compare(found.read("label", found.layout.grid.frame), field))


@app.command(epilog="Example: fcnpipe demo out")
def demo(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder for the results and pictures.")
    ] = "out",
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Name of a bundled model, or a model file.")
    ] = "default",
    quiet: Quiet = False,
) -> None:
    """Segment the Hubble Deep Field and a simulated field, and draw pictures of the results."""
    from fcnpipe.cli.demo import run_demo
    from fcnpipe.reporting.progress import show_progress

    with show_progress(quiet) as progress:
        results = run_demo(Path(folder), model, progress)
    for result in results:
        typer.echo(f"\n{result.title}")
        tables.print_rows(result.facts)
        typer.echo("\nThe ten brightest sources")
        tables.print_columns(result.heads, result.brightest)
