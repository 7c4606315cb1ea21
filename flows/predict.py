"""Prediction, the outputs of a network for one image, as a Prefect flow.

::

    background  predict  publish  finish
    '-------- one task run each --------'

Run the flow from the command line, with or without a Prefect server::

    python -m flows.predict field.fits field.zarr --model membrane-unet
"""

from __future__ import annotations

from functools import partial
from typing import Any

import typer
from prefect import flow

from fcnpipe.cli.options import complete_spec, with_run_options
from fcnpipe.core.spec import SOURCE_OPTIONS, RunSpec
from flows.command_line import Retries, Timeout, run_as_command
from flows.stage_tasks import Patience, name_run, run_stages
from flows.temporary_server import temporary_server


@flow(name="predict", flow_run_name=name_run, retries=0, persist_result=False)
def predict(spec: RunSpec, patience: Patience = Patience()) -> dict[str, Any]:  # noqa: B008  frozen
    """Store the outputs of a network for an image: restored images, components, probabilities.

    Parameters
    ----------
    spec : RunSpec
        Image, output and options, as on the command line; options of sources are ignored.
    patience : Patience
        Retries and time limit of each stage, and the concurrency limit.

    Returns
    -------
    dict
        Result of the run: ``path``, ``outputs``, ``tiles``, and ``found``, whether the finished store
        existed already.

    Raises
    ------
    TilesFailed
        If tiles have failed; see `flows.segment.segment`.
    FcnpipeError
        If an option or an input is wrong.
    """
    return run_stages(spec.without_sources(), "predict", patience)


@partial(with_run_options, left_out=SOURCE_OPTIONS)
def start(
    options: dict[str, Any],
    retries: Retries = 1,
    timeout: Timeout = None,
) -> None:
    """Store the outputs of a model for an image as a Prefect flow; run again to resume.

    The flow uses the server of PREFECT_API_URL, or a temporary one.
    """
    spec = complete_spec(options, "python -m flows.predict IMAGE... OUT.zarr --model MODEL")
    with temporary_server():
        facts = predict(spec, Patience(retries=retries, timeout_seconds=timeout))
    if not spec.quiet:
        typer.echo(f"{facts['path']}: {', '.join(facts['outputs'])}")


if __name__ == "__main__":
    run_as_command(start, "flows.predict", "cells.tif cells.zarr --model membrane-unet")
