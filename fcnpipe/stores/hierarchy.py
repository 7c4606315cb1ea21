"""Groups and arrays of a zarr output store: shapes, attributes, chunks and shards."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from fcnpipe.core.geometry import round_up
from fcnpipe.core.records import ELEVATION_SCALE, PROBABILITY_SCALE, OutputMap, PixelFlag
from fcnpipe.stores.base import Layout
from fcnpipe.stores.shard_io import ZSTD_LEVEL

SCRATCH = ".scratch"
"""Folder of a partial store for files that only the run needs; removed when the store is published."""

MESH_CHUNK = 512
"""Edge of a storage chunk of the background mesh, in cells."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape, dtype, storage grid and attributes of one array.

    Attributes
    ----------
    shape, dtype, fill
        As in numpy; ``fill`` is the value of pixels that were never written.
    dims : tuple of str
        Name of each axis.
    chunks, shards : tuple of int
        Storage grid; None means no shards.
    compressed : bool
        Whether chunks are compressed (zstd).
    attrs : dict
        CF attributes.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    fill: float = 0
    compressed: bool = True
    attrs: Mapping[str, Any] = field(default_factory=dict)


def create_array(group: zarr.Group, name: str, spec: ArraySpec) -> zarr.Array[Any]:
    """Create an empty array."""
    return _create(group, name, spec, shape=spec.shape, dtype=spec.dtype)


def fill_array(group: zarr.Group, name: str, spec: ArraySpec, values: NDArray[Any]) -> None:
    """Create an array with the shape and dtype of the values, and write them.

    Notes
    -----
    This is a single call of zarr, because each call takes about 1 ms regardless of the size.
    """
    assert (values.shape, values.dtype) == (spec.shape, np.dtype(spec.dtype)), name
    _create(group, name, spec, data=values)


def _create(group: zarr.Group, name: str, spec: ArraySpec, **content: Any) -> zarr.Array[Any]:
    return group.create_array(
        name,
        **content,
        chunks=spec.chunks,
        shards=spec.shards,
        fill_value=spec.fill,
        compressors=ZstdCodec(level=ZSTD_LEVEL if spec.shards else 1) if spec.compressed else None,
        dimension_names=spec.dims,
        attributes=dict(spec.attrs),
    )


def store_values(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    dims: Sequence[str],
    attrs: Mapping[str, Any],
) -> None:
    """Create a small array of one chunk with axes ``dims`` and attributes ``attrs``, and write its values."""
    chunks = tuple(max(n, 1) for n in values.shape)
    spec = ArraySpec(values.shape, values.dtype.str, tuple(dims), chunks, attrs=attrs)
    fill_array(group, name, spec, values)


def replace_group(path: Path, name: str, attrs: Mapping[str, Any]) -> zarr.Group:
    """Create an empty group in the store at ``path`` in place of any old group of that name."""
    shutil.rmtree(path / name, ignore_errors=True)
    return zarr.create_group(path / name, zarr_format=3, attributes=dict(attrs))


def create_hierarchy(path: Path, layout: Layout, attrs: Mapping[str, Any]) -> None:
    """Create all groups and empty arrays of a store at ``path``, which must not exist."""
    root = zarr.create_group(path, zarr_format=3, attributes=dict(attrs))
    image = root.create_group("image")
    create_level(image.create_group("0"), layout, 0, science=layout.keep_image)
    _create_names_and_wcs(image["0"], layout)
    _create_background(root.create_group("background"), layout)
    create_array(root, "ledger", ledger_spec(layout))
    scratch = zarr.create_group(path / SCRATCH, zarr_format=3)
    if not layout.maps:
        create_array(scratch, "segments", image_specs(layout, 0)["label"])


def create_level(group: zarr.Group, layout: Layout, level: int, science: bool) -> None:
    """Create the arrays and pixel coordinates of one pyramid level; ``science`` includes the science image."""
    for name, spec in image_specs(layout, level).items():
        if name != "science" or science:
            create_array(group, name, spec)
    for axis, size in zip("yx", level_shape(layout, level), strict=True):
        centres = pixel_centres(size, level)
        attrs = {"long_name": f"pixel centre along {axis}, 0-based", "units": "pixel"}
        store_values(group, axis, centres, (axis,), attrs)


def level_shape(layout: Layout, level: int) -> tuple[int, int]:
    """Return height and width of a pyramid level, in pixels of that level."""
    height, width = layout.shape
    return -(-height // 2**level), -(-width // 2**level)


def pixel_centres(size: int, level: int) -> NDArray[Any]:
    """Return the pixel centres of a level in pixels of the full image.

    Returns
    -------
    (size,) ndarray
        int64 for level 0, float64 for higher levels.

    Examples
    --------
    >>> pixel_centres(3, 0), pixel_centres(3, 1)
    (array([0, 1, 2]), array([0.5, 2.5, 4.5]))
    """
    index = np.arange(size)
    return index if level == 0 else (index + 0.5) * 2**level - 0.5


def image_specs(layout: Layout, level: int) -> dict[str, ArraySpec]:
    """Return the specification of each array of a level, by name; elevation and flags exist at level 0 only."""
    maps = _output_specs(layout, level) if layout.maps else _source_specs(layout, level)
    units = {"units": layout.unit} if layout.unit else {}
    science = {"long_name": "science image, NaN = no data", **units}
    maps["science"] = _image_spec(layout, level, "float32", "band", science)
    if level == 0:
        maps["flags"] = _image_spec(layout, level, "uint8", None, _FLAGS)
    return maps


def _source_specs(layout: Layout, level: int) -> dict[str, ArraySpec]:
    maps = {
        "label": _image_spec(layout, level, "int32", None, _LABEL),
        "probability": _image_spec(layout, level, "uint8", "class", _PROBABILITY),
    }
    if level == 0:
        maps["elevation"] = _image_spec(layout, level, "uint16", None, _ELEVATION)
    return maps


def _output_specs(layout: Layout, level: int) -> dict[str, ArraySpec]:
    return {
        output.name: _image_spec(layout, level, output.dtype, None, _output_attrs(output))
        for output in layout.maps
    }


def ledger_spec(layout: Layout) -> ArraySpec:
    """Return the specification of the ledger: one file of one byte for each tile and stage."""
    attrs = {
        "long_name": "completed stages of each tile",
        "flag_values": [0, 1],
        "flag_meanings": "pending done",
        "stages": " ".join(layout.stages),
    }
    shape = (len(layout.stages), *layout.grid.counts)
    dims = ("stage", "tile_y", "tile_x")
    return ArraySpec(shape, "uint8", dims, (1, 1, 1), compressed=False, attrs=attrs)


_LABEL = {"long_name": "number of the source that owns the pixel, 0 = background"}
_PROBABILITY = {
    "long_name": "probability of the class",
    "scale_factor": PROBABILITY_SCALE,
    "units": "1",
}
_ELEVATION = {
    "long_name": "elevation that separates sources, 65535 = 1",
    "comment": "elevation in [0, 1] times 65535, rounded; an integer, so that order is exact; "
    "0 in the sky",
}
_FLAGS = {
    "long_name": "reasons why a pixel is unreliable",
    "flag_masks": [int(flag) for flag in PixelFlag],
    "flag_meanings": " ".join(str(flag.name).lower() for flag in PixelFlag),
}


_SCALES = {"uint8": PROBABILITY_SCALE, "uint16": ELEVATION_SCALE}
_ROLES = {
    "restored": "restored image, NaN = no data",
    "component": "{} alone, without the sky, NaN = no data",
    "class": "probability of the class {}",
    "source": "probability of a source",
}


def _output_attrs(output: OutputMap) -> dict[str, Any]:
    role, _, which = output.role.partition(":")
    attrs: dict[str, Any] = {
        "long_name": _ROLES.get(role, role).format(which),
        "role": output.role,
    }
    if output.dtype in _SCALES:
        attrs["scale_factor"] = _SCALES[output.dtype]
    return attrs | ({"units": output.unit} if output.unit else {})


def _image_spec(
    layout: Layout, level: int, dtype: str, axis: str | None, attrs: Mapping[str, Any]
) -> ArraySpec:
    shape = level_shape(layout, level)
    chunks, shards = storage_grid(layout, shape)
    lead = () if axis is None else (len(layout.classes if axis == "class" else layout.bands),)
    return ArraySpec(
        shape=(*lead, *shape),
        dtype=dtype,
        dims=("y", "x") if axis is None else (axis, "y", "x"),
        chunks=(*(1 for _ in lead), *chunks),
        shards=(*lead, *shards),
        fill=np.nan if dtype == "float32" else 0,
        attrs=attrs,
    )


def storage_grid(layout: Layout, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of a chunk and of a shard, px, of an image of ``shape`` px on the tile grid.

    Notes
    -----
    An axis shorter than a tile has one shard, whose length is rounded up to a whole number of chunks.
    """
    pairs = list(zip(layout.edge, shape, strict=True))
    chunks = [min(layout.chunk, edge, size) for edge, size in pairs]
    shards = [
        edge if size > edge else round_up(size, chunk)
        for (edge, size), chunk in zip(pairs, chunks, strict=True)
    ]
    return (chunks[0], chunks[1]), (shards[0], shards[1])


def _create_names_and_wcs(group: Any, layout: Layout) -> None:
    stored = {"class": not layout.maps, "band": layout.keep_image}
    for dim, names in (("class", layout.classes), ("band", layout.bands)):
        if stored[dim]:
            store_values(group, dim, np.arange(len(names)), (dim,), name_attrs(dim, names))
    wcs = {"long_name": "world coordinates", "fits_cards": list(layout.cards)}
    store_values(group, "wcs", np.zeros((), np.int32), (), wcs)


def name_attrs(dim: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the CF attributes that name the integers 0, 1, ... along an axis."""
    meanings = " ".join("_".join(name.split()) for name in names)
    return {
        "long_name": f"index of the {dim}",
        "flag_values": list(range(len(names))),
        "flag_meanings": meanings,
    }


def _create_background(group: zarr.Group, layout: Layout) -> None:
    dims = ("band", "mesh_y", "mesh_x")[-len(layout.mesh_shape) :]
    chunks = (1, *(min(MESH_CHUNK, n) for n in layout.mesh))[-len(dims) :]
    units = {"units": layout.unit} if layout.unit else {}
    for name, text in (("sky", "sky level"), ("noise", "noise of one pixel, standard deviation")):
        attrs = {"long_name": f"{text} of a mesh cell, NaN = unknown", **units}
        spec = ArraySpec(layout.mesh_shape, "float32", dims, chunks, fill=np.nan, attrs=attrs)
        create_array(group, name, spec)
    for axis, cells, size in zip("yx", layout.mesh, layout.shape, strict=True):
        attrs = {"long_name": f"centre of the mesh cell along {axis}, 0-based", "units": "pixel"}
        centres = cell_centres(cells, layout.cell, size)
        store_values(group, f"mesh_{axis}", centres, (f"mesh_{axis}",), attrs)


def cell_centres(cells: int, cell: int, size: int) -> NDArray[np.float64]:
    """Return the centres of the mesh cells along an axis, px; the image border clips the last cell.

    Examples
    --------
    >>> cell_centres(2, 64, 100)
    array([31.5, 81.5])
    """
    starts = np.arange(cells) * cell
    centres: NDArray[np.float64] = (starts + np.minimum(starts + cell, size) - 1) / 2
    return centres
