"""Small frozen records that pass between stages, processes and floors; never pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

PROBABILITY_SCALE = 1.0 / 255.0
"""A stored uint8 probability times this is the probability in [0, 1]."""
ELEVATION_SCALE = 1.0 / 65535.0
"""A stored uint16 elevation times this is the elevation in [0, 1]."""


class PixelFlag(IntFlag):
    """Bits of the ``flags`` image: why a pixel is not to be trusted."""

    NO_DATA = 1
    """NaN, infinite or blank in the image (or in its weight)."""
    MASKED = 2
    """Marked bad by the user's mask, or of zero weight."""
    SATURATED = 4
    """At or above the saturation level."""


class SourceFlag(IntFlag):
    """Bits of a source's ``flags``; the values are those of SExtractor's FLAGS."""

    NEIGHBOURS = 1
    """Bright neighbours, or more than a tenth of the aperture is bad or belongs to others."""
    DEBLENDED = 2
    """The footprint was divided between several sources."""
    SATURATED = 4
    """At least one pixel is saturated."""
    TRUNCATED = 8
    """The source touches the border of the image."""
    APERTURE_INCOMPLETE = 16
    """The Kron aperture reaches over the border, bad pixels, or the largest radius measured."""
    ISOPHOTE_INCOMPLETE = 32
    """Bad pixels lie in or next to the footprint."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an image before a pixel is read.

    Attributes
    ----------
    shape : (int, int, int)
        Bands, height and width in pixels.
    dtype : str
        Data type on disk, before scaling.
    cards : tuple of str
        FITS header cards that carry the WCS and the units; empty if none.
    bands : tuple of str
        Name of each band.
    unit : str
        Unit of a pixel value (``BUNIT``), or an empty string.
    digest : str
        Hexadecimal digest of the content.
    """

    shape: tuple[int, int, int]
    dtype: str
    cards: tuple[str, ...] = ()
    bands: tuple[str, ...] = ("0",)
    unit: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class OutputMap:
    """How an output of a network is stored by itself: an array (y, x) of its name.

    Attributes
    ----------
    name, role : str
        Of the output.
    dtype : str
        ``float32`` for an image, ``uint8`` or ``uint16`` for what lies in [0, 1].
    unit : str
        Unit of a value; empty if unknown.
    """

    name: str
    role: str
    dtype: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What one task tells the driver: small, the same size for any image.

    Attributes
    ----------
    stage, name : str
        Stage and tile (or node) name.
    seconds : float
        Wall time in the worker.
    pixels : int
        Pixels of the core that were worked on.
    error : str
        Empty if all went well, else the reason in one line.
    kind : str
        Name of the error's class.
    facts : dict
        A few numbers for the summary (sources, bad pixels, ...).
    worker, peak_bytes, read_bytes, written_bytes
        See :class:`fcnpipe.core.resource_usage.ResourceUsage`; empty and 0 of a task that was lost.
    """

    stage: str
    name: str
    seconds: float = 0.0
    pixels: int = 0
    error: str = ""
    kind: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    worker: str = ""
    peak_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
