"""What a network gives of an image, stored as it is, as a Prefect flow.

::

    background  predict  publish  finish
    '-------- one task run each --------'

Run it by hand, with or without a server::

    python -m flows.predict field.fits field.zarr --model membrane-unet
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from prefect import flow

from fcnpipe.cli.options import complete_spec, with_run_options
from fcnpipe.core.spec import SOURCE_OPTIONS, RunSpec
from flows.command_line import run_by_hand
from flows.stage_tasks import Patience, carry_out, name_run
from flows.temporary_server import temporary_server


@flow(name="predict", flow_run_name=name_run, retries=0, persist_result=False)
def predict(spec: RunSpec, patience: Patience = Patience()) -> dict[str, Any]:  # noqa: B008  frozen
    """Store what a network gives of an image: restored images, components, probabilities.

    Parameters
    ----------
    spec : RunSpec
        The run; what it says of sources is ignored.
    patience : Patience
        Retries and time limit of a stage.

    Returns
    -------
    dict
        What the run gave: ``path``, ``outputs``, ...

    Raises
    ------
    FcnpipeError
        As the flow `segment`.
    """
    return carry_out(spec.without_sources(), "predict", patience)


@partial(with_run_options, left_out=SOURCE_OPTIONS)
def start(
    options: dict[str, Any],
    retries: Annotated[int, typer.Option(min=0, help="Times that a stage is tried again.")] = 1,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a stage may take.")] = None,
) -> None:
    """Run the flow in this process, with the server of PREFECT_API_URL or a temporary one."""
    spec = complete_spec(options, "python -m flows.predict IMAGE... OUT.zarr --model MODEL")
    with temporary_server():
        facts = predict(spec, Patience(retries=retries, timeout_seconds=timeout))
    if not spec.quiet:
        typer.echo(f"{facts['path']}: {', '.join(facts['outputs'])}")


if __name__ == "__main__":
    run_by_hand(start, "flows.predict")
