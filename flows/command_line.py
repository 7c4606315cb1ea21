"""A flow as a command, for runs by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fcnpipe.cli.exit_codes import leave, run_command, stopped_by_signals
from fcnpipe.core.garbage_collection import freeze_objects


def run_by_hand(start: Callable[..., Any], name: str) -> None:
    """Run a command and leave with the exit codes of ``fcnpipe``.

    Parameters
    ----------
    start : callable
        What ``typer`` makes a command of.
    name : str
        Of the module.
    """
    freeze_objects()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(start)
    with stopped_by_signals():
        code = run_command(lambda: app(prog_name=f"python -m {name}", standalone_mode=False))
    leave(code)
