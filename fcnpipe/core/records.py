"""Frozen records passed between stages and processes: image metadata, flags, output maps, task reports.

They are small and never contain pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

PROBABILITY_SCALE = 1.0 / 255.0
"""Scale factor from a stored uint8 probability to a probability in [0, 1]."""
ELEVATION_SCALE = 1.0 / 65535.0
"""Scale factor from a stored uint16 elevation to an elevation in [0, 1]."""


class PixelFlag(IntFlag):
    """Bits of the ``flags`` image: reasons why the value of a pixel is unreliable."""

    NO_DATA = 1
    """NaN, infinite or blank in the image or in its weight map."""
    MASKED = 2
    """Marked bad by the user's mask, or of zero weight."""
    SATURATED = 4
    """At or above the saturation level."""


class SourceFlag(IntFlag):
    """Bits of a source's ``flags``; the values are those of SExtractor's FLAGS."""

    NEIGHBOURS = 1
    """Bright neighbours, or more than 10 % of the aperture is bad pixels or pixels of other sources."""
    DEBLENDED = 2
    """The footprint was divided between several sources."""
    SATURATED = 4
    """At least one pixel is saturated."""
    TRUNCATED = 8
    """The source touches the border of the image."""
    APERTURE_INCOMPLETE = 16
    """The Kron aperture extends beyond the image border or the maximum radius, or contains bad pixels."""
    ISOPHOTE_INCOMPLETE = 32
    """Bad pixels are in or next to the footprint."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Metadata of an image, known before any pixel is read.

    Attributes
    ----------
    shape : (int, int, int)
        Number of bands, height and width, px.
    dtype : str
        Data type on disk, before scaling.
    cards : tuple of str
        FITS header cards with the WCS and the units; empty if there are none.
    bands : tuple of str
        Name of each band.
    unit : str
        Unit of a pixel value (``BUNIT``); empty if unknown.
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
    """Storage of one network output: an array with axes (y, x) that has the name of the output.

    Attributes
    ----------
    name, role : str
        Name and role of the output.
    dtype : str
        ``float32`` for an image; ``uint8`` or ``uint16`` for values in [0, 1].
    unit : str
        Unit of a value; empty if unknown.
    """

    name: str
    role: str
    dtype: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """Report of one task to the driver; its size does not depend on the size of the image.

    Attributes
    ----------
    stage, name : str
        Name of the stage, and of the tile or node.
    seconds : float
        Wall time in the worker, s.
    pixels : int
        Number of pixels of the core that were processed.
    error : str
        Reason of a failure in one line; empty if the task succeeded.
    kind : str
        Name of the class of the error.
    facts : dict
        Numbers for the summary, for example the numbers of sources and bad pixels.
    worker, peak_bytes, read_bytes, written_bytes
        See :class:`fcnpipe.core.resource_usage.ResourceUsage`; empty and 0 for a task whose worker was lost.
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
