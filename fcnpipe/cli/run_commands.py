"""Commands that process an image: ``segment``, ``predict``, ``plan``."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

from fcnpipe.cli import tables
from fcnpipe.cli.options import complete_spec, with_run_options
from fcnpipe.core.spec import SOURCE_OPTIONS

app = typer.Typer()


@app.command(epilog="Example: fcnpipe segment field.fits field.zarr --mask bad_pixels.fits")
@with_run_options
def segment(options: dict[str, Any]) -> None:
    """Find, separate and catalogue the sources of an image; run again to resume."""
    from fcnpipe.pipeline import remote_output
    from fcnpipe.reporting.progress import show_progress

    spec = complete_spec(options, "fcnpipe segment IMAGE... OUT.zarr")
    with show_progress(spec.quiet) as progress:
        result = remote_output.segment(spec, progress)
    if not spec.quiet:
        typer.echo(
            f"{result.path}: {result.sources} sources in {result.seconds:.1f} s, "
            f"catalogue {result.catalogue}"
        )
        if result.no_sky:
            reason = f"the WCS cannot be used: {result.no_sky}"
            typer.echo(f"fcnpipe: ra and dec are NaN: {reason}", err=True)


@app.command(epilog="Example: fcnpipe predict cells.tif cells.zarr --model membrane-unet")
@partial(with_run_options, left_out=SOURCE_OPTIONS)
def predict(options: dict[str, Any]) -> None:
    """Store the outputs of a model: restored images, components, probabilities; run again to resume."""
    from fcnpipe.pipeline import remote_output
    from fcnpipe.reporting.progress import show_progress

    spec = complete_spec(options, "fcnpipe predict IMAGE... OUT.zarr --model MODEL")
    with show_progress(spec.quiet) as progress:
        result = remote_output.predict(spec, progress)
    if not spec.quiet:
        typer.echo(f"{result.path}: {', '.join(result.outputs)} in {result.seconds:.1f} s")


@app.command(epilog="Example: fcnpipe plan field.fits --workers 8 --memory-limit 16")
@with_run_options
def plan(options: dict[str, Any]) -> None:
    """Check the options of a run and show its tiles, memory and disk space, without reading pixels."""
    from fcnpipe.pipeline.plan import make_plan
    from fcnpipe.pipeline.remote_output import list_scratch

    spec = complete_spec({"out": "out.zarr", **options}, "fcnpipe plan IMAGE... [OUT.zarr]")
    tables.print_rows([*make_plan(spec).lines(), *list_scratch(spec)])
