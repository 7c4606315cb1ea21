"""A picture of the image with the outlines of its sources.

The smallest pyramid level that still fills the picture is read, never the whole image. A small
image is enlarged by a whole number, so that outlines run along the borders of its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcnpipe.core.errors import SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.export.base import Finished, ScienceReader, written_whole

Bytes = NDArray[np.uint8]

COLOURS = np.array(
    [[255, 212, 0], [0, 229, 255], [255, 64, 160], [96, 255, 96], [255, 140, 0], [176, 128, 255]],
    np.uint8,
)
"""Outlines: the first where nothing touches, the others so that neighbours differ."""

NO_DATA = (40, 24, 56)
"""Colour of pixels without data."""

FILTERS = "ugrizyJHK"
"""Filters by wavelength; bands that rise along it are shown blue first."""

SOFTENING = 6.0
"""Where the stretch turns from linear to logarithmic, in units of the noise."""

LEAST_RANGE = 30.0
"""Least white point, in units of the noise: an empty image stays dark."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a picture is drawn.

    Attributes
    ----------
    size : int
        Longest side at most, px.
    outlines : bool
        Whether to draw the borders of sources.
    """

    size: int = 2000
    outlines: bool = True


def export_preview(
    store: Finished,
    path: str | Path,
    science: ScienceReader | None = None,
    style: Style | None = None,
) -> None:
    """Write a PNG of the image with the outlines of its sources.

    Parameters
    ----------
    store : Finished
        The store.
    path : path
        ``.png`` (or another type that pillow knows).
    science : callable, optional
        Reads the image, for a store that does not keep it. Without it a small picture is
        drawn from the first pyramid level.
    style : Style, optional
        Size and outlines.

    Raises
    ------
    SpecError
        If there is no science image at all, or the suffix is that of no picture.
    StoreError
        If the file cannot be written.
    """
    suffix = Path(path).suffix
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        raise SpecError(f"{path}: the suffix {suffix!r} is that of no picture: use .png")
    picture = draw_preview(store, science, style or Style())
    with written_whole(path) as temporary:
        Image.fromarray(picture).save(temporary)


def draw_preview(store: Finished, science: ScienceReader | None, style: Style) -> Bytes:
    """Give the picture, (h, w, 3) uint8 with its first row at the top; as `export_preview`."""
    level = choose_level(store, style.size)
    labels = _read_whole(store, "label", level)
    picture = stretch(_read_science(store, level, science), store.layout.bands)
    zoom = max(style.size // max(labels.shape), 1)
    picture = enlarge(picture, zoom)
    if style.outlines:
        picture = draw_outlines(picture, enlarge(labels, zoom), width=max(zoom // 3, 1))
    picture = shrink(picture, style.size)
    # FITS images have their first row at the bottom, others at the top.
    return np.ascontiguousarray(picture[::-1] if store.cards else picture)


def choose_level(store: Finished, size: int) -> int:
    """Give the first pyramid level whose longer side is at most ``size`` px, or the last."""
    level = 0
    while -(-max(store.layout.shape) // 2**level) > size and store.has(f"image/{level + 1}"):
        level += 1
    return level


def shrink(picture: Bytes, size: int) -> Bytes:
    """Give a picture whose longer side is at most ``size`` px."""
    small = Image.fromarray(picture)
    small.thumbnail((size, size))
    return np.asarray(small)


def _level_box(store: Finished, level: int) -> Box:
    height, width = store.layout.shape
    return Box(0, 0, -(-height // 2**level), -(-width // 2**level))


def _read_whole(store: Finished, name: str, level: int) -> NDArray[Any]:
    return store.read(name, _level_box(store, level), level)


def _read_science(
    store: Finished, level: int, science: ScienceReader | None
) -> NDArray[np.float32]:
    """Give (band, h, w) at a level; from the level above, enlarged, where it has none itself."""
    if level == 0 and science is not None:
        return science(_level_box(store, 0))
    if store.has(f"image/{level}/science"):
        return _read_whole(store, "science", level)
    if not store.has(f"image/{level + 1}/science"):
        raise SpecError("preview needs the image, which this store does not hold: give it as well")
    box = _level_box(store, level)
    return enlarge(_read_whole(store, "science", level + 1), 2)[..., : box.y1, : box.x1]


def enlarge(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """Repeat pixels: (h, w), (band, h, w) or, as uint8, (h, w, 3)."""
    y = 0 if image.dtype == np.uint8 or image.ndim == 2 else 1
    return image.repeat(factor, axis=y).repeat(factor, axis=y + 1) if factor > 1 else image


def stretch(science: NDArray[np.float32], bands: tuple[str, ...]) -> Bytes:
    """Give (h, w, 3) uint8: grey for one band, colour for three or more.

    Parameters
    ----------
    science : (band, h, w) float32
        NaN is no data.
    bands : tuple of str
        Names, to tell red from blue.

    Notes
    -----
    As in Lupton et al. 2004 the mean of the bands is stretched by asinh and colours keep
    their ratios. Each band is first put in units of its noise above its sky; sky and noise
    are the median and the median absolute deviation.
    """
    red_green_blue = _normalise(science[_choose_bands(bands, len(science))])
    mean = red_green_blue.mean(axis=0)
    white = max(float(np.nanpercentile(mean, 99.8)) if np.isfinite(mean).any() else 0, LEAST_RANGE)
    bright = np.arcsinh(np.maximum(mean + 1, 0) / SOFTENING) / np.arcsinh(white / SOFTENING)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(mean > 1, (red_green_blue + 1) / (mean + 1), 1)
    colour = np.clip(ratio * bright, 0, None)
    # Too bright a pixel keeps its hue.
    colour /= np.maximum(colour.max(axis=0), 1)
    return _to_bytes(colour)


def _to_bytes(colour: NDArray[np.floating[Any]]) -> Bytes:
    blank = np.isnan(colour).any(axis=0)
    result = np.rint(np.nan_to_num(colour) * 255).astype(np.uint8)
    result = np.repeat(result, 3, axis=0) if len(result) == 1 else result
    result[:, blank] = np.array(NO_DATA, np.uint8)[:, None]
    return np.moveaxis(result, 0, -1)


def _normalise(science: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each band in units of its noise above its sky."""
    return np.stack([_above_sky(band) for band in science])


def _above_sky(band: NDArray[np.float32]) -> NDArray[np.float32]:
    good = band[np.isfinite(band)]
    if not good.size:
        return np.full_like(band, np.nan)
    sky = np.median(good)
    faint = good[good <= sky]
    # Below the median there are no sources: the noise is that of the faint half.
    noise = 1.4826 * float(np.median(sky - faint)) or float(np.std(good)) or 1.0
    result: NDArray[np.float32] = np.where(np.isfinite(band), (band - sky) / noise, np.nan)
    return result.astype(np.float32)


def _choose_bands(bands: tuple[str, ...], count: int) -> list[int]:
    """Give the bands to show as red, green and blue, or the only one to show."""
    if count < 3:
        return [0]
    chosen = [0, count // 2, count - 1]
    places = [FILTERS.find(bands[i][-1:]) if i < len(bands) and bands[i] else -1 for i in chosen]
    blue_first = -1 < places[0] < places[1] < places[2]
    return chosen[::-1] if blue_first else chosen


def draw_outlines(picture: Bytes, labels: NDArray[np.integer[Any]], width: int = 1) -> Bytes:
    """Give the picture with the pixels of a source that border on something else coloured.

    Parameters
    ----------
    picture : (h, w, 3) uint8
        The image.
    labels : (h, w) int
        0 = background.
    width : int
        Of the outlines, px.
    """
    border = find_borders(labels, width)
    result = picture.copy()
    result[border] = COLOURS[colour_labels(labels)[labels[border]]]
    return result


def find_borders(labels: NDArray[np.integer[Any]], width: int = 1) -> NDArray[np.bool_]:
    """Give the pixels of sources that have another label within ``width`` px along an axis."""
    border = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        across, along = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        border[step:] |= across
        border[:-step] |= across
        border[:, step:] |= along
        border[:, :-step] |= along
    border &= labels != 0
    return border


def colour_labels(labels: NDArray[np.integer[Any]]) -> Bytes:
    """Give for each label the index of a colour that none of its neighbours has.

    Notes
    -----
    Greedy, in order of label; with more neighbours than colours some repeat.
    """
    colours = np.zeros(int(labels.max(initial=0)) + 1, np.uint8)
    neighbours: dict[int, list[int]] = {}
    for low, high in _touching(labels):
        neighbours.setdefault(high, []).append(low)
    for label in sorted(neighbours):
        taken = {int(colours[other]) for other in neighbours[label]}
        free = (c for c in range(len(COLOURS)) if c not in taken)
        colours[label] = next(free, label % len(COLOURS))
    return colours


def _touching(labels: NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Give the pairs (low, high) of labels that touch by an edge or a corner."""
    cuts = [
        (labels[:, :-1], labels[:, 1:]),
        (labels[:-1], labels[1:]),
        (labels[:-1, :-1], labels[1:, 1:]),
        (labels[:-1, 1:], labels[1:, :-1]),
    ]
    found = []
    for one, other in cuts:
        touch = (one != other) & (one != 0) & (other != 0)
        found.append(np.stack([one[touch], other[touch]], axis=1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return [(int(low), int(high)) for low, high in pairs]
