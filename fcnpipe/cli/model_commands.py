"""Commands that make and inspect models: ``train`` and ``models``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fcnpipe.cli import tables
from fcnpipe.cli.options import Quiet, collect_options
from fcnpipe.core.errors import ModelError
from fcnpipe.core.spec import make_spec

app = typer.Typer()
models_app = typer.Typer()
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of a bundled model, or a model file.")
]


@app.command(epilog="Example: fcnpipe train recipe.yaml training")
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE.yaml", help="YAML file with the network, training data and schedule."
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder for checkpoints, log and model file.")
    ],
    resume: Annotated[
        bool, typer.Option(metavar="", help="Resume from the checkpoint in FOLDER.")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Train a network on simulated or labelled images and save a model file; run again to resume.

    Several processes train one network if they are started with
    torchrun --nproc-per-node=N -m fcnpipe train RECIPE.yaml FOLDER
    """
    from fcnpipe.reporting.progress import count_steps, show_progress
    from fcnpipe.training import distributed, loop, model_packaging

    settings, started = loop.load_recipe(Path(recipe)), time.perf_counter()
    first = distributed.is_first_process()
    with show_progress(quiet or not first) as progress:
        report = count_steps(progress, "train", loop.pixels_per_step(settings))
        loop.train(settings, Path(out), resume, report)
        progress.end("train", time.perf_counter() - started)
    if first:
        typer.echo(str(model_packaging.pack(Path(out))))


@models_app.callback(invoke_without_command=True, epilog="Example: fcnpipe models")
def models(context: typer.Context) -> None:
    """List, show and check models; without a subcommand, list them."""
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list", epilog="Example: fcnpipe models list")
def list_models() -> None:
    """List the bundled models."""
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


@models_app.command("show", epilog="Example: fcnpipe models show default")
def show_model(name: ModelName) -> None:
    """Show the header of a model: architecture, outputs, reach, defaults, recipe, scores."""
    from fcnpipe import networks

    model = networks.load_model(name)
    facts = model.header.model_dump(mode="json")
    tables.print_rows(
        [("digest", model.digest), *((key, str(value)) for key, value in facts.items() if value)]
    )


@models_app.command("check", epilog="Example: fcnpipe models check network.pt2")
def check_model(name: ModelName) -> None:
    """Compute the reach, stride and halo of a model and prove that tiles reproduce the whole image."""
    from fcnpipe.networks.tiling_report import reach

    found = reach(name)
    if found.exactness in ("inside", "never"):
        raise ModelError(f"model {name}: {found.reason}")
    tables.print_facts(name, found.facts())


@models_app.command(
    "freeze", epilog="Example: fcnpipe models freeze network.pt2 field.fits frozen.pt2"
)
def freeze_model(
    model: Annotated[
        str, typer.Argument(metavar="NET.pt2", help="Network saved with torch.export.save.")
    ],
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="A typical image, or the image to be processed."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.pt2", help="File for the frozen network.")],
    hdu: Annotated[
        str | None, typer.Option(metavar="N|NAME", help="Number or name of the image's HDU.")
    ] = None,
    side: Annotated[
        int,
        typer.Option(
            metavar="px",
            min=64,
            help="Edge in px of the central part that is used if the image is larger.",
        ),
    ] = 2048,
) -> None:
    """Freeze GroupNorm and InstanceNorm to the statistics of an image, so that the network can be tiled."""
    from fcnpipe.pipeline.normalisation_freezing import freeze

    options = collect_options([image, "sample.zarr"], hdu=hdu)
    header = freeze(model, out, make_spec(**options), side).header
    typer.echo(f"{out}: proven exact with a halo of {header.halo} px")
