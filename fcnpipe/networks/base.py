"""Interface of a model to the pipeline: header, reach, certificate, and the maps that it predicts.

Nothing here imports torch: neither the plan of a run nor the matched filter needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import asinh, gcd, sinh
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import Box, round_up
from fcnpipe.core.records import OutputMap

ELEVATION_SIGMAS = 16.0
"""Scale of a matched filter's elevation, asinh(S/N) / 16: an elevation of 1 is an S/N of 4.4 million."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the receptive field of an output pixel extends on each side, and the strides.

    ::

                 top
                  |
        left -- pixel -- right        maximum over the stride_y x stride_x output pixels of a cell,
                  |                   whose receptive fields differ
                bottom

    Attributes
    ----------
    top, bottom, left, right : int
        Input pixels read beyond the output pixel, px.
    stride_y, stride_x : int
        Total subsampling, px: shifts of the image by multiples of it commute with the network.
    cell : int, optional
        Largest number of pixels read beyond a whole cell, px: what a core made of whole cells needs.
        None if it is not known.
    """

    top: int
    bottom: int
    left: int
    right: int
    stride_y: int = 1
    stride_x: int = 1
    cell: int | None = None

    @property
    def stride(self) -> int:
        """One stride for both axes, px: the least common multiple of the two."""
        return self.stride_y * self.stride_x // gcd(self.stride_y, self.stride_x)

    @property
    def furthest(self) -> int:
        """Maximum of the reach over the four sides, px."""
        return max(self.top, self.bottom, self.left, self.right)

    @property
    def halo(self) -> int:
        """The furthest reach rounded up to a multiple of the stride, px."""
        return round_up(self.furthest, self.stride)

    @property
    def minimum_halo(self) -> int:
        """Smallest halo that is exact for cores made of whole cells, px.

        The output pixel that reads furthest to the left is seldom the first of its cell, so this is
        often one stride less than `halo`: 48 px for a U-Net of depth 3, whose halo is 56 px.
        """
        return round_up(self.furthest if self.cell is None else self.cell, self.stride)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof that a network can be tiled exactly with its halo.

    Attributes
    ----------
    kind : str
        ``proven``: analysed, probed with NaNs, and compared tile versus whole. ``declared``: stated
        by the user, unproven.
    reach : Reach
        The reach that was proven or declared.
    halo : int
        Halo of the proof, px: the smallest one; any larger one is exact too.
    error : float, optional
        Maximum difference of the outputs between tiles and the whole image, in float64. None if it
        was not measured.
    error_short : float
        The same with a halo that is one stride shorter, which shows that the comparison can fail; 0
        if there is no halo to shorten.
    probed : bool
        Whether NaNs showed exactly this reach, over all phases of the stride. They never showed
        more; they show less where the network routes values by their size (unpooling).
    torch : str
        Version of torch that ran the proof.
    """

    kind: Literal["proven", "declared"]
    reach: Reach
    halo: int
    error: float | None = None
    error_short: float = 0.0
    probed: bool = False
    torch: str = ""


_IMAGE_ROLES = ("restored", "component:")
"""Start of the roles of outputs that are images in the units of the input."""
_ARRAY_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)
_RESERVED_NAMES = frozenset(
    {"label", "science", "flags", "segments", "wcs", "class", "band", "y", "x"}
)
"""Names of the other arrays of a store."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ExtraChannel = Literal["position_y", "position_x", "mask", "prior"]
"""Channel of a network's input in addition to the bands.

``position_y`` and ``position_x`` run from -1 at the first pixel of the image to 1 at the last.
``mask`` is 1 where a pixel is bad, else 0. ``prior`` is a map supplied by the user, 0 where it is NaN.
"""


class Scaling(_Record):
    """Scaling of the pixels for the network.

    ``asinh``: ``asinh(S/N / softening)``, for images of the sky. ``linear``: ``(value - offset) / scale``
    of the stored pixel, for images whose sky and noise are not measured, such as micrographs.
    """

    kind: Literal["asinh", "linear"] = "asinh"
    softening: float = Field(
        default=1.0, gt=0, description="S/N at which the scaling turns from linear to logarithmic."
    )
    offset: float = Field(default=0.0, description="Linear: the value that is scaled to 0.")
    scale: float = Field(
        default=1.0, gt=0, description="Linear: the difference that is scaled to 1."
    )


class Output(_Record):
    """One output channel of the network.

    An output of role ``restored`` is an image in the units of the input, and one of role
    ``component:NAME`` is such an image without the sky. All others are in [0, 1].
    """

    name: str = Field(min_length=1)
    role: str = Field(
        pattern=r"^(source|elevation|centre|topography|boundary|restored|class:.+|component:.+)$"
    )
    activation: Literal["sigmoid", "softmax", "linear"] = Field(
        default="sigmoid",
        description="Function applied to the channel; softmax is taken over all channels that name "
        "it. Default for an image: linear.",
    )
    scaled: bool = Field(
        default=False,
        description="Whether an image has the scaling of the input (true), or only its unit, S/N (false). "
        "Default: true for a restored image, false for a component, because components add up.",
    )
    band: int = Field(
        default=0, ge=0, description="Band of the input whose unit, sky and noise an image has."
    )

    @model_validator(mode="before")
    @classmethod
    def _set_image_defaults(cls, value: Any) -> Any:
        role = str(value.get("role", "")) if isinstance(value, Mapping) else ""
        if not role.startswith(_IMAGE_ROLES):
            return value
        return {"activation": "linear", "scaled": role == "restored", **value}

    @property
    def is_image(self) -> bool:
        """Whether the output is an image in the units of the input."""
        return self.role.startswith(_IMAGE_ROLES)

    @property
    def is_16_bit(self) -> bool:
        """Whether an output in [0, 1] is stored as uint16 (steps of 1/65535), not as uint8 (steps of 1/255)."""
        return self.role in ("elevation", "topography")

    @property
    def class_name(self) -> str | None:
        """Name of the class whose probability the output is; None if it is not a class."""
        return (
            self.role.removeprefix("class:") if self.role.startswith(("source", "class:")) else None
        )


class Share(_Record):
    """Contribution of an output to the elevation: ``weight * max(output - floor, 0) / (1 - floor)``."""

    weight: float
    floor: float = Field(
        default=0.0, ge=0, lt=1, description="Value of the output below which it adds nothing."
    )


class Defaults(_Record):
    """Separation options of the model, used where the user sets none."""

    thresh: float = Field(
        default=0.5, gt=0, description="Probability, or sigma for a matched filter."
    )
    dynamics: float = Field(
        default=0.02, ge=0, description="Minimum height of a peak above its saddle, in elevation."
    )
    minarea: int = Field(default=5, ge=1, description="Minimum number of pixels of a source.")
    mincont: float = Field(
        default=0.0, ge=0, le=1, description="Minimum fraction of a footprint's flux in a branch."
    )
    minpeak: float = Field(default=0.0, ge=0, le=1, description="Minimum elevation of a peak.")
    broad: int | None = Field(
        default=None,
        ge=1,
        description="Number of pixels from which a source needs no minpeak; None: every source needs it.",
    )
    extended: int | None = Field(
        default=None,
        ge=1,
        description="Number of pixels above its saddle from which a branch needs extended_dynamics; "
        "None: no branch needs it.",
    )
    extended_dynamics: float = Field(
        default=0.0, ge=0, le=1, description="Minimum dynamics of an extended branch."
    )


class ModelHeader(_Record):
    """Description of a model without its weights, stored as JSON in the metadata of its file.

    The probability map has the class of role ``source`` first, then each ``class:NAME`` in order.
    The elevation map is the sum of the shares of the outputs, clipped to [0, 1]. A model without an
    output of role ``source`` or without an elevation cannot segment, but its outputs can be predicted.
    """

    name: str = Field(min_length=1)
    version: str = "0"
    architecture: str = Field(
        min_length=1, description="Module of fcnpipe/networks/architectures with the class."
    )
    arguments: dict[str, Any] = Field(default_factory=dict)
    bands: int = Field(default=1, ge=0, description="Bands of the input; 0: any number.")
    extra: tuple[ExtraChannel, ...] = Field(
        default=(), description="Channels of the input after the bands."
    )
    scaling: Scaling = Scaling()
    outputs: tuple[Output, ...] = Field(min_length=1)
    elevation: dict[str, Share] = Field(
        default_factory=dict,
        description="Share of each output in the elevation; a number is its weight.",
    )
    detect_on: Literal["probability", "elevation"] = "probability"
    thresh_unit: Literal["map", "sigma"] = Field(
        default="map", description="Unit of the threshold."
    )
    defaults: Defaults = Defaults()
    reach: Reach
    bytes_per_pixel: int = Field(
        default=64,
        ge=1,
        description="Peak memory of the arrays of a forward pass, for each pixel read.",
    )
    certificate: Certificate | None = None
    minimum_size: tuple[int, int] = Field(
        default=(1, 1),
        exclude=True,
        description="Smallest image (y, x) that an exported program states to accept, px; not stored in files.",
    )
    ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="Minimum and maximum value of each layer, for int8; empty: not measured.",
    )
    recipe: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)
    licence: str = ""

    @field_validator("elevation", mode="before")
    @classmethod
    def _expand_weights(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {k: {"weight": v} if isinstance(v, (int, float)) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _check_consistency(self) -> ModelHeader:
        names = [output.name for output in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError(f"outputs {names} share a name; use a different one for each")
        if missing := set(self.elevation) - set(names):
            raise ValueError(f"elevation weighs {sorted(missing)}, not among the outputs {names}")
        if [output.role for output in self.outputs].count("source") > 1:
            raise ValueError("only one output can have the role 'source'")
        if wrong := [o.name for o in self.outputs if o.band >= max(self.bands, 1)]:
            raise ValueError(
                f"outputs {wrong} name a band that is not among the {self.bands} of the input: "
                f"use a band from 0 to {max(self.bands, 1) - 1}"
            )
        return self

    @property
    def has_image_outputs(self) -> bool:
        """Whether an output is an image, for which the 8 significant bits of bfloat16 are too few."""
        return any(output.is_image for output in self.outputs)

    @property
    def channels(self) -> int:
        """Channels of the network's input: the bands and the extra channels after them."""
        return self.bands + len(self.extra)

    @property
    def stride(self) -> int:
        """Total subsampling, px."""
        return self.reach.stride

    @property
    def halo(self) -> int:
        """Smallest halo that is exact for the cores of windows, px; see `Reach.minimum_halo`."""
        return self.reach.minimum_halo

    @property
    def class_channels(self) -> tuple[int, ...]:
        """Output channel of each class of the probability map, ``source`` first."""
        order = sorted(range(len(self.outputs)), key=lambda i: self.outputs[i].role != "source")
        return tuple(i for i in order if self.outputs[i].class_name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the probability map, ``source`` first."""
        return tuple(self.outputs[i].class_name or "" for i in self.class_channels)


@dataclass(frozen=True, slots=True)
class Maps:
    """The maps that a network predicts.

    Attributes
    ----------
    probability : ndarray
        (class, h, w) float32 in [0, 1].
    elevation : ndarray
        (h, w) float32 in [0, 1]; peaks are sources, 0 is flat background.
    """

    probability: NDArray[np.float32]
    elevation: NDArray[np.float32]


class Predictor(Protocol):
    """Predicts the maps of a window; equal windows have equal bits."""

    def __call__(self, snr: NDArray[np.float32], keep: Box | None = None) -> Maps:
        """Predict the maps of a window.

        Parameters
        ----------
        snr : ndarray
            (channels, h, w) float32 S/N without NaN: the bands, then the extra channels of the
            header; h and w multiples of the stride.
        keep : Box, optional
            The part of the window to return, in its pixels; this is how the halo is cut off. The
            whole window if None.

        Returns
        -------
        Maps
            The maps of ``keep``.
        """

    def outputs(self, snr: NDArray[np.float32], keep: Box | None = None) -> NDArray[np.float32]:
        """Predict the outputs of the network, (output, h, w) float32, with the parameters of `__call__`."""


class Model(Protocol):
    """A network with its header; small enough to send to a worker."""

    @property
    def header(self) -> ModelHeader:
        """Description of the model."""

    @property
    def digest(self) -> str:
        """Hexadecimal digest of weights and header."""

    @property
    def halo(self) -> int:
        """Width of the halo around a core, px; a multiple of the stride."""

    @property
    def stride(self) -> int:
        """Total subsampling, px."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the probability map."""

    @property
    def bytes_per_pixel(self) -> int:
        """Peak memory of a forward pass, bytes for each pixel read."""

    def precision(self, wanted: str, device: str = "auto") -> str:
        """Return the arithmetic that ``wanted`` selects on this machine: fp32, bf16 or int8."""

    def predictor(
        self, device: str = "auto", precision: str = "fp32", threads: int = 1
    ) -> Predictor:
        """Return a predictor that runs the network."""


def threshold_of(header: ModelHeader, thresh: float | None = None) -> float:
    """Return the level of the map of ``header.detect_on`` at which foreground begins.

    Parameters
    ----------
    header : ModelHeader
        The model.
    thresh : float, optional
        The user's threshold, in the model's unit; the model's default if None.

    Raises
    ------
    ModelError
        If the level is not in (0, 1].

    Examples
    --------
    >>> from fcnpipe.networks.matched_filter import MatchedFilter
    >>> round(threshold_of(MatchedFilter().header, 1.5) * 16, 4)
    1.1948
    """
    value = header.defaults.thresh if thresh is None else thresh
    in_sigma = header.thresh_unit == "sigma"
    level = asinh(value) / ELEVATION_SIGMAS if in_sigma else value
    if not 0 < level <= 1:
        maximum = f"{sinh(ELEVATION_SIGMAS):.3g} sigma" if in_sigma else "1"
        raise ModelError(
            f"thresh={value} is outside (0, {maximum}], the range of model {header.name!r}: "
            "choose a value inside"
        )
    return level


def check_bands(header: ModelHeader, bands: int) -> None:
    """Check that an image has the number of bands of the network.

    Raises
    ------
    ModelError
        If the numbers differ. A header with 0 bands accepts any number.
    """
    if header.bands not in (0, bands):
        raise ModelError(
            f"model {header.name!r} takes {header.bands} band(s) but the image has {bands}: "
            "choose the bands, or another model"
        )


def check_image_size(header: ModelHeader, shape: tuple[int, int]) -> None:
    """Check that an image, padded to the stride, is as large as the network states to need.

    Raises
    ------
    ModelError
        If it is smaller.
    """
    padded = [round_up(length, header.stride) for length in shape]
    if any(a < b for a, b in zip(padded, header.minimum_size, strict=True)):
        least = " x ".join(map(str, header.minimum_size))
        raise ModelError(
            f"model {header.name!r} accepts images of at least {least} px, and the image has "
            f"{shape[0]} x {shape[1]} px: use a larger image, or export the network with a smaller minimum"
        )


def check_separates(header: ModelHeader) -> None:
    """Check that a model can segment, not only predict.

    Raises
    ------
    ModelError
        If the model has no output of role ``source``, or no elevation.
    """
    has_source = any(output.role == "source" for output in header.outputs)
    needed = {"output of role 'source'": has_source, "elevation": bool(header.elevation)}
    if missing := [name for name, is_there in needed.items() if not is_there]:
        raise ModelError(
            f"model {header.name!r} has no {' and no '.join(missing)}, so nothing can be segmented: "
            "use fcnpipe predict, or another model"
        )


def check_inputs(header: ModelHeader, bands: int, prior: str | None) -> None:
    """Check that an image and a prior are the inputs that the network needs.

    Raises
    ------
    ModelError
        If the image has another number of bands (a model of one band accepts any image, because it
        uses the detection plane); if the prior is missing; if a prior is set but not used.
    """
    if header.bands > 1:
        check_bands(header, bands)
    if ("prior" in header.extra) == bool(prior):
        return
    fix = "leave --prior out" if prior else "add --prior FILE"
    raise ModelError(
        f"model {header.name!r} {'takes no' if prior else 'needs a'} prior: {fix}, or use another model"
    )


def list_maps(header: ModelHeader, unit: str = "") -> tuple[OutputMap, ...]:
    """Return the arrays in which the outputs of a model are stored, in their order.

    Parameters
    ----------
    header : ModelHeader
        The model.
    unit : str
        Unit of the input's pixels.

    Raises
    ------
    ModelError
        If the name of an output cannot be the name of an array of a store.
    """
    for output in header.outputs:
        if output.name.lower() in _RESERVED_NAMES or not _ARRAY_NAME.fullmatch(output.name):
            raise ModelError(
                f"model {header.name!r}: output {output.name!r} cannot be stored under this name: "
                f"use letters, digits, '_' and '-', and none of {', '.join(sorted(_RESERVED_NAMES))}"
            )
    return tuple(_map_of(output, unit) for output in header.outputs)


def _map_of(output: Output, unit: str) -> OutputMap:
    if output.is_image:
        return OutputMap(output.name, output.role, "float32", unit)
    return OutputMap(output.name, output.role, "uint16" if output.is_16_bit else "uint8", "1")


def parse_header(text: str, where: str) -> ModelHeader:
    """Read a header from JSON.

    Raises
    ------
    ModelError
        If the header is not valid. The message names ``where``, the field and the fault, in one line.
    """
    try:
        return ModelHeader.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "header"
        raise ModelError(
            f"model {where}: {name}: {first['msg']}; save it again with save_model"
        ) from None
