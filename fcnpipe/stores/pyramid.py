"""Image pyramid for display: maps at 1/2, 1/4, ... of the full size, one group for each level."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box, Tile, TileGrid
from fcnpipe.stores.base import Layout, ScienceReader, StoreReader
from fcnpipe.stores.hierarchy import create_level, level_shape

LAST_LEVEL_EDGE = 512
"""Maximum of the longer side of the last level, px."""


def level_count(layout: Layout) -> int:
    """Return the number of levels above the full image, at least 1.

    Examples
    --------
    >>> level_count(Layout((300, 200), (512, 512), (5, 4)))
    1
    >>> level_count(Layout((2048, 1025), (1024, 1024), (32, 17)))
    2
    """
    level = 1
    while max(level_shape(layout, level)) > LAST_LEVEL_EDGE:
        level += 1
    return level


def level_grid(layout: Layout, level: int) -> TileGrid:
    """Return the grid of the shards of a level; a shard has the same edge in px at each level."""
    return TileGrid(level_shape(layout, level), layout.edge)


def create_pyramid(path: Path, layout: Layout, science: bool) -> None:
    """Create empty levels 1, 2, ... in the store at ``path`` in place of old ones, and their OME-NGFF metadata.

    Parameters
    ----------
    path : Path
        Folder of the store.
    layout : Layout
        Shapes and names of the store.
    science : bool
        Whether the levels contain the science image.
    """
    image = zarr.open_group(path / "image", mode="r+", use_consolidated=False)
    for level in range(1, 1 + level_count(layout)):
        shutil.rmtree(path / "image" / str(level), ignore_errors=True)
        create_level(image.create_group(str(level)), layout, level, science)
    image.attrs["ome"] = _ngff_metadata(layout, science)


def _ngff_metadata(layout: Layout, science: bool) -> dict[str, Any]:
    """Return OME-NGFF 0.5 metadata with one multiscale image for each map."""
    first = 0 if layout.keep_image else 1
    images = [("label", 0, False), ("probability", 0, True)]
    if layout.maps:
        images = [(output.name, 0, False) for output in layout.maps]
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


def shrink_maps(
    store: StoreReader, level: int, tile: Tile, science: ScienceReader | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and values of one shard of each map of a level, computed from the level below.

    Parameters
    ----------
    store : StoreReader
        The store; its level ``level - 1`` is finished.
    level : int
        1, 2, ...
    tile : Tile
        A tile of `level_grid`.
    science : callable or None
        Reads the full-size image for level 1; None if the store keeps it.
    """
    for name, shrink in _shrinkers(store.layout).items():
        if store.has(f"image/{level}/{name}"):
            read = _select_reader(store, name, level, science)
            yield name, _shrink_tile(store, level, tile, read, shrink)


def _select_reader(
    store: StoreReader, name: str, level: int, science: ScienceReader | None
) -> Callable[[Box], NDArray[Any]]:
    if name == "science" and level == 1 and science is not None:
        return science
    return lambda box: store.read(name, box, level - 1)


def _shrink_tile(
    store: StoreReader,
    level: int,
    tile: Tile,
    read: Callable[[Box], NDArray[Any]],
    shrink: Callable[[NDArray[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """Compute a core in pieces, so that only one shard of the level below is in memory."""
    below = Box(0, 0, *level_shape(store.layout, level - 1))
    core, edge = tile.core, store.layout.edge
    # A piece has half the edge of a shard: it covers one shard of the level below. The edge of a shard is
    # odd only if there is a single shard.
    pieces = TileGrid(level_shape(store.layout, level), (-(-edge[0] // 2), -(-edge[1] // 2)))
    result: NDArray[Any] | None = None
    for piece in pieces.cores_in(core):
        box = Box(2 * piece.y0, 2 * piece.x0, 2 * piece.y1, 2 * piece.x1).clip(below)
        small = shrink(_pad_to_even(read(box)))
        if result is None:
            result = np.empty((*small.shape[:-2], *core.shape), small.dtype)
        result[(..., *piece.within(core))] = small
    assert result is not None, tile
    return result


def _pad_to_even(data: NDArray[Any]) -> NDArray[Any]:
    """Repeat the last row or column where the number of rows or columns is odd."""
    height, width = data.shape[-2:]
    pad = [(0, 0)] * (data.ndim - 2) + [(0, height % 2), (0, width % 2)]
    return np.pad(data, pad, mode="edge") if height % 2 or width % 2 else data


def shrink_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the most frequent label of each 2 x 2 square of pixels, (h, w); the greater label wins a tie.

    Examples
    --------
    >>> shrink_labels(np.array([[0, 0, 5, 5], [7, 0, 0, 0]]))
    array([[0, 5]])
    """
    small = np.zeros(_half_shape(labels), labels.dtype)
    _most_frequent(labels, small)
    return small


def shrink_probability(probability: NDArray[Any]) -> NDArray[Any]:
    """Return the rounded mean of each 2 x 2 square of pixels, ([class,] h, w)."""
    small = np.empty(_half_shape(probability), probability.dtype)
    _rounded_mean(_as_planes(probability), _as_planes(small))
    return small


def shrink_science(science: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean without NaN of each 2 x 2 square of pixels, ([band,] h, w); NaN if all four are NaN."""
    small = np.empty(_half_shape(science), np.float32)
    _mean_without_nan(_as_planes(science), _as_planes(small))
    return small


def _as_planes(data: NDArray[Any]) -> NDArray[Any]:
    """Return a view with one axis before (y, x)."""
    return data[np.newaxis] if data.ndim == 2 else data


def _half_shape(data: NDArray[Any]) -> tuple[int, ...]:
    return (*data.shape[:-2], data.shape[-2] // 2, data.shape[-1] // 2)


@njit(cache=True, nogil=True)
def _most_frequent(labels, small):  # type: ignore[no-untyped-def]
    for y in range(small.shape[0]):
        for x in range(small.shape[1]):
            a, b = labels[2 * y, 2 * x], labels[2 * y, 2 * x + 1]
            c, d = labels[2 * y + 1, 2 * x], labels[2 * y + 1, 2 * x + 1]
            best = a if a in (b, c, d) else -1
            if b > best and b in (c, d):
                best = b
            if c > best and c == d:
                best = c
            small[y, x] = best if best >= 0 else max(max(a, b), max(c, d))


@njit(cache=True, nogil=True)
def _rounded_mean(maps, small):  # type: ignore[no-untyped-def]
    for k in range(small.shape[0]):
        for y in range(small.shape[1]):
            for x in range(small.shape[2]):
                total = np.uint16(maps[k, 2 * y, 2 * x]) + maps[k, 2 * y, 2 * x + 1]
                total += np.uint16(maps[k, 2 * y + 1, 2 * x]) + maps[k, 2 * y + 1, 2 * x + 1]
                small[k, y, x] = (total + 2) // 4


@njit(cache=True, nogil=True)
def _mean_without_nan(bands, small):  # type: ignore[no-untyped-def]
    for k in range(small.shape[0]):
        for y in range(small.shape[1]):
            for x in range(small.shape[2]):
                total, count = 0.0, 0
                for dy in range(2):
                    for dx in range(2):
                        value = np.float64(bands[k, 2 * y + dy, 2 * x + dx])
                        if not np.isnan(value):
                            total += value
                            count += 1
                small[k, y, x] = total / count if count else np.nan


_SOURCE_SHRINKERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "label": shrink_labels,
    "probability": shrink_probability,
    "science": shrink_science,
}
"""Function that halves each map, in a store of `segment`."""


def _shrinkers(layout: Layout) -> dict[str, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return the function that halves each map of the pyramid."""
    if not layout.maps:
        return _SOURCE_SHRINKERS
    outputs = {
        output.name: shrink_science if output.dtype == "float32" else shrink_probability
        for output in layout.maps
    }
    return {**outputs, "science": shrink_science}
