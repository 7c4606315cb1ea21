"""A training as a Prefect flow.

::

    train  pack
    '---------' one task run each

The checkpoints in the folder are what is done: a retry, or the same flow started again, goes on from
the last one, with the same steps on the same examples.

Run it by hand, with or without a server::

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
from flows.command_line import run_by_hand
from flows.stage_tasks import Patience, perform, slot
from flows.temporary_server import temporary_server


@flow(name="train", flow_run_name="{folder}", retries=0, persist_result=False)
def train(recipe: str, folder: str, patience: Patience = Patience()) -> str:  # noqa: B008  frozen
    """Train a network into a model file.

    Parameters
    ----------
    recipe : str
        YAML file: what to train on what.
    folder : str
        Checkpoints, log and result.
    patience : Patience
        Retries and time limit of the training.

    Returns
    -------
    str
        The model file.
    """
    given, out = loop.load_recipe(Path(recipe)), Path(folder)
    with slot(patience.limit):
        perform("train", lambda: _train(given, out), patience)
        perform("pack", lambda: _pack(out), patience)
    return str(out / f"{given.name}.safetensors")


def _train(recipe: loop.Recipe, out: Path) -> None:
    loop.train(recipe, out, report=_show_steps())
    get_run_logger().info("trained: %s", (out / "log.csv").read_text().splitlines()[-1])


def _pack(out: Path) -> None:
    path = model_packaging.pack(out)
    create_markdown_artifact(f"`{path}`\n\n![](log.png)", key="model", description=str(path))


def _show_steps() -> Callable[[int, int], None]:
    """Give a function to be told of each step, which now and then tells the server."""
    artifact: Any = create_progress_artifact(0.0, key="steps", description="steps of the training")
    told = time.monotonic()

    def report(done: int, end: int) -> None:
        nonlocal told  # each update is a call to the server
        if done == end or time.monotonic() - told >= UPDATE_EVERY_SECONDS:
            update(artifact, 100.0 * done / end)
            told = time.monotonic()

    return report


def start(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="What to train on what.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Checkpoints, log and result.")],
    retries: Annotated[int, typer.Option(min=0, help="Times that it goes on by itself.")] = 1,
) -> None:
    """Run the flow in this process, with the server of PREFECT_API_URL or a temporary one."""
    with temporary_server():
        typer.echo(train(recipe, folder, Patience(retries=retries)))


if __name__ == "__main__":
    run_by_hand(start, "flows.train")
