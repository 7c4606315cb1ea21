"""RunSpec: the options of a run, shared by the command line, YAML files, the Python API and Prefect."""

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
"""Options that change how a run is executed, never its result; they are not part of the run key."""
MODEL_SUFFIXES = (".safetensors", ".pt2")
"""Suffixes of model files; any other model name is that of a bundled model."""
SOURCE_OPTIONS = ("thresh", "minarea", "mincont", "dynamics", "gain", "mag_zeropoint")
"""Options of source detection, None if not set; a prediction does not use them."""
_NAME_OPTIONS = (
    "image", "out", "model", "weight", "mask", "prior", "scheduler", "scratch", "log_file"
)  # fmt: skip
"""Options that hold the name of a file, folder or model, a URL, or the address of a scheduler."""
_REQUIRED_PARTNERS = {"stride": "halo", "mask_bits": "mask", "weight_type": "weight"}
"""Options that have an effect only together with another option."""


class RunSpec(BaseModel):
    """All options of a run.

    ``None`` stands for the value of the model's header, of the image's header, or for a default that
    depends on the machine; the description of each option states which.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: tuple[str, ...] = Field(
        description="Image files or URLs; several files are the bands of one image."
    )
    out: str = Field(description="Output store, OUT.zarr.")

    model: str = Field(
        "default",
        description="Name of a bundled model, a model file, or 'none' for a matched filter.",
    )
    hdu: int | str | None = Field(
        None, description="Number or name of the HDU; the first with an image by default."
    )
    weight: str | None = Field(
        None,
        description="Weight, variance or rms map of the image's shape; FILE[HDU] selects an HDU.",
    )
    weight_type: Literal["weight", "variance", "rms"] = Field(
        "weight",
        description="Quantity in the weight map: relative weight, variance or rms of the noise.",
    )
    mask: str | None = Field(
        None,
        description="Mask or data-quality map, FILE or FILE[HDU]; pixels that are not 0 are bad.",
    )
    mask_bits: int | None = Field(
        None,
        ge=1,
        lt=2**63,
        description="Sum of the mask bits that mark a bad pixel; all by default.",
    )
    prior: str | None = Field(
        None, description="Prior map of the image's shape, for networks that take one as input."
    )

    halo: int | None = Field(
        None,
        ge=0,
        description="Declared halo in px for a model that cannot be analysed; the store records it as "
        "unproven.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Declared stride in px for a model that cannot be analysed; 1 by default.",
    )
    window: int = Field(
        1024, ge=64, le=8192, description="Edge of the network's window in px, without the halo."
    )
    tile: int | None = Field(
        None,
        ge=64,
        le=16384,
        description="Edge of a tile in px, a multiple of the window; about 2048 by default.",
    )
    thresh: float | None = Field(
        None, gt=0, description="Detection threshold: a probability; for model 'none' in sigma."
    )
    minarea: int | None = Field(
        None, ge=1, lt=2**63, description="Minimum number of pixels of a source."
    )
    mincont: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum fraction of the footprint's flux in a branch that becomes a source.",
    )
    dynamics: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum height of a peak above its saddle, in units of the elevation map.",
    )
    fwhm: float = Field(
        3.0, gt=0.5, le=20, description="FWHM in px of the matched filter of model 'none'."
    )
    back_size: int = Field(
        64, ge=8, le=1024, description="Edge of a mesh cell of the background in px."
    )
    back_filter: int = Field(
        3, ge=1, le=15, description="Size of the median filter over the background mesh, in cells."
    )
    satur_level: float | None = Field(
        None,
        description="Value at or above which a pixel is saturated; the header's SATURATE by default.",
    )
    gain: float | None = Field(
        None,
        gt=0,
        description="Electrons per image unit, for flux errors; the header's GAIN by default. "
        "Without a gain, flux errors contain the sky noise only.",
    )
    mag_zeropoint: float | None = Field(
        None, description="Magnitude zero point; adds magnitudes to the catalogue."
    )

    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Arithmetic of the network. auto uses float32 for models that restore images; else "
        "bfloat16 on GPUs, int8 on CPUs with VNNI, bfloat16 or float32 on other CPUs. With --scheduler "
        "the choice is made from the workers' CPUs.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the network; auto uses a GPU if there is one."
    )
    keep_image: bool = Field(False, description="Copy the science image into the store.")

    engine: Literal["serial", "threads", "dask"] = Field(
        "threads",
        description="Execution of the tiles: one by one, in threads, or in Dask processes.",
    )
    scheduler: str | None = Field(
        None, description="Address of a running Dask scheduler whose workers process the tiles."
    )
    workers: int | None = Field(
        None, ge=1, description="Number of threads or processes; one per core by default."
    )
    cluster: dict[str, Any] | None = Field(
        None,
        description="Dask cluster to start: cluster_class, cluster_kwargs, adapt_kwargs, resources, "
        "wait_seconds. With --scheduler only the last two apply.",
    )
    memory_limit: float | None = Field(
        None,
        gt=0,
        description="Memory in GiB that a process may use; the machine's memory, or a worker's share of "
        "it, by default.",
    )
    tile_timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds after which a task on a tile counts as failed; no limit by default.",
    )
    scratch: str | None = Field(
        None,
        description="Local folder in which a store with a URL as OUT is built; the current folder by "
        "default.",
    )
    log_file: str | None = Field(
        None, description="File to which each event of the run is appended as a JSON line."
    )
    overwrite: bool = Field(
        False,
        description="Replace an existing OUT. After an interruption the same command resumes the new run.",
    )
    quiet: bool = Field(False, description="Show no progress, only errors.")

    @property
    def on_dask(self) -> bool:
        """Whether Dask workers process the tiles."""
        return self.engine == "dask" or bool(self.scheduler or self.cluster)

    @property
    def declared(self) -> tuple[int, int] | None:
        """Halo and stride as declared by the user, px; None if the model is to be analysed."""
        return None if self.halo is None else (self.halo, self.stride or 1)

    def result_options(self) -> dict[str, Any]:
        """Return the options that determine the result, JSON-ready, for the run key."""
        return self.model_dump(
            mode="json", exclude=set(RUNTIME_OPTIONS) | {"image", "weight", "mask", "prior"}
        )

    def with_absolute_paths(self) -> RunSpec:
        """Return the spec with absolute input paths, since workers may run in another folder."""
        names = ("weight", "mask", "prior")
        maps = {name: make_absolute(path) for name in names if (path := getattr(self, name))}
        image, model = tuple(map(make_absolute, self.image)), self.model
        model = make_absolute(model) if Path(model).suffix in MODEL_SUFFIXES else model
        return self.model_copy(update={"image": image, "model": model, **maps})

    def without_sources(self) -> RunSpec:
        """Return the spec of a prediction, with the options of source detection unset."""
        return self.model_copy(update=dict.fromkeys(SOURCE_OPTIONS))


def make_spec(**options: Any) -> RunSpec:
    """Check options and return them as a spec.

    Raises
    ------
    SpecError
        If an option is unknown or wrong. The message is one line with the option, its value and the limit.
    """
    try:
        spec = RunSpec(**options)
    except ValidationError as error:
        raise SpecError(_describe_validation_error(error)) from None
    for name in _NAME_OPTIONS:
        value = getattr(spec, name)
        for path in value if isinstance(value, tuple) else () if value is None else (value,):
            _check_name(name, path)
    if Path(spec.out).name in ("", ".."):
        raise SpecError(f"option out={spec.out!r} is not the name of a store: use OUT.zarr")
    for name, partner in _REQUIRED_PARTNERS.items():
        value = getattr(spec, name)
        if value != RunSpec.model_fields[name].default and getattr(spec, partner) is None:
            raise SpecError(
                f"option {name}={value} has no effect without option {partner}: use both, or neither"
            )
    return spec


def drop_unpaired(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those that have no effect because their partner option is missing.

    Examples
    --------
    >>> drop_unpaired({"mask_bits": 4, "weight_type": "rms", "weight": "w.fits"})
    {'weight_type': 'rms', 'weight': 'w.fits'}
    """
    unpaired = {name for name, other in _REQUIRED_PARTNERS.items() if options.get(other) is None}
    return {name: value for name, value in options.items() if name not in unpaired}


def _check_name(name: str, path: str) -> None:
    if not path:
        raise SpecError(f"option {name}={path!r} is empty: use a name, or leave the option out")
    check_url(path)
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in path):
        raise SpecError(f"{path!r} is not UTF-8, which a store requires: rename the file")


def load_spec(path: str | Path, **overrides: Any) -> RunSpec:
    """Read a YAML file of options; ``overrides`` take precedence.

    Raises
    ------
    SpecError
        If the file is missing or does not hold a mapping, or if an option is wrong.
    """
    return make_spec(**{**read_options(path), **overrides})


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping of options.

    Raises
    ------
    SpecError
        If the file is missing or does not hold a mapping.
    """
    try:
        options = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"config {path} cannot be read: {describe_read_error(error)}") from None
    if not isinstance(options, dict):
        raise SpecError(
            f"config {path} holds a {type(options).__name__}, not a mapping of options: "
            "write 'option: value' lines"
        )
    if wrong := [name for name in options if not isinstance(name, str)]:
        raise SpecError(
            f"config {path}: {wrong[0]!r} is not an option: write 'option: value' lines"
        )
    if isinstance(options.get("image"), str):
        options["image"] = (options["image"],)
    return options


def describe_read_error(error: Exception) -> str:
    """Return the reason in one line why a text file cannot be read.

    Examples
    --------
    >>> try:
    ...     yaml.safe_load("a: [")
    ... except yaml.YAMLError as error:
    ...     describe_read_error(error)
    "line 1: expected the node content, but found '<stream end>'"
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]


def _describe_validation_error(error: ValidationError) -> str:
    first = error.errors()[0]
    name, reason = str(first["loc"][0]), first["msg"]
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name.replace("-", "_"), RunSpec.model_fields, 1)
        reason = f"no such option{f'; did you mean {near[0]}?' if near else ''}"
    if first["type"] == "tuple_type":
        reason = "use a name, or a list of names"
    return f"option {name}={first.get('input')!r}: {reason}"
