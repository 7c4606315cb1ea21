"""Training of a network as a Prefect flow.

::

    train  pack
    '---------' one task run each

The checkpoints in the folder record the progress: a retry, or the same flow started again, resumes from
the last one, with the same steps on the same examples.

Run the flow from the command line, with or without a Prefect server::

    python -m flows.train recipe.yaml folder
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.artifacts import update_progress_artifact as update

from fcnpipe.training import loop, model_packaging
from flows.artifacts import UPDATE_EVERY_SECONDS
from flows.command_line import Retries, run_as_command
from flows.stage_tasks import Patience, hold_slot, run_as_task
from flows.temporary_server import temporary_server


@flow(name="train", flow_run_name="{folder}", retries=0, persist_result=False)
def train(recipe: str, folder: str, patience: Patience = Patience()) -> str:  # noqa: B008  frozen
    """Train a network and save a model file.

    Parameters
    ----------
    recipe : str
        YAML file with the network, the training data and the schedule.
    folder : str
        Folder for checkpoints, log and model file.
    patience : Patience
        Retries and time limit of the training, and the concurrency limit.

    Returns
    -------
    str
        Path of the model file.

    Raises
    ------
    FcnpipeError
        If the recipe or the training data are wrong, or there is no concurrency limit of the given name.
    """
    settings, out = loop.load_recipe(Path(recipe)), Path(folder)
    with hold_slot(patience.limit):
        run_as_task("train", lambda: _train(settings, out), patience)
        run_as_task("pack", lambda: _pack(out), patience)
    return str(out / f"{settings.name}.safetensors")


def _train(recipe: loop.Recipe, out: Path) -> None:
    loop.train(recipe, out, report=_make_step_report())
    get_run_logger().info("trained: %s", (out / "log.csv").read_text().splitlines()[-1])


def _pack(out: Path) -> None:
    path = model_packaging.pack(out)
    create_markdown_artifact(f"`{path}`\n\n![](log.png)", key="model", description=str(path))


def _make_step_report() -> Callable[[int, int], None]:
    """Return a function that receives each step and updates a progress artifact from time to time."""
    artifact: Any = create_progress_artifact(0.0, key="steps", description="training steps")
    updated = time.monotonic()

    def report(done: int, end: int) -> None:
        nonlocal updated  # each update is a call to the server
        if done == end or time.monotonic() - updated >= UPDATE_EVERY_SECONDS:
            update(artifact, 100.0 * done / end)
            updated = time.monotonic()

    return report


def start(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE.yaml", help="YAML file with the network, training data and schedule."
        ),
    ],
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder for checkpoints, log and model file.")
    ],
    retries: Retries = 1,
) -> None:
    """Train a network and save a model file as a Prefect flow; run again to resume.

    The flow uses the server of PREFECT_API_URL, or a temporary one.
    """
    with temporary_server():
        typer.echo(train(recipe, folder, Patience(retries=retries)))


if __name__ == "__main__":
    run_as_command(start, "flows.train", "recipe.yaml training")
