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

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fcnpipe.cli.options import collect_options, complete_spec, with_run_options
from fcnpipe.core.errors import (
    FcnpipeError,
    ModelError,
    SpecError,
    StoreError,
    VerificationError,
)
from fcnpipe.core.garbage_collection import freeze_objects
from fcnpipe.core.spec import SOURCE_OPTIONS, make_spec
from fcnpipe.core.timeouts import THREAD_PREFIX
from fcnpipe.core.version import __version__

INTERRUPTED = 130
USAGE = 2
_INTERRUPTION = "interrupted; the same command takes the run up again"
SHOWN = 20
"""Damages that are listed."""
WIDEST = 500
"""Characters of a line that is not broken."""
LEAST_SIDE = 64
"""Least height and width of a simulated field, px."""

app = typer.Typer(
    help="Find, separate and catalogue the sources in images too large for memory.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer()
app.add_typer(models_app, name="models")

StorePath = Annotated[str, typer.Argument(metavar="OUT.zarr", help="A finished store.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    with stopped_by_signals():
        code = run_command(lambda: app(args=arguments, prog_name="fcnpipe", standalone_mode=False))
    leave(code)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, cleanly; the second signal does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [s for s in _STOPPING if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOPPING = (signal.SIGINT, signal.SIGTERM)


def _stop(number: int, frame: object) -> NoReturn:
    for heeded in _STOPPING:
        signal.signal(heeded, _stop_at_once)
    raise KeyboardInterrupt


def _stop_at_once(number: int, frame: object) -> NoReturn:
    os._exit(_complain(_INTERRUPTION, INTERRUPTED))


def leave(code: int) -> NoReturn:
    """Leave, without waiting for tiles of which nobody wants to know any more.

    Notes
    -----
    Their threads cannot be stopped, and the interpreter would wait for them, or tear them down in
    the middle of a C library. What they leave half-done is done again by a resume.
    """
    freeze_objects()
    if any(t.name.startswith(THREAD_PREFIX) for t in threading.enumerate()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
        code = INTERRUPTED
    except typer.Exit as leave:
        return leave.exit_code
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code, other ways out come as Abort
        return _complain(_INTERRUPTION, INTERRUPTED)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    typer.echo(f"fcnpipe: {message}", err=True)
    return code


def _complain_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context else ""
    return _complain(" ".join(error.format_message().split()).rstrip(".") + hint, USAGE)


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


# --- runs -----------------------------------------------------------------------------------------


@app.command()
@with_run_options
def segment(options: dict[str, Any]) -> None:
    """Find, separate and catalogue the sources of an image; the same command again resumes."""
    from fcnpipe.pipeline import remote_output
    from fcnpipe.reporting.progress import watch

    spec = complete_spec(options, "fcnpipe segment IMAGE... OUT.zarr")
    with watch(spec.quiet) as progress:
        result = remote_output.segment(spec, progress)
    if not spec.quiet:
        typer.echo(
            f"{result.path}: {result.sources} sources in {result.seconds:.1f} s, "
            f"catalogue {result.catalogue}"
        )
        if result.no_sky:
            typer.echo(f"fcnpipe: ra and dec are NaN, the WCS is no use: {result.no_sky}", err=True)


@app.command()
@partial(with_run_options, left_out=SOURCE_OPTIONS)
def predict(options: dict[str, Any]) -> None:
    """Store what a model gives of an image: restored images, components, probabilities."""
    from fcnpipe.pipeline import remote_output
    from fcnpipe.reporting.progress import watch

    spec = complete_spec(options, "fcnpipe predict IMAGE... OUT.zarr --model MODEL")
    with watch(spec.quiet) as progress:
        result = remote_output.predict(spec, progress)
    if not spec.quiet:
        typer.echo(f"{result.path}: {', '.join(result.outputs)} in {result.seconds:.1f} s")


@app.command()
@with_run_options
def plan(options: dict[str, Any]) -> None:
    """Show tiles, bytes and memory of a run; refuse what segment would; read no pixel."""
    from fcnpipe.pipeline.plan import make_plan
    from fcnpipe.pipeline.remote_output import list_scratch

    spec = complete_spec({"out": "out.zarr", **options}, "fcnpipe plan IMAGE... [OUT.zarr]")
    _print_rows([*make_plan(spec).lines(), *list_scratch(spec)])


# --- results --------------------------------------------------------------------------------------


@app.command()
def info(
    store: StorePath,
    report: Annotated[
        bool, typer.Option("--report", help="Show what the last run took instead, stage by stage.")
    ] = False,
) -> None:
    """Show what a store holds and what it was made from."""
    from fcnpipe.stores import open_store

    if report:
        _print_report(store)
        return
    found = open_store(store)
    layout, attributes = found.layout, found.attrs
    rows = [
        ("status", attributes.get("status", "unknown")),
        ("image", f"{len(layout.bands)} x {layout.shape[0]} x {layout.shape[1]} px"),
        ("tiles", f"{layout.grid.counts[0]} x {layout.grid.counts[1]} of {layout.edge[0]} px"),
    ]
    if layout.maps:
        rows += [(output.name, f"{output.role}, {output.dtype}") for output in layout.maps]
    else:
        rows += [
            ("classes", ", ".join(layout.classes)),
            ("sources", str(found.n_sources)),
            ("columns", ", ".join(found.columns)),
            ("sky", _say_sky(found.cards)),
        ]
    kept = ("input", "model", "tiling", "run_key", "code_version", "spec")
    _print_rows([*rows, *((name, str(attributes[name])) for name in kept if name in attributes)])


def _say_sky(cards: Sequence[str]) -> str:
    from fcnpipe.science.catalogue import explain_no_sky, wcs_of

    if reason := explain_no_sky(cards):
        return f"no positions: {reason}"
    return "ICRS positions" if wcs_of(cards) else "no positions: the image has no coordinates"


@app.command()
def verify(
    store: StorePath,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read and decode all of it, and compare checksums.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="As --deep, and make anew what is damaged.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Check that labels, catalogue and ledger of a store agree, and maps and their checksums.

    A repair needs the image and the model where they were; the network runs on damaged tiles alone.
    """
    from fcnpipe.stores import open_store

    if repair:
        _repair(store, quiet)
    if damage := [*open_store(store).find_damage()] if deep or repair else []:
        raise VerificationError(
            f"{store} is damaged: {_list(damage)}; 'fcnpipe verify --repair {store}' makes it anew"
        )
    found = open_store(store).verify()
    if not found.ok:
        raise VerificationError(
            f"{store} contradicts itself: {'; '.join(found.problems)}; segment it again"
        )
    typer.echo(
        f"{store}: {found.sources} sources, {found.tiles} tiles and {found.pixels} pixels agree"
    )


def _repair(store: str, quiet: bool) -> None:
    from fcnpipe.pipeline import run
    from fcnpipe.reporting.progress import watch

    with watch(quiet) as progress:
        mended = run.repair(store, progress)
    if mended:
        typer.echo(f"{store}: mended {_list(mended)}")


def _list(things: Sequence[object]) -> str:
    """Give the first few in words."""
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return "; ".join(map(str, things[:SHOWN])) + more


@app.command()
def export(
    store: StorePath,
    file: Annotated[str, typer.Argument(help="File to write; its suffix says what.")],
    what: Annotated[
        str | None,
        typer.Option(help="What to write, where the suffix does not say; outputs of a prediction."),
    ] = None,
) -> None:
    """Write the catalogue, a map, regions or a picture for other programs."""
    from fcnpipe.reading import results

    results.open(store).export(file, what)


# --- simulated skies ------------------------------------------------------------------------------


@app.command()
def simulate(
    kind: Annotated[
        str, typer.Argument(help="ground, crowded, cluster, globular, sparse, empty or wide.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.fits", help="Image and truth in one file.")],
    seed: Annotated[int, typer.Option(min=0, help="Another number is another sky.")] = 1,
    shape: Annotated[tuple[int, int], typer.Option(metavar="H W", help="Height and width, px.")] = (
        1024,
        1024,
    ),
) -> None:
    """Draw a field of stars and galaxies of which everything is known."""
    from fcnpipe.simulation import fits_fields

    if min(shape) < LEAST_SIDE:
        raise SpecError(f"shape={shape[0]} {shape[1]} is below {LEAST_SIDE} px: give larger sides")
    count = fits_fields.simulate(kind, shape, seed, out)
    typer.echo(f"{out}: {shape[0]} x {shape[1]} px, {count} sources")


@app.command()
def evaluate(
    store: StorePath,
    field: Annotated[
        str, typer.Argument(metavar="FIELD.fits", help="The simulated field it was made from.")
    ],
) -> None:
    """Compare the labels of a store with the truth of its simulated field."""
    from fcnpipe.simulation import fits_fields
    from fcnpipe.stores import open_store

    found = open_store(store)
    _print_rows(fits_fields.compare(found.read("label", found.layout.grid.frame), field))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="What to train on what.")],
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="Checkpoints, log and result.")],
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in FOLDER.")] = True,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Train a network on skies or labelled images, into a model file; again, it goes on.

    Under torchrun (torchrun --nproc-per-node=N -m fcnpipe train ...) N processes train one network.
    """
    from fcnpipe.reporting.progress import count_steps, watch
    from fcnpipe.training import distributed, loop, model_packaging

    given, begun = loop.load_recipe(Path(recipe)), time.perf_counter()
    first = distributed.is_first_process()
    with watch(quiet or not first) as progress:
        report = count_steps(progress, "train", loop.pixels_of_step(given))
        loop.train(given, Path(out), resume, report)
        progress.end("train", time.perf_counter() - begun)
    if first:
        typer.echo(str(model_packaging.pack(Path(out))))


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where everything goes.")] = "out",
    model: Annotated[str, typer.Option(metavar="NAME|FILE", help="Model to use.")] = "default",
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Segment the Hubble Deep Field and a simulated field, and draw pictures of what was found."""
    from fcnpipe.cli import demo as demonstration
    from fcnpipe.reporting.progress import watch

    with watch(quiet) as progress:
        shown = demonstration.show(Path(folder), model, progress)
    for one in shown:
        typer.echo(f"\n{one.title}")
        _print_rows(one.facts)
        _print_columns("ten brightest sources", one.brightest)


# --- models ---------------------------------------------------------------------------------------


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List, show and check models; alone, list them."""
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list")
def list_models() -> None:
    """List the models that come with fcnpipe."""
    from fcnpipe import networks

    rows = []
    for name in networks.list_models():
        header = networks.load_model(name).header
        rows.append(
            (
                name,
                f"{header.architecture} {header.version}, halo {header.halo}, "
                f"stride {header.stride}",
            )
        )
    _print_rows(rows)


@models_app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Bundled name, or a model file.")]) -> None:
    """Show all that is known of a model."""
    from fcnpipe import networks

    model = networks.load_model(name)
    facts = model.header.model_dump(mode="json")
    _print_rows(
        [("digest", model.digest), *((key, str(value)) for key, value in facts.items() if value)]
    )


@models_app.command("check")
def check_model(
    name: Annotated[str, typer.Argument(help="Bundled name, model file, or exported .pt2.")],
) -> None:
    """Show how far a model looks and how it tiles, and prove it anew; refuse one that does not."""
    from fcnpipe.networks.tiling import reach

    found = reach(name)
    if found.exactness in ("inside", "never"):
        raise ModelError(f"model {name}: {found.reason}")
    _print_facts(name, found.facts())


@models_app.command("freeze")
def freeze_model(
    model: Annotated[str, typer.Argument(metavar="NET.pt2", help="Exported program.")],
    image: Annotated[str, typer.Argument(help="A typical image, or the one to be looked at.")],
    out: Annotated[str, typer.Argument(metavar="OUT.pt2", help="The program to write.")],
    hdu: Annotated[str | None, typer.Option(metavar="N|NAME", help="HDU of the image.")] = None,
    side: Annotated[int, typer.Option(min=64, help="Of a larger image the middle, px.")] = 2048,
) -> None:
    """Give GroupNorm and InstanceNorm the statistics of an image, so that the network can be tiled."""
    from fcnpipe.pipeline.frozen_statistics import freeze

    options = collect_options([image, "sample.zarr"], hdu=hdu)
    header = freeze(model, out, make_spec(**options), side).header
    typer.echo(f"{out}: proven exact with a halo of {header.halo} px")


# --- printing -------------------------------------------------------------------------------------


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print (what, how much) in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{typer.style(name.ljust(width), bold=True)}  {value}")


def _print_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print (what, how much) as a table without lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


def _print_report(out: str) -> None:
    from fcnpipe.pipeline.remote_output import locate_report, read_report
    from fcnpipe.reporting import report_rendering

    report = read_report(out)
    if report is None:
        raise StoreError(f"{locate_report(out)} is no report of a run: give the OUT of one")
    _print_facts("run", report_rendering.list_facts(report))
    _print_table("stages", report_rendering.COLUMNS, report_rendering.list_stages(report))
    _print_table(
        "slowest tiles", ("tile", "stage", "time", "process"), report_rendering.list_slowest(report)
    )
    if failures := report_rendering.list_failures(report):
        _print_table("failed", ("task", "reason"), failures)


def _print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of words as a table; only reasons run over several lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name.replace(" ", "\n"), no_wrap=name != "reason", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if "reason" not in head:  # rich would cut what does not fit the terminal
        widest = console.measure(table, options=console.options.update(width=WIDEST)).maximum
        console.width = max(console.width, widest)
    console.print(table)


def _print_columns(title: str, columns: Mapping[str, Iterable[Any]]) -> None:
    """Print columns of one length as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", "_\n"), justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(_round, columns, row))
    Console().print(table)


def _round(name: str, value: float) -> str:
    """Give a value of a column: degrees to a hundredth of an arcsecond, others to six digits."""
    return f"{value:.6f}" if name in {"ra", "dec"} else f"{value:.6g}"
