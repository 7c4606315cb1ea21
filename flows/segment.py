"""Segmentation of one image as a Prefect flow.

::

    background  predict  separate  merge  select  label  measure  publish  finish
    '------------- one task run each, regardless of the size of the image ----------'

Prefect schedules, retries and records the stages. The tiles run on the engine of the spec. The ledger of
the store, not Prefect's cache, records the tiles that are done: a retry, or the same flow started again,
does the rest.

Run the flow from the command line, with or without a Prefect server::

    python -m flows.segment field.fits field.zarr --engine dask --workers 8
"""

from __future__ import annotations

from typing import Any

import typer
from prefect import flow

from fcnpipe.cli.options import complete_spec, with_run_options
from fcnpipe.core.spec import RunSpec
from flows.command_line import Retries, Timeout, run_as_command
from flows.stage_tasks import Patience, name_run, run_stages
from flows.temporary_server import temporary_server


@flow(name="segment", flow_run_name=name_run, retries=0, persist_result=False)
def segment(spec: RunSpec, patience: Patience = Patience()) -> dict[str, Any]:  # noqa: B008  frozen
    """Find, separate and catalogue the sources of an image.

    Parameters
    ----------
    spec : RunSpec
        Image, output and options, as on the command line.
    patience : Patience
        Retries and time limit of each stage, and the concurrency limit.

    Returns
    -------
    dict
        Result of the run: ``path``, ``catalogue``, ``sources``, ``tiles``, and ``found``, whether the
        finished store existed already.

    Raises
    ------
    TilesFailed
        If tiles have failed. The state of the run is then Failed, its message names the tiles, and the same
        flow started again repeats only these.
    FcnpipeError
        If an option or an input is wrong. Stages are then not retried.
    """
    return run_stages(spec, "segment", patience)


# --- command line ---------------------------------------------------------------------------------


@with_run_options
def start(
    options: dict[str, Any],
    retries: Retries = 1,
    timeout: Timeout = None,
) -> None:
    """Find, separate and catalogue the sources of an image as a Prefect flow; run again to resume.

    The flow uses the server of PREFECT_API_URL, or a temporary one.
    """
    spec = complete_spec(options, "python -m flows.segment IMAGE... OUT.zarr")
    with temporary_server():
        facts = segment(spec, Patience(retries=retries, timeout_seconds=timeout))
    if not spec.quiet:
        typer.echo(f"{facts['path']}: {facts['sources']} sources, catalogue {facts['catalogue']}")


if __name__ == "__main__":
    run_as_command(start, "flows.segment", "field.fits field.zarr --engine dask")
