"""What every network is to the pipeline: a header, a reach, and something that gives maps.

Nothing here imports torch: the plan of a run and the matched filter do without it.
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
"""A matched filter's elevation is asinh(S/N) over this: 1 is an S/N of 4.4 million."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a network looks beyond an output pixel on each side, and its strides.

    ::

                 top
                  |
        left -- pixel -- right        the worst of the stride_y x stride_x pixels of a cell:
                  |                   they look differently far
                bottom

    Attributes
    ----------
    top, bottom, left, right : int
        Input pixels beyond the output pixel, px.
    stride_y, stride_x : int
        Total subsampling: shifts by multiples of it commute with the network, px.
    cell : int, optional
        The greatest reach beyond a whole cell, px: what a core made of whole cells needs.
        None: not known.
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
        """One stride for both axes, px: the least common multiple."""
        return self.stride_y * self.stride_x // gcd(self.stride_y, self.stride_x)

    @property
    def furthest(self) -> int:
        """The greatest of the four, px."""
        return max(self.top, self.bottom, self.left, self.right)

    @property
    def halo(self) -> int:
        """The greatest reach rounded up to the stride, px."""
        return round_up(self.furthest, self.stride)

    @property
    def minimum_halo(self) -> int:
        """The smallest halo that is exact for cores of whole cells, px.

        The pixel that looks furthest to the left is seldom the first of its cell, so this is often
        one stride below `halo`: 48 for a U-Net of depth 3, whose halo is 56.
        """
        return round_up(self.furthest if self.cell is None else self.cell, self.stride)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof that a network can be tiled exactly with its halo.

    Attributes
    ----------
    kind : str
        ``proven``: analysed, probed and compared. ``declared``: somebody's word for it, unproven.
    reach : Reach
        What was proven.
    halo : int
        Halo that the proof used, px: the least one, and so any larger one, is exact.
    error : float
        Largest difference of the logits between tiles and the whole image, in float64; None: not
        measured.
    error_short : float
        The same with the halo one stride shorter, to show that the trial can fail (0 if there is no
        halo to shorten).
    probed : bool
        Whether NaNs showed exactly this reach, for all phases. They never show more; less where the
        network routes values by their size (unpooling).
    torch : str
        Version of torch that ran it.
    """

    kind: Literal["proven", "declared"]
    reach: Reach
    halo: int
    error: float | None = None
    error_short: float = 0.0
    probed: bool = False
    torch: str = ""


_IMAGE_ROLES = ("restored", "component:")
"""Roles of outputs that are images in the units of the input."""
_ARRAY_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)
_RESERVED_NAMES = frozenset(
    {"label", "science", "flags", "segments", "wcs", "class", "band", "y", "x"}
)
"""What stands beside the outputs in a store."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ExtraChannel = Literal["position_y", "position_x", "mask", "prior"]
"""What a network may see besides the bands.

``position_y`` and ``position_x`` are -1 at the first pixel of the image, 1 at the last; ``mask`` is
1 where a pixel is bad, else 0; ``prior`` is a map of the user's, 0 where that has no number.
"""


class Scaling(_Record):
    """What is done to the pixels before the network sees them.

    ``asinh``: ``asinh(snr / softening)``, for skies. ``linear``: ``(value - offset) / scale`` of the
    pixel as stored, for images without sky or noise of their own, such as micrographs.
    """

    kind: Literal["asinh", "linear"] = "asinh"
    softening: float = Field(
        default=1.0, gt=0, description="S/N at which the scaling turns from linear to logarithmic."
    )
    offset: float = Field(default=0.0, description="Linear: the value that becomes 0.")
    scale: float = Field(default=1.0, gt=0, description="Linear: the difference that becomes 1.")


class Output(_Record):
    """One channel of the network.

    An output of role ``restored`` is an image in the units of the input, one of role
    ``component:NAME`` such an image without the sky; all others lie in [0, 1].
    """

    name: str = Field(min_length=1)
    role: str = Field(
        pattern=r"^(source|elevation|centre|topography|boundary|restored|class:.+|component:.+)$"
    )
    activation: Literal["sigmoid", "softmax", "linear"] = Field(
        default="sigmoid",
        description="What is done to the channel; softmax: over all channels that say so. "
        "Linear if not said of an image.",
    )
    scaled: bool = Field(
        default=False,
        description="Whether an image is scaled as the input is, or only counted in its unit (S/N). "
        "If not said, a restored one is, a component is not: components add up.",
    )
    band: int = Field(
        default=0, ge=0, description="Band of the input whose units, sky and noise an image has."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_images_linear(cls, value: Any) -> Any:
        role = str(value.get("role", "")) if isinstance(value, Mapping) else ""
        if not role.startswith(_IMAGE_ROLES):
            return value
        return {"activation": "linear", "scaled": role == "restored", **value}

    @property
    def is_image(self) -> bool:
        """Whether it is an image in the units of the input."""
        return self.role.startswith(_IMAGE_ROLES)

    @property
    def is_16_bit(self) -> bool:
        """Whether it is stored in 65535ths where others are in 255ths."""
        return self.role in ("elevation", "topography")

    @property
    def class_name(self) -> str | None:
        """Name of the class whose probability this is; None if it is none."""
        return (
            self.role.removeprefix("class:") if self.role.startswith(("source", "class:")) else None
        )


class Share(_Record):
    """What an output adds to the elevation: ``weight * max(output - floor, 0) / (1 - floor)``."""

    weight: float
    floor: float = Field(
        default=0.0, ge=0, lt=1, description="Least value of the output that says anything."
    )


class Defaults(_Record):
    """The separation options that suit the model, for those that the user leaves out."""

    thresh: float = Field(
        default=0.5, gt=0, description="Probability, or sigma for a matched filter."
    )
    dynamics: float = Field(
        default=0.02, ge=0, description="Least height of a peak above its saddle, of elevation."
    )
    minarea: int = Field(default=5, ge=1, description="Least number of pixels of a source.")
    mincont: float = Field(
        default=0.0, ge=0, le=1, description="Least part of a footprint's flux that a branch needs."
    )
    minpeak: float = Field(default=0.0, ge=0, le=1, description="Least elevation of a peak.")
    broad: int | None = Field(
        default=None,
        ge=1,
        description="Pixels from which a source needs no minpeak; none if left out.",
    )
    extended: int | None = Field(
        default=None,
        ge=1,
        description="Pixels above its saddle from which a branch needs extended_dynamics; none if left out.",
    )
    extended_dynamics: float = Field(
        default=0.0, ge=0, le=1, description="Dynamics of such a branch."
    )


class ModelHeader(_Record):
    """All that is known of a model besides its weights; JSON in the file's metadata.

    The probability map has the class of role ``source`` first, then each ``class:NAME`` in order.
    The elevation map is the sum of the shares of the outputs, clipped to [0, 1]. A model without
    either cannot segment, but each of its outputs can be predicted.
    """

    name: str = Field(min_length=1)
    version: str = "0"
    architecture: str = Field(
        min_length=1, description="File of fcnpipe/networks that holds the class."
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
        description="Arrays alive at once in a forward pass, for each pixel looked at.",
    )
    certificate: Certificate | None = None
    ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="Least and greatest value of each layer, for 8-bit arithmetic; empty: not measured.",
    )
    recipe: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)
    licence: str = ""

    @field_validator("elevation", mode="before")
    @classmethod
    def _read_weights(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {k: {"weight": v} if isinstance(v, (int, float)) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _fits(self) -> ModelHeader:
        names = [output.name for output in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError(f"outputs {names} share a name; give each its own")
        if missing := set(self.elevation) - set(names):
            raise ValueError(f"elevation weighs {sorted(missing)}, not among the outputs {names}")
        if [output.role for output in self.outputs].count("source") > 1:
            raise ValueError("only one output can have the role 'source'")
        if wrong := [o.name for o in self.outputs if o.band >= max(self.bands, 1)]:
            raise ValueError(f"outputs {wrong} name a band that is not among the {self.bands}")
        return self

    @property
    def has_image_outputs(self) -> bool:
        """Whether an output is an image, for which the eight bits of a bfloat16 are too few."""
        return any(output.is_image for output in self.outputs)

    @property
    def channels(self) -> int:
        """Channels of the network's input: the bands and what stands after them."""
        return self.bands + len(self.extra)

    @property
    def stride(self) -> int:
        """Total subsampling, px."""
        return self.reach.stride

    @property
    def halo(self) -> int:
        """The smallest halo that is exact for the cores of windows, px; see `Reach.least_halo`."""
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
    """What a network says of each pixel.

    Attributes
    ----------
    probability : ndarray
        (class, h, w) float32 in [0, 1].
    elevation : ndarray
        (h, w) float32 in [0, 1]; peaks are sources, 0 is flat.
    """

    probability: NDArray[np.float32]
    elevation: NDArray[np.float32]


class Predictor(Protocol):
    """Gives the maps of a window; equal windows give equal bits."""

    def __call__(self, snr: NDArray[np.float32], keep: Box | None = None) -> Maps:
        """Give the maps of (bands, h, w) float32 S/N without NaN; h, w multiples of the stride.

        Of the pixels of ``keep`` alone, if it is given: how a window is freed of its halo. The
        extra channels of the header stand after the bands.
        """

    def outputs(self, snr: NDArray[np.float32], keep: Box | None = None) -> NDArray[np.float32]:
        """Give the outputs by themselves, (output, h, w), of the same."""


class Model(Protocol):
    """A network and all that is known of it; small enough to send to a worker."""

    @property
    def header(self) -> ModelHeader:
        """What is known of it."""

    @property
    def digest(self) -> str:
        """Hexadecimal digest of weights and header."""

    @property
    def halo(self) -> int:
        """Pixels to read beyond a core, a multiple of the stride."""

    @property
    def stride(self) -> int:
        """Total subsampling, px."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the probability map."""

    @property
    def bytes_per_pixel(self) -> int:
        """Peak memory of a forward pass for each pixel looked at."""

    def precision(self, wanted: str, device: str = "auto") -> str:
        """Give the arithmetic that ``wanted`` means on this machine: fp32, bf16 or int8."""

    def predictor(
        self, device: str = "auto", precision: str = "fp32", threads: int = 1
    ) -> Predictor:
        """Make it ready to run."""


def threshold_of(header: ModelHeader, thresh: float | None = None) -> float:
    """Give the level of the map of ``header.detect_on`` at which foreground begins.

    Parameters
    ----------
    header : ModelHeader
        The model.
    thresh : float, optional
        The user's threshold, in the model's unit; the model's default if None.

    Raises
    ------
    ModelError
        If the level is not inside (0, 1].

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
        most = f"{sinh(ELEVATION_SIGMAS):.3g} sigma" if in_sigma else "1"
        raise ModelError(
            f"thresh={value} is outside (0, {most}], what model {header.name!r} gives: "
            "choose one inside"
        )
    return level


def check_bands(header: ModelHeader, bands: int) -> None:
    """Refuse an image whose bands are not those of the network.

    Raises
    ------
    ModelError
        If the numbers differ (a header with 0 takes any).
    """
    if header.bands not in (0, bands):
        raise ModelError(
            f"model {header.name!r} takes {header.bands} band(s) but the image has {bands}: "
            "choose the bands, or another model"
        )


def check_separates(header: ModelHeader) -> None:
    """Refuse a model that says nothing of where sources are.

    Raises
    ------
    ModelError
        If it has no output of role ``source``, or no elevation.
    """
    has_source = any(output.role == "source" for output in header.outputs)
    found = {"output of role 'source'": has_source, "elevation": bool(header.elevation)}
    if missing := [what for what, here in found.items() if not here]:
        raise ModelError(
            f"model {header.name!r} has no {' and no '.join(missing)}, so nothing can be segmented: "
            "use fcnpipe predict, or another model"
        )


def check_inputs(header: ModelHeader, bands: int, prior: str | None) -> None:
    """Refuse an image or a prior that is not what the network looks at.

    Raises
    ------
    ModelError
        If the image lacks bands (a model of one band takes the detection plane of any), or the
        prior is missing or not looked at.
    """
    if header.bands > 1:
        check_bands(header, bands)
    if ("prior" in header.extra) == bool(prior):
        return
    mend = "leave --prior out" if prior else "give --prior FILE"
    raise ModelError(
        f"model {header.name!r} {'takes no' if prior else 'needs a'} prior: {mend}, or use another model"
    )


def list_maps(header: ModelHeader, unit: str = "") -> tuple[OutputMap, ...]:
    """Give how the outputs of a model are stored, in their order.

    Parameters
    ----------
    header : ModelHeader
        The model.
    unit : str
        Unit of a pixel of the input.

    Raises
    ------
    ModelError
        If the name of an output cannot be that of an array beside the others of a store.
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
        One line that names ``where``, the field and what is wrong.
    """
    try:
        return ModelHeader.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "header"
        raise ModelError(
            f"model {where}: {name}: {first['msg']}; save it again with save_model"
        ) from None
