"""One specification of a run, behind the flags, the YAML file, the Python call and Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fcnpipe.core.errors import SpecError
from fcnpipe.core.paths import check_url, make_absolute

RUNTIME_OPTIONS = frozenset(
    {
        "engine",
        "scheduler",
        "workers",
        "tile",
        "overwrite",
        "quiet",
        "memory_limit",
        "tile_timeout",
        "cluster",
        "out",
        "scratch",
        "log_file",
    }
)
"""Options that change how a run is done, never what it gives; left out of the run key."""
MODEL_SUFFIXES = (".safetensors", ".pt2")
"""Of models that are files; any other name is that of one which comes with fcnpipe."""
_NAMES = ("image", "out", "model", "weight", "mask", "prior", "scheduler", "scratch", "log_file")
"""Options that are names of files, folders or addresses."""
_PARTNERS = {"stride": "halo", "mask_bits": "mask", "weight_type": "weight"}
"""Options that say nothing without another."""
SOURCE_OPTIONS = ("thresh", "minarea", "mincont", "dynamics", "gain", "mag_zeropoint")
"""Options of sources, None if not given; a run that finds none has no use for them."""


class RunSpec(BaseModel):
    """Everything that decides a run.

    ``None`` means "what the model's header, or the image, says".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: tuple[str, ...] = Field(
        description="Image file(s); several files are the bands of one image."
    )
    out: str = Field(description="Output store, OUT.zarr.")

    model: str = Field(
        "default", description="Bundled name, bundle file, or 'none' for a matched filter."
    )
    hdu: int | str | None = Field(
        None, description="HDU number or name; the first with an image if not given."
    )
    weight: str | None = Field(
        None,
        description="Weight, variance or rms map of the image's shape; FILE[HDU] names an HDU.",
    )
    weight_type: Literal["weight", "variance", "rms"] = Field(
        "weight", description="What --weight holds."
    )
    mask: str | None = Field(
        None, description="Mask or data-quality map, FILE or FILE[HDU]; non-zero is bad."
    )
    mask_bits: int | None = Field(
        None, ge=1, lt=2**63, description="Only these bits of the mask are bad; all if not given."
    )
    prior: str | None = Field(
        None, description="Map of the image's shape that the network looks at too, if it takes one."
    )

    halo: int | None = Field(
        None,
        ge=0,
        description="Halo of a .pt2 model that cannot be analysed, px: your word, marked as unproven.",
    )
    stride: int | None = Field(
        None, ge=1, description="Total subsampling of that model, px; 1 if not given."
    )
    window: int = Field(1024, ge=64, le=8192, description="Core edge of a network window, px.")
    tile: int | None = Field(
        None, ge=64, le=16384, description="Core edge of a tile, px: a multiple of the window."
    )
    thresh: float | None = Field(
        None, gt=0, description="Probability (network) or sigma (model none)."
    )
    minarea: int | None = Field(
        None, ge=1, lt=2**63, description="Least number of pixels of a source."
    )
    mincont: float | None = Field(
        None, ge=0, le=1, description="Least part of a footprint's flux that a branch needs."
    )
    dynamics: float | None = Field(
        None, ge=0, le=1, description="Least height of a peak above its saddle, of elevation."
    )
    fwhm: float = Field(
        3.0, gt=0.5, le=20, description="FWHM of the matched filter of model none, px."
    )
    back_size: int = Field(64, ge=8, le=1024, description="Mesh cell of the background, px.")
    back_filter: int = Field(3, ge=1, le=15, description="Median filter of the mesh, cells.")
    satur_level: float | None = Field(
        None, description="Pixels at or above this are saturated (else SATURATE)."
    )
    gain: float | None = Field(
        None, gt=0, description="Electrons per unit, for flux errors (else GAIN; none: sky only)."
    )
    mag_zeropoint: float | None = Field(None, description="Adds magnitudes to the catalogue.")

    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Arithmetic of the network; auto: the fastest that hardware and model have.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the network runs.")
    keep_image: bool = Field(False, description="Copy the science image into the store.")

    engine: Literal["serial", "threads", "dask"] = Field(
        "threads", description="What runs the tiles."
    )
    scheduler: str | None = Field(None, description="Address of a running Dask scheduler.")
    workers: int | None = Field(None, ge=1, description="Workers; one for each core if not given.")
    cluster: dict[str, Any] | None = Field(
        None,
        description="cluster_class, cluster_kwargs, adapt_kwargs, resources, wait_seconds; for a "
        "scheduler the last two.",
    )
    memory_limit: float | None = Field(
        None, gt=0, description="GiB a process may take; the machine's share if not given."
    )
    tile_timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds for a task on a tile, then it has failed; no limit if not given.",
    )
    scratch: str | None = Field(
        None,
        description="Folder where a store is made whose OUT is a URL; the current one if not given.",
    )
    log_file: str | None = Field(
        None, description="File that a JSON line is added to for each event; none if not given."
    )
    overwrite: bool = Field(
        False,
        description="Start afresh, whatever OUT holds; the same again takes up what that has left.",
    )
    quiet: bool = Field(False, description="No progress, errors only.")

    @property
    def on_dask(self) -> bool:
        """Whether workers of Dask do the tasks."""
        return self.engine == "dask" or bool(self.scheduler or self.cluster)

    @property
    def declared(self) -> tuple[int, int] | None:
        """Halo and stride that the user vouches for; None: the model is analysed."""
        return None if self.halo is None else (self.halo, self.stride or 1)

    def science(self) -> dict[str, Any]:
        """Give the options that decide the result, JSON-ready, for the run key."""
        return self.model_dump(
            mode="json", exclude=set(RUNTIME_OPTIONS) | {"image", "weight", "mask", "prior"}
        )

    def anchored(self) -> RunSpec:
        """Give the spec with inputs whose names mean the same in any folder: workers may be in another."""
        names = ("weight", "mask", "prior")
        maps = {name: make_absolute(path) for name in names if (path := getattr(self, name))}
        image, model = tuple(map(make_absolute, self.image)), self.model
        model = make_absolute(model) if Path(model).suffix in MODEL_SUFFIXES else model
        return self.model_copy(update={"image": image, "model": model, **maps})

    def without_sources(self) -> RunSpec:
        """Give the spec of a run that finds no sources: what only they need is not said."""
        return self.model_copy(update=dict.fromkeys(SOURCE_OPTIONS))


def make_spec(**options: Any) -> RunSpec:
    """Check options and give a spec.

    Raises
    ------
    SpecError
        One line that names the option, the value and the limit.
    """
    try:
        spec = RunSpec(**options)
    except ValidationError as error:
        raise SpecError(_explain(error)) from None
    for name in _NAMES:
        given = getattr(spec, name)
        for path in given if isinstance(given, tuple) else () if given is None else (given,):
            _check_name(name, path)
    if Path(spec.out).name in ("", ".."):
        raise SpecError(f"option out={spec.out!r}: it names no store: give OUT.zarr")
    for name, partner in _PARTNERS.items():
        value = getattr(spec, name)
        if value != RunSpec.model_fields[name].default and getattr(spec, partner) is None:
            raise SpecError(
                f"option {name}={value}: it goes with a {partner}: give both, or neither"
            )
    return spec


def without_idle(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give options without those that say nothing, since what they go with is missing.

    Examples
    --------
    >>> without_idle({"mask_bits": 4, "weight_type": "rms", "weight": "w.fits"})
    {'weight_type': 'rms', 'weight': 'w.fits'}
    """
    idle = {name for name, other in _PARTNERS.items() if options.get(other) is None}
    return {name: value for name, value in options.items() if name not in idle}


def _check_name(name: str, path: str) -> None:
    if not path:
        raise SpecError(f"option {name}={path!r}: it names nothing: give a name, or leave it out")
    check_url(path)
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in path):
        raise SpecError(f"{path!r}: a name that is not UTF-8, as stores are: rename the file")


def load_spec(path: str | Path, **overrides: Any) -> RunSpec:
    """Read a YAML file of options; ``overrides`` win.

    Raises
    ------
    SpecError
        If the file is missing, is not a mapping, or an option is wrong.
    """
    return make_spec(**{**read_options(path), **overrides})


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping of options.

    Raises
    ------
    SpecError
        If the file is missing or is not a mapping.
    """
    try:
        options = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"config {path} cannot be read: {say_reason(error)}") from None
    if not isinstance(options, dict):
        raise SpecError(
            f"config {path} holds {type(options).__name__}, not a mapping of options: write 'option: value' lines"
        )
    if strange := [name for name in options if not isinstance(name, str)]:
        raise SpecError(f"config {path}: {strange[0]!r} is no option: write 'option: value' lines")
    if isinstance(options.get("image"), str):
        options["image"] = (options["image"],)
    return options


def say_reason(error: Exception) -> str:
    """Say in one line why a file of text cannot be read.

    Examples
    --------
    >>> try:
    ...     yaml.safe_load("a: [")
    ... except yaml.YAMLError as error:
    ...     say_reason(error)
    "line 1: expected the node content, but found '<stream end>'"
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name, what = str(first["loc"][0]), first["msg"]
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name.replace("-", "_"), RunSpec.model_fields, 1)
        what = f"no such option{f'; did you mean {near[0]}?' if near else ''}"
    if first["type"] == "tuple_type":
        what = "give a name, or a list of names"
    return f"option {name}={first.get('input')!r}: {what}"
