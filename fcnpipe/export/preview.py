"""PNG previews: the image as a picture, with the outlines of its sources.

The first pyramid level that fits into the picture is read, never the whole image. A small image is enlarged
by an integer factor, so that outlines follow the borders of its pixels.
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
from fcnpipe.export.base import FinishedStore, ScienceReader, atomic_write

Picture = NDArray[np.uint8]

COLOURS = np.array(
    [[255, 212, 0], [0, 229, 255], [255, 64, 160], [96, 255, 96], [255, 140, 0], [176, 128, 255]],
    np.uint8,
)
"""Colours of outlines: the first for isolated sources, the others to distinguish touching sources."""

NO_DATA = (40, 24, 56)
"""Colour of pixels without data."""

FILTERS = "ugrizyJHK"
"""Filters in order of wavelength; bands in this order are shown from blue to red."""

SOFTENING = 6.0
"""Level at which the asinh stretch changes from linear to logarithmic, in units of the noise."""

MIN_WHITE_POINT = 30.0
"""Minimum white point, in units of the noise, which keeps an empty image dark."""


@dataclass(frozen=True, slots=True)
class PreviewStyle:
    """Size and outlines of a preview.

    Attributes
    ----------
    size : int
        Maximum length of the longer side, px.
    outlines : bool
        Whether to draw the borders of sources.
    """

    size: int = 2000
    outlines: bool = True


def export_preview(
    store: FinishedStore,
    path: str | Path,
    science: ScienceReader | None = None,
    style: PreviewStyle | None = None,
) -> None:
    """Write a PNG of the image with the outlines of its sources.

    Parameters
    ----------
    store : FinishedStore
        The store.
    path : path
        ``.png`` (or another format that Pillow writes).
    science : callable, optional
        Function that reads the image, for a store that does not contain it. Without it, the preview of such a
        store is drawn from the first pyramid level.
    style : PreviewStyle, optional
        Size and outlines.

    Raises
    ------
    SpecError
        If the store has no science image, or if the suffix is not that of a picture.
    StoreError
        If the file cannot be written.
    """
    suffix = Path(path).suffix
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        raise SpecError(f"{path}: the suffix {suffix!r} is not a picture format: use .png")
    picture = draw_preview(store, science, style or PreviewStyle())
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary)


def draw_preview(
    store: FinishedStore, science: ScienceReader | None, style: PreviewStyle
) -> Picture:
    """Return the preview as (h, w, 3) uint8, first row at the top; see `export_preview`."""
    level = choose_level(store, style.size)
    labels = _read_level(store, "label", level)
    picture = stretch(_read_science(store, level, science), store.layout.bands)
    zoom = max(style.size // max(labels.shape), 1)
    picture = enlarge(picture, zoom)
    if style.outlines:
        picture = draw_outlines(picture, enlarge(labels, zoom), width=max(zoom // 3, 1))
    picture = shrink(picture, style.size)
    # The first row of a FITS image is at the bottom, that of other images at the top.
    return np.ascontiguousarray(picture[::-1] if store.cards else picture)


def choose_level(store: FinishedStore, size: int) -> int:
    """Return the first pyramid level whose longer side is at most ``size`` px, or the last level."""
    level = 0
    while -(-max(store.layout.shape) // 2**level) > size and store.has(f"image/{level + 1}"):
        level += 1
    return level


def shrink(picture: Picture, size: int) -> Picture:
    """Return the picture reduced to a longer side of at most ``size`` px."""
    small = Image.fromarray(picture)
    small.thumbnail((size, size))
    return np.asarray(small)


def _level_box(store: FinishedStore, level: int) -> Box:
    height, width = store.layout.shape
    return Box(0, 0, -(-height // 2**level), -(-width // 2**level))


def _read_level(store: FinishedStore, name: str, level: int) -> NDArray[Any]:
    return store.read(name, _level_box(store, level), level)


def _read_science(
    store: FinishedStore, level: int, science: ScienceReader | None
) -> NDArray[np.float32]:
    """Return the image at a level, (band, h, w); if it is missing there, enlarged from the next level."""
    if level == 0 and science is not None:
        return science(_level_box(store, 0))
    if store.has(f"image/{level}/science"):
        return _read_level(store, "science", level)
    if not store.has(f"image/{level + 1}/science"):
        raise SpecError(
            "preview needs the image, which this store does not contain: pass a reader of the image"
        )
    box = _level_box(store, level)
    return enlarge(_read_level(store, "science", level + 1), 2)[..., : box.y1, : box.x1]


def enlarge(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """Repeat pixels of a (h, w) or (band, h, w) image, or of a (h, w, 3) uint8 picture."""
    y = 0 if image.dtype == np.uint8 or image.ndim == 2 else 1
    return image.repeat(factor, axis=y).repeat(factor, axis=y + 1) if factor > 1 else image


def stretch(science: NDArray[np.float32], bands: tuple[str, ...]) -> Picture:
    """Return the image as a picture, (h, w, 3) uint8: grey for one band, colour for three or more.

    Parameters
    ----------
    science : (band, h, w) float32
        NaN where there is no data.
    bands : tuple of str
        Names of the bands, which decide the order of colours.

    Notes
    -----
    As in Lupton et al. 2004, the mean of the bands is stretched by asinh, and the ratios of the bands are
    kept. Each band is first expressed in units of its noise above its sky, estimated by the median and the
    median absolute deviation.
    """
    chosen = science[_choose_bands(bands, len(science))]
    red_green_blue = np.stack([_to_significance(band) for band in chosen])
    mean = red_green_blue.mean(axis=0)
    white = max(
        float(np.nanpercentile(mean, 99.8)) if np.isfinite(mean).any() else 0, MIN_WHITE_POINT
    )
    bright = np.arcsinh(np.maximum(mean + 1, 0) / SOFTENING) / np.arcsinh(white / SOFTENING)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(mean > 1, (red_green_blue + 1) / (mean + 1), 1)
    colour = np.clip(ratio * bright, 0, None)
    # Pixels brighter than white keep their hue.
    colour /= np.maximum(colour.max(axis=0), 1)
    return _to_uint8(colour)


def _to_uint8(colour: NDArray[np.floating[Any]]) -> Picture:
    blank = np.isnan(colour).any(axis=0)
    result = np.rint(np.nan_to_num(colour) * 255).astype(np.uint8)
    result = np.repeat(result, 3, axis=0) if len(result) == 1 else result
    result[:, blank] = np.array(NO_DATA, np.uint8)[:, None]
    return np.moveaxis(result, 0, -1)


def _to_significance(band: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a band in units of its noise above its sky."""
    good = band[np.isfinite(band)]
    if not good.size:
        return np.full_like(band, np.nan)
    sky = np.median(good)
    faint = good[good <= sky]
    # The faint half has no sources, so its scatter is the noise.
    noise = 1.4826 * float(np.median(sky - faint)) or float(np.std(good)) or 1.0
    result: NDArray[np.float32] = np.where(np.isfinite(band), (band - sky) / noise, np.nan)
    return result.astype(np.float32)


def _choose_bands(bands: tuple[str, ...], count: int) -> list[int]:
    """Return the bands to show as red, green and blue, or the first band if there are fewer than three."""
    if count < 3:
        return [0]
    chosen = [0, count // 2, count - 1]
    ranks = [FILTERS.find(bands[i][-1:]) if i < len(bands) and bands[i] else -1 for i in chosen]
    blue_first = -1 < ranks[0] < ranks[1] < ranks[2]
    return chosen[::-1] if blue_first else chosen


def draw_outlines(picture: Picture, labels: NDArray[np.integer[Any]], width: int = 1) -> Picture:
    """Return the picture with the border pixels of each source coloured.

    Parameters
    ----------
    picture : (h, w, 3) uint8
        The image.
    labels : (h, w) int
        0 = background.
    width : int
        Width of the outlines, px.
    """
    border = find_borders(labels, width)
    result = picture.copy()
    result[border] = COLOURS[colour_labels(labels)[labels[border]]]
    return result


def find_borders(labels: NDArray[np.integer[Any]], width: int = 1) -> NDArray[np.bool_]:
    """Return the pixels of sources that have another label within ``width`` px along an axis."""
    border = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        across, along = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        border[step:] |= across
        border[:-step] |= across
        border[:, step:] |= along
        border[:, :-step] |= along
    border &= labels != 0
    return border


def colour_labels(labels: NDArray[np.integer[Any]]) -> Picture:
    """Return, for each label, the index of a colour that none of its neighbours has.

    Notes
    -----
    Greedy colouring, in order of label. With more neighbours than colours, colours repeat.
    """
    colours = np.zeros(int(labels.max(initial=0)) + 1, np.uint8)
    neighbours: dict[int, list[int]] = {}
    for low, high in _find_touching_pairs(labels):
        neighbours.setdefault(high, []).append(low)
    for label in sorted(neighbours):
        taken = {int(colours[other]) for other in neighbours[label]}
        free = (c for c in range(len(COLOURS)) if c not in taken)
        colours[label] = next(free, label % len(COLOURS))
    return colours


def _find_touching_pairs(labels: NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Return the pairs (low, high) of labels that touch at an edge or a corner."""
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
