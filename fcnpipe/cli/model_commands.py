"""Commands that make and inspect models: train, models list, show, check, freeze."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fcnpipe.cli import tables
from fcnpipe.cli.options import collect_options
from fcnpipe.core.errors import ModelError
from fcnpipe.core.spec import make_spec

app = typer.Typer()
models_app = typer.Typer()


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
    from fcnpipe.reporting.progress import count_steps, show_progress
    from fcnpipe.training import distributed, loop, model_packaging

    given, begun = loop.load_recipe(Path(recipe)), time.perf_counter()
    first = distributed.is_first_process()
    with show_progress(quiet or not first) as progress:
        report = count_steps(progress, "train", loop.pixels_of_step(given))
        loop.train(given, Path(out), resume, report)
        progress.end("train", time.perf_counter() - begun)
    if first:
        typer.echo(str(model_packaging.pack(Path(out))))


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
    tables.print_rows(rows)


@models_app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Bundled name, or a model file.")]) -> None:
    """Show all that is known of a model."""
    from fcnpipe import networks

    model = networks.load_model(name)
    facts = model.header.model_dump(mode="json")
    tables.print_rows(
        [("digest", model.digest), *((key, str(value)) for key, value in facts.items() if value)]
    )


@models_app.command("check")
def check_model(
    name: Annotated[str, typer.Argument(help="Bundled name, model file, or exported .pt2.")],
) -> None:
    """Show how far a model looks and how it tiles, and prove it anew; refuse one that does not."""
    from fcnpipe.networks.tiling_report import reach

    found = reach(name)
    if found.exactness in ("inside", "never"):
        raise ModelError(f"model {name}: {found.reason}")
    tables.print_facts(name, found.facts())


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
