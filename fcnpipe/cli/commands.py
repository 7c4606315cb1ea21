"""The ``fcnpipe`` command and its subcommands.

Each command imports the modules it needs when it runs, so that ``fcnpipe --help`` is fast.

======  =================================================================================
code    meaning
======  =================================================================================
0       done
2       wrong options or input: one line on standard error with the value, limit and fix
3       some tiles failed and are named: the same command again repeats only these
130     interrupted: the same command again resumes
======  =================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fcnpipe.cli import model_commands, run_commands, simulation_commands, store_commands
from fcnpipe.cli.error_handling import USAGE, leave, run_command, stopped_by_signals
from fcnpipe.core.version import __version__

app = typer.Typer(
    help="Find, separate and catalogue the sources in images too large for memory.",
    epilog="Example: fcnpipe segment field.fits field.zarr",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (run_commands, store_commands, simulation_commands, model_commands):
    app.add_typer(module.app)
app.add_typer(model_commands.models_app, name="models")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Show the version and exit.")
    ] = False,
) -> None:
    """Find, separate and catalogue the sources in images too large for memory."""
    if version:
        typer.echo(f"fcnpipe {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    with stopped_by_signals():
        code = run_command(lambda: app(args=arguments, prog_name="fcnpipe", standalone_mode=False))
    leave(code)
