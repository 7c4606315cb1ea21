"""One image through the pipeline as a Prefect flow.

::

    background  predict  separate  merge  select  label  measure  publish  finish
    '-------------- one task run each, whatever the size of the image --------------'

Prefect schedules, retries and records stages; the tiles run on the engine that the spec names. What
is done is known from the store's ledger, never from Prefect's cache: a retry, or the same flow
started again, does what is left.

Run it by hand, with or without a server::

    python -m flows.segment field.fits field.zarr --engine dask --workers 8
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from prefect import flow

from fcnpipe.cli.options import complete_spec, with_run_options
from fcnpipe.core.spec import RunSpec
from flows.command_line import run_by_hand
from flows.stage_tasks import Patience, carry_out, name_run
from flows.temporary_server import temporary_server


@flow(name="segment", flow_run_name=name_run, retries=0, persist_result=False)
def segment(spec: RunSpec, patience: Patience = Patience()) -> dict[str, Any]:  # noqa: B008  frozen
    """Find, separate and catalogue the sources of an image.

    Parameters
    ----------
    spec : RunSpec
        The run: image, output and options, as on the command line.
    patience : Patience
        Retries and time limit of a stage.

    Returns
    -------
    dict
        What the run gave: ``path``, ``catalogue``, ``sources``, ...

    Raises
    ------
    TilesFailed
        If tiles have failed; the run is then Failed, its message names them, and the same flow
        again re-does only these.
    FcnpipeError
        If what was given is wrong; no stage is then tried twice.
    """
    return carry_out(spec, "segment", patience)


# --- by hand --------------------------------------------------------------------------------------


@with_run_options
def start(
    options: dict[str, Any],
    retries: Annotated[int, typer.Option(min=0, help="Times that a stage is tried again.")] = 1,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a stage may take.")] = None,
) -> None:
    """Run the flow in this process, with the server of PREFECT_API_URL or a temporary one."""
    spec = complete_spec(options, "python -m flows.segment IMAGE... OUT.zarr")
    with temporary_server():
        facts = segment(spec, Patience(retries=retries, timeout_seconds=timeout))
    if not spec.quiet:
        typer.echo(f"{facts['path']}: {facts['sources']} sources, catalogue {facts['catalogue']}")


if __name__ == "__main__":
    run_by_hand(start, "flows.segment")
