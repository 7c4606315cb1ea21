"""The fields of :class:`fcnpipe.core.spec.RunSpec` as options of a command, and back again.

Nothing is said twice: name, type and help of an option come from the field, so that a new field is
a new option. Every default is None here, which means "not given": the YAML file then has its say,
and after it the spec.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import RunSpec, make_spec, read_options

PANELS = {
    "Image": ("hdu", "weight", "weight_type", "mask", "mask_bits", "prior", "satur_level", "gain"),
    "Network": ("model", "halo", "stride", "window", "thresh", "fwhm", "device", "precision"),
    "Sources": ("minarea", "mincont", "dynamics", "mag_zeropoint"),
    "Background": ("back_size", "back_filter"),
    "Running": (
        "tile",
        "engine",
        "workers",
        "scheduler",
        "cluster",
        "memory_limit",
        "tile_timeout",
        "log_file",
    ),
}
"""Headings of ``--help``; a field that is not named here stands under Output."""

Command = Callable[..., Any]


def with_run_options(command: Command, left_out: Sequence[str] = ()) -> Command:
    """Give a command all options of a run.

    Parameters
    ----------
    command : callable
        Takes ``options``, the mapping of what was given.
    left_out : sequence of str
        Options that the command has no use for.

    Returns
    -------
    callable
        For ``typer``: its signature is made from the spec.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        own = {name: values.pop(name) for name in list(values) if name in kept}
        return command(**own, options=collect_options(**values))

    kept = _own_parameters(command)
    unused = (*_PLACED, *left_out)
    made = [_parameter(n, f) for n, f in RunSpec.model_fields.items() if n not in unused]
    signature = inspect.Signature([_PATHS, *kept.values(), _CONFIG, *made])
    vars(wrapped).update(__signature__=signature, __annotations__={})
    return wrapped


def collect_options(
    paths: Sequence[str] | None = None, config: str | None = None, **values: Any
) -> dict[str, Any]:
    """Give what was given: the paths, the YAML file and the flags, the later winning.

    Parameters
    ----------
    paths : sequence of str, optional
        ``IMAGE... OUT``: the last is the output; a single one is an image.
    config : str, optional
        YAML file of options.
    **values
        Flags; None is "not given".

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
    """Give image and output of ``IMAGE... OUT``; a single path is an image."""
    if not paths:
        return {}
    if len(paths) == 1:
        return {"image": (paths[0],)}
    return {"image": tuple(paths[:-1]), "out": paths[-1]}


def complete_spec(options: Mapping[str, Any], usage: str) -> RunSpec:
    """Check options and give a spec.

    Raises
    ------
    SpecError
        If an option is wrong, or the image or the output is missing; ``usage`` is then shown.
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


def _parse(name: str, value: Any) -> Any:
    if name == "hdu" and value.lstrip("-").isdigit():
        return int(value)
    if name == "cluster":
        return read_options(value)
    return value


METAVARS = {
    "hdu": "N|NAME",
    "weight": "FILE",
    "mask": "FILE",
    "prior": "FILE",
    "cluster": "FILE",
    "model": "NAME|FILE",
    "scheduler": "ADDRESS",
    "memory_limit": "GIB",
    "tile_timeout": "SECONDS",
    "scratch": "FOLDER",
    "log_file": "FILE",
}
_PLACED = ("image", "out")
_PATHS = inspect.Parameter(
    "paths",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... OUT.zarr",
            help="Image (one file, or one for each band), then the output.",
        ),
    ],
)
_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML file of options; flags win.")
    ],
)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default = "" if field.default in (None, False) else f" Default: {field.default}."
    option = typer.Option(
        help=f"{field.description}{default}",
        rich_help_panel=next((title for title, names in PANELS.items() if name in names), "Output"),
        metavar=METAVARS.get(name),
    )
    kind: Any = _flag_type(name, field.annotation) | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _flag_type(name: str, annotation: Any) -> Any:
    """Give what the command line takes for a field: its type without None, or text to be parsed."""
    if name in ("hdu", "cluster"):
        return str
    if get_origin(annotation) is Literal or isinstance(annotation, type):
        return annotation
    kinds = (kind for kind in get_args(annotation) if kind is not type(None))
    return functools.reduce(operator.or_, kinds)
