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

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fcnpipe import __version__
from fcnpipe.errors import FcnpipeError, VerificationError
from fcnpipe.options import complete_spec, with_run_options

INTERRUPTED = 130
USAGE = 2

app = typer.Typer(
    help="Find, separate and catalogue the sources in images too large for memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="List, show and check models.", no_args_is_help=True)
app.add_typer(models_app, name="models")

StorePath = Annotated[str, typer.Argument(metavar="OUT.zarr", help="A finished store.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    sys.exit(run_command(lambda: app(args=arguments, prog_name="fcnpipe", standalone_mode=False)))


def run_command(command: Callable[[], Any]) -> int:
    """Run a command, say in one line what went wrong, and give the exit code.

    Notes
    -----
    Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        code = command()
    except FcnpipeError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:
        return _complain_usage(error)
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted; the same command takes the run up again", INTERRUPTED)
    except typer.Exit as leave:
        return leave.exit_code
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    typer.echo(f"fcnpipe: {message}", err=True)
    return code


def _complain_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return USAGE
    hint = f"; see {context.command_path} --help" if context else ""
    return _complain(" ".join(error.format_message().split()).rstrip(".") + hint, USAGE)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Find, separate and catalogue the sources in images too large for memory."""
    if version:
        typer.echo(f"fcnpipe {__version__}")
        raise typer.Exit


# --- runs -----------------------------------------------------------------------------------------


@app.command()
@with_run_options
def segment(options: dict[str, Any]) -> None:
    """Find, separate and catalogue the sources of an image; the same command again resumes."""
    from fcnpipe import run
    from fcnpipe.progress import watch

    spec = complete_spec(options, "fcnpipe segment IMAGE... OUT.zarr")
    with watch(spec.quiet) as progress:
        result = run.segment(spec, progress)
    if not spec.quiet:
        typer.echo(
            f"{result.path}: {result.sources} sources in {result.seconds:.1f} s, catalogue {result.catalogue}"
        )


@app.command()
@with_run_options
def plan(options: dict[str, Any]) -> None:
    """Show the tiles, bytes and memory of a run, and refuse what segment would refuse; reads no pixel."""
    from fcnpipe.plan import make_plan

    spec = complete_spec({"out": "out.zarr", **options}, "fcnpipe plan IMAGE... [OUT.zarr]")
    _print_rows(make_plan(spec).lines())


# --- results --------------------------------------------------------------------------------------


@app.command()
def info(store: StorePath) -> None:
    """Show what a store holds and what it was made from."""
    from fcnpipe.stores import ZarrStore

    found = ZarrStore.open(store)
    layout, attributes = found.layout, found.attrs
    rows = [
        ("status", attributes.get("status", "unknown")),
        ("image", f"{len(layout.bands)} x {layout.shape[0]} x {layout.shape[1]} px"),
        ("tiles", f"{layout.grid.counts[0]} x {layout.grid.counts[1]} of {layout.edge[0]} px"),
        ("classes", ", ".join(layout.classes)),
        ("sources", str(found.n_sources)),
        ("columns", ", ".join(found.columns)),
    ]
    kept = ("input", "model", "run_key", "code_version", "spec")
    _print_rows([*rows, *((name, str(attributes[name])) for name in kept if name in attributes)])


@app.command()
def verify(store: StorePath) -> None:
    """Check that labels, catalogue and ledger of a store agree."""
    from fcnpipe.stores import ZarrStore

    found = ZarrStore.open(store).verify()
    if not found.ok:
        raise VerificationError(f"{store} contradicts itself: {'; '.join(found.problems)}; segment it again")
    typer.echo(f"{store}: {found.sources} sources, {found.tiles} tiles and {found.pixels} pixels agree")


# --- models ---------------------------------------------------------------------------------------


@models_app.command("list")
def list_models() -> None:
    """List the models that come with fcnpipe."""
    from fcnpipe import networks

    rows = []
    for name in networks.list_models():
        header = networks.load_model(name).header
        rows.append((name, f"{header.architecture} {header.version}, halo {header.halo}, stride {header.stride}"))
    _print_rows(rows)


@models_app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Bundled name, or a model file.")]) -> None:
    """Show all that is known of a model."""
    from fcnpipe import networks

    model = networks.load_model(name)
    facts = model.header.model_dump(mode="json")
    _print_rows([("digest", model.digest), *((key, str(value)) for key, value in facts.items() if value)])


# --- printing -------------------------------------------------------------------------------------


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print (what, how much) in two columns; the second is never cut."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
