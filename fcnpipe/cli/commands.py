"""The command line: options in, a spec out, one clear line when something is wrong.

It knows no science. What a command needs is imported when it runs, so that ``fcnpipe --help``
answers at once.

======  ==========================================================================
code    meaning
======  ==========================================================================
0       done
2       what was given is wrong: one line on standard error with value, limit, mend
3       some tiles failed: named; the same command again re-does only these
130     interrupted; the same command again takes the run up
======  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fcnpipe.cli import model_commands, run_commands, simulation_commands, store_commands
from fcnpipe.cli.exit_codes import USAGE, leave, run_command, stopped_by_signals
from fcnpipe.core.version import __version__

app = typer.Typer(
    help="Find, separate and catalogue the sources in images too large for memory.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (run_commands, store_commands, simulation_commands, model_commands):
    app.add_typer(module.app)
app.add_typer(model_commands.models_app, name="models")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Find, separate and catalogue the sources in images too large for memory."""
    if version:
        typer.echo(f"fcnpipe {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    with stopped_by_signals():
        code = run_command(lambda: app(args=arguments, prog_name="fcnpipe", standalone_mode=False))
    leave(code)
