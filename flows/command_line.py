"""Flows as commands, such as ``python -m flows.segment``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from fcnpipe.cli.error_handling import leave, run_command, stopped_by_signals
from fcnpipe.core.garbage_collection import freeze_objects

Retries = Annotated[
    int, typer.Option(metavar="N", min=0, help="Number of retries of a failed stage.")
]
Timeout = Annotated[
    float | None, typer.Option(metavar="s", help="Time limit of a stage; no limit by default.")
]
AtOnce = Annotated[
    int, typer.Option(metavar="N", min=1, help="Number of images processed at the same time.")
]


def run_as_command(start: Callable[..., Any], name: str, example: str = "") -> None:
    """Run the command of a flow and exit with the codes of ``fcnpipe``.

    Parameters
    ----------
    start : callable
        Function from which ``typer`` makes the command.
    name : str
        Name of the module.
    example : str
        Arguments of the example at the end of the help.
    """
    freeze_objects()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    epilog = f"Example: python -m {name} {example}" if example else None
    app.command(epilog=epilog)(start)
    with stopped_by_signals():
        code = run_command(lambda: app(prog_name=f"python -m {name}", standalone_mode=False))
    leave(code)
