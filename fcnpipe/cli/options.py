"""The fields of RunSpec as options of a command.

The name, type, limits and help of an option come from the field of :class:`fcnpipe.core.spec.RunSpec`, so a
new field is a new option. Every option defaults to None, which means "not given": its value then comes from
the YAML file, or from the spec if the file does not set it.
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import RunSpec, make_spec, read_options

PANELS = {
    "Image": ("hdu", "weight", "weight_type", "mask", "mask_bits", "prior", "satur_level", "gain"),
    "Network": ("model", "window", "device", "precision", "halo", "stride", "fwhm"),
    "Sources": ("thresh", "minarea", "dynamics", "mincont", "mag_zeropoint"),
    "Background": ("back_size", "back_filter"),
    "Execution": (
        "tile",
        "engine",
        "workers",
        "scheduler",
        "cluster",
        "memory_limit",
        "tile_timeout",
        "log_file",
    ),
    "Output": ("keep_image", "scratch", "overwrite", "quiet"),
}
"""Headings of ``--help`` in their order; a field that is not named here is listed under Output."""
METAVARS = {
    "hdu": "N|NAME",
    "weight": "FILE",
    "mask": "FILE",
    "mask_bits": "N",
    "prior": "FILE",
    "satur_level": "VALUE",
    "gain": "VALUE",
    "model": "NAME|FILE",
    "window": "px",
    "halo": "px",
    "stride": "px",
    "fwhm": "px",
    "thresh": "VALUE",
    "minarea": "px",
    "dynamics": "VALUE",
    "mincont": "FRACTION",
    "mag_zeropoint": "MAG",
    "back_size": "px",
    "back_filter": "N",
    "tile": "px",
    "workers": "N",
    "scheduler": "ADDRESS",
    "cluster": "FILE",
    "memory_limit": "GiB",
    "tile_timeout": "s",
    "log_file": "FILE",
    "scratch": "FOLDER",
}
"""Units or kinds of values, as ``--help`` shows them; a choice shows its values, a switch nothing."""
WEIGHTS = Path(__file__).parents[1] / "networks/weights"
MAX_HEADER_BYTES = 1 << 20

Command = Callable[..., Any]
Quiet = Annotated[
    bool,
    typer.Option(
        metavar="", show_default=False, help=str(RunSpec.model_fields["quiet"].description)
    ),
]

IMAGE_AND_OUT = (
    "IMAGE... OUT.zarr",
    "Image (one file, or one for each band), then the output store.",
)
"""Name and help of the paths of a run."""

_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML file of options; flags take precedence."),
    ],
)


def with_run_options(
    command: Command,
    left_out: Sequence[str] = (),
    paths: tuple[str, str] = IMAGE_AND_OUT,
) -> Command:
    """Add all options of a run to a command.

    Parameters
    ----------
    command : callable
        Takes ``options``, the mapping of the given options, and its own parameters.
    left_out : sequence of str
        Options that the command does not use.
    paths : (str, str)
        Name and help of the paths in ``--help``: the images, then the output.

    Returns
    -------
    callable
        A command for ``typer``, with a signature made from the spec.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        own_values = {name: values.pop(name) for name in list(values) if name in own}
        return command(**own_values, options=collect_options(**values))

    own = _own_parameters(command)
    unused = ("image", "out", *left_out)
    options = [_make_option(name, panel) for name, panel in _list_fields() if name not in unused]
    signature = inspect.Signature([_make_paths(*paths), *own.values(), _CONFIG, *options])
    vars(wrapped).update(__signature__=signature, __annotations__={})
    return wrapped


def collect_options(
    paths: Sequence[str] | None = None, config: str | None = None, **values: Any
) -> dict[str, Any]:
    """Return the given options of the YAML file, the paths and the flags; the later take precedence.

    Parameters
    ----------
    paths : sequence of str, optional
        ``IMAGE... OUT``: the last is the output; a single one is an image.
    config : str, optional
        YAML file of options.
    **values
        Flags; None means "not given".

    Examples
    --------
    >>> collect_options(["g.fits", "r.fits", "out.zarr"], hdu="2", tile=None)
    {'image': ('g.fits', 'r.fits'), 'out': 'out.zarr', 'hdu': 2}
    """
    options = {} if config is None else read_options(config)
    options.update(split_paths(paths or ()))
    options.update(
        {name: _parse(name, value) for name, value in values.items() if value is not None}
    )
    return options


def split_paths(paths: Sequence[str]) -> dict[str, Any]:
    """Return the images and the output of ``IMAGE... OUT``; a single path is an image."""
    if not paths:
        return {}
    if len(paths) == 1:
        return {"image": (paths[0],)}
    return {"image": tuple(paths[:-1]), "out": paths[-1]}


def complete_spec(options: Mapping[str, Any], usage: str) -> RunSpec:
    """Check the options of a run, and return their spec.

    Raises
    ------
    SpecError
        If an option is wrong, or the image or the output is missing; the message then shows ``usage``.
    """
    missing = [name.upper() for name in ("image", "out") if not options.get(name)]
    if missing:
        raise SpecError(f"{' and '.join(missing)} not given: {usage}")
    return make_spec(**options)


def _own_parameters(command: Command) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(command, eval_str=True).parameters
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in parameters.items()
        if name != "options"
    }


def _make_paths(metavar: str, help: str) -> inspect.Parameter:
    return inspect.Parameter(
        "paths",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[list[str] | None, typer.Argument(metavar=metavar, help=help)],
    )


def _list_fields() -> list[tuple[str, str]]:
    """Return name and panel of each field of the spec, in the order of the panels."""
    placed = [(name, panel) for panel, names in PANELS.items() for name in names]
    rest = set(RunSpec.model_fields) - {name for name, _ in placed}
    return placed + [(name, "Output") for name in RunSpec.model_fields if name in rest]


def _parse(name: str, value: Any) -> Any:
    if name == "hdu" and value.lstrip("-").isdigit():
        return int(value)
    if name == "cluster":
        return read_options(value)
    return value


def _make_option(name: str, panel: str) -> inspect.Parameter:
    field = RunSpec.model_fields[name]
    kind: Any = _flag_type(name, field.annotation) | None
    option = typer.Option(
        help=" ".join(filter(None, (field.description, _describe_default(name, field)))),
        rich_help_panel=panel,
        metavar=_describe_values(name, field),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _flag_type(name: str, annotation: Any) -> Any:
    """Return the type of a flag: that of the field without None, or str for a value to be parsed."""
    if name in ("hdu", "cluster"):
        return str
    if get_origin(annotation) is Literal or isinstance(annotation, type):
        return annotation
    kinds = (kind for kind in get_args(annotation) if kind is not type(None))
    return functools.reduce(operator.or_, kinds)


def _describe_values(name: str, field: FieldInfo) -> str | None:
    """Return the unit or kind of the values and their limits.

    The text is empty for a switch. It is None for a choice, whose values typer shows.
    """
    if field.annotation is bool:
        return ""
    return " ".join(filter(None, (METAVARS.get(name), _describe_limits(field)))) or None


def _describe_limits(field: FieldInfo) -> str:
    """Return the limits of a field in typer's notation, ``[64<=x<=8192]``, without the limit of int64."""
    limits = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(limit, name, 2**63) != 2**63
    }
    if "le" in limits:
        lower = f"{limits['ge']:g}<=" if "ge" in limits else f"{limits['gt']:g}<"
        return f"[{lower}x<={limits['le']:g}]"
    if "ge" in limits:
        return f"[x>={limits['ge']:g}]"
    return f"[x>{limits['gt']:g}]" if "gt" in limits else ""


def _describe_default(name: str, field: FieldInfo) -> str:
    """Return the default in the form that typer uses; the backslash prevents that rich reads it as markup."""
    if field.default not in (None, False):
        return rf"\[default: {field.default}]"
    value = _read_model_defaults().get(name)
    return "" if value is None else rf"\[default: the model's, {value:g}]"


@functools.cache
def _read_model_defaults() -> dict[str, Any]:
    """Return the separation options in the header of the default model.

    Notes
    -----
    `fcnpipe.networks.read_header` returns the same values, but imports numpy, and ``--help`` must be fast.
    If the file cannot be read, the help texts do not show the values.
    """
    path = WEIGHTS / f"{RunSpec.model_fields['model'].default}.safetensors"
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(size, MAX_HEADER_BYTES)))["__metadata__"]
        defaults: dict[str, Any] = json.loads(metadata["fcnpipe"])["defaults"]
    except (OSError, ValueError, KeyError):
        return {}
    return defaults
