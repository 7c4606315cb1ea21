"""Smaller and smaller copies of the maps, for display; one group a level."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe.geometry import Box, Tile, TileGrid
from fcnpipe.stores.base import Layout, ScienceReader
from fcnpipe.stores.hierarchy import create_level, level_shape

if TYPE_CHECKING:
    from fcnpipe.stores.zarr import ZarrStore

SMALLEST = 512
"""The last level's longer side is at most this, px."""


def level_count(layout: Layout) -> int:
    """Give the number of levels above the full image, at least 1.

    Examples
    --------
    >>> level_count(Layout((300, 200), (512, 512), (5, 4)))
    1
    >>> level_count(Layout((2048, 1025), (1024, 1024), (32, 17)))
    2
    """
    level = 1
    while max(level_shape(layout, level)) > SMALLEST:
        level += 1
    return level


def level_grid(layout: Layout, level: int) -> TileGrid:
    """Give the shards of a level: same edge as at full size."""
    return TileGrid(level_shape(layout, level), layout.edge)


def create_pyramid(path: Path, layout: Layout, science: bool) -> None:
    """Create empty levels 1, 2, ... in the store at ``path``; what was there goes."""
    image = zarr.open_group(path / "image", mode="r+", use_consolidated=False)
    for level in range(1, 1 + level_count(layout)):
        shutil.rmtree(path / "image" / str(level), ignore_errors=True)
        create_level(image.create_group(str(level)), layout, level, science)
    image.attrs["ome"] = multiscales(layout, science)


def multiscales(layout: Layout, science: bool) -> dict[str, Any]:
    """Give OME-NGFF 0.5 metadata: one multiscale image for each map."""
    first = 0 if layout.keep_image else 1
    images = [("label", 0, False), ("probability", 0, True)]
    if science:
        images.append(("science", first, True))
    return {"version": "0.5", "multiscales": [_multiscale(layout, *image) for image in images]}


def _multiscale(layout: Layout, name: str, first: int, channels: bool) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    lead = [{"name": "c", "type": "channel"}] if channels else []
    datasets = [
        {"path": f"{level}/{name}", "coordinateTransformations": _transforms(level, len(lead))}
        for level in range(first, 1 + level_count(layout))
    ]
    return {"name": name, "axes": lead + axes, "datasets": datasets}


def _transforms(level: int, lead: int) -> list[dict[str, Any]]:
    factor = float(2**level)
    shift = (factor - 1) / 2
    return [
        {"type": "scale", "scale": [1.0] * lead + [factor] * 2},
        {"type": "translation", "translation": [0.0] * lead + [shift] * 2},
    ]


def build_level(store: ZarrStore, level: int, tile: Tile, science: ScienceReader | None) -> None:
    """Write one shard of every map of a level from the level below."""
    for name, shrink in SHRINKERS.items():
        if store.has(f"image/{level}/{name}"):
            data = _shrink_tile(store, level, tile, _reader(store, name, level, science), shrink)
            store.write_level_tile(name, level, tile.core, data)


def _reader(
    store: ZarrStore, name: str, level: int, science: ScienceReader | None
) -> Callable[[Box], NDArray[Any]]:
    if name == "science" and level == 1 and science is not None:
        return science
    return lambda box: store.read(name, box, level - 1)


def _shrink_tile(
    store: ZarrStore,
    level: int,
    tile: Tile,
    read: Callable[[Box], NDArray[Any]],
    shrink: Callable[[NDArray[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """Fill a core piece by piece, so that only one piece of the level below is in memory."""
    below = Box(0, 0, *level_shape(store.layout, level - 1))
    core = tile.core
    pieces = TileGrid(level_shape(store.layout, level), store.layout.chunks)
    result: NDArray[Any] | None = None
    for piece in pieces.inside(core):
        box = Box(2 * piece.y0, 2 * piece.x0, 2 * piece.y1, 2 * piece.x1).clip(below)
        small = shrink(_even(read(box)))
        if result is None:
            result = np.empty((*small.shape[:-2], *core.shape), small.dtype)
        result[(..., *piece.within(core))] = small
    assert result is not None, tile
    return result


def _even(data: NDArray[Any]) -> NDArray[Any]:
    """Repeat the last row and column where their number is odd."""
    height, width = data.shape[-2:]
    pad = [(0, 0)] * (data.ndim - 2) + [(0, height % 2), (0, width % 2)]
    return np.pad(data, pad, mode="edge") if height % 2 or width % 2 else data


def _quarters(data: NDArray[Any]) -> list[NDArray[Any]]:
    return [data[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]


def shrink_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Give the most frequent of each 2 x 2 labels; a tie goes to the greater one.

    Examples
    --------
    >>> shrink_labels(np.array([[0, 0, 5, 5], [7, 0, 0, 0]]))
    array([[0, 5]])
    """
    if not labels.any():
        return np.zeros((labels.shape[0] // 2, labels.shape[1] // 2), labels.dtype)
    a, b, c, d = _quarters(labels)
    twice = np.where((a == b) | (a == c) | (a == d), a, -1)
    np.maximum(twice, np.where((b == c) | (b == d), b, -1), out=twice)
    np.maximum(twice, np.where(c == d, c, -1), out=twice)
    greatest = np.maximum(np.maximum(a, b), np.maximum(c, d))
    return np.where(twice >= 0, twice, greatest)


def shrink_probability(probability: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give the rounded mean of each 2 x 2."""
    a, b, c, d = _quarters(probability.astype(np.uint16))
    mean: NDArray[np.uint8] = ((a + b + c + d + 2) // 4).astype(np.uint8)
    return mean


def shrink_science(science: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the mean of each 2 x 2 without its NaN; NaN where all four are."""
    quarters = _quarters(science.astype(np.float64))
    good = [~np.isnan(quarter) for quarter in quarters]
    count = np.sum(good, axis=0)
    total = np.sum([np.where(g, q, 0) for g, q in zip(good, quarters, strict=True)], axis=0)
    mean: NDArray[np.float32] = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(
        np.float32
    )
    return mean


SHRINKERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "label": shrink_labels,
    "probability": shrink_probability,
    "science": shrink_science,
}
"""How each map of the pyramid is halved."""
