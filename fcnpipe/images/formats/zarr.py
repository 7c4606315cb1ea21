"""Reader of zarr arrays (v2, v3), groups with one image, OME-NGFF pyramids and stores of xarray.

The pixels of missing chunks are the array's fill value. CF's ``_FillValue``, ``scale_factor`` and
``add_offset`` are applied. Chunks are decoded as a whole, even if the array is one huge chunk.
"""

from __future__ import annotations

import base64
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, cast

import numpy as np
import zarr
from astropy.io import fits
from numpy.typing import NDArray

from fcnpipe import remote
from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.core.records import ImageInfo
from fcnpipe.images.axes import band_index, check_real_dtype, fold_axes, number_bands
from fcnpipe.images.base import ZARR_CHUNKS_IN_FLIGHT, Reader
from fcnpipe.images.digests import new_digest
from fcnpipe.images.errors import LIBRARY_ERRORS, first_line, reading_error, silence_warnings
from fcnpipe.images.file_access import open_bytes, peek
from fcnpipe.images.headers import is_structural, pad_card
from fcnpipe.images.scaling import Scaling
from fcnpipe.remote import ObjectVersion, is_remote
from fcnpipe.remote.zarr_store import open_zarr_store

Node = zarr.Array[Any] | zarr.Group

_METADATA = ("zarr.json", ".zarray", ".zgroup")
_ARRAY_METADATA = ("zarr.json", ".zarray", ".zattrs")
_CARD_KEYS = ("fits_cards", "wcs", "cards", "header")
_READ_BYTES = 1 << 20
_RESULT_ATTRIBUTE, _RESULT_IMAGE = "run_key", "image/0/science"
"""Attribute that marks a store of fcnpipe, and the path of the image in it (with ``--keep-image``)."""
_MAX_DEPTH = 4
"""Levels of groups that are searched for an image."""


def recognises(path: str) -> bool:
    """Return whether a folder or URL contains zarr metadata."""
    return any(peek(f"{path.rstrip('/')}/{name}", 1) for name in _METADATA)


def open_reader(path: str, hdu: int | str | None) -> Reader:
    """Open one array; ``hdu`` is its path in the store.

    Raises
    ------
    InputError
        If there is no such array, if the choice of the array is ambiguous, or if it is not an image.
    """
    with silence_warnings():
        try:
            root = zarr.open(_open_store(path), mode="r")
            member = _find_array(path, root, "" if hdu is None else str(hdu).strip("/"))
            return _make_reader(path, root, member)
        except InputError:
            raise
        except LIBRARY_ERRORS as error:
            raise _reading_error(path, error) from None


def _open_store(path: str) -> Any:
    return open_zarr_store(path) if is_remote(path) else path


def _reading_error(path: str, error: BaseException) -> InputError:
    reason = first_line(error)
    return reading_error(
        error, f"{path} cannot be read as zarr: {reason}; check that the copy is complete"
    )


# ---------------------------------------------------------------- choice of the array


def _find_array(path: str, root: Node, member: str) -> str:
    """Return the path of the array in the store; empty if the store is the array."""
    wanted, node = member, _get_node(root, member)
    for _ in range(_MAX_DEPTH):
        if node is None or isinstance(node, zarr.Array):
            break
        member = _join(member, _choose_child(node))
        node = _get_node(root, member)
    if isinstance(node, zarr.Array):
        return member
    what = f"no single image at {wanted!r}" if wanted else "no single image"
    if member == _RESULT_IMAGE and _RESULT_ATTRIBUTE in root.attrs:
        raise InputError(
            f"{path} is a result that was made without --keep-image: use the image itself, or name "
            "an array with --hdu PATH"
        )
    if found := _list_arrays(root):
        raise InputError(f"{path} has {what}, only {found}: choose one with --hdu PATH")
    raise InputError(f"{path} has {what}, and no arrays at all: use a store that contains an image")


def _get_node(root: Node, member: str) -> Node | None:
    if not member:
        return root
    try:
        return None if isinstance(root, zarr.Array) else root[member]
    except KeyError:
        return None


def _choose_child(group: zarr.Group) -> str:
    """Return the name of the child that holds the image, or a name that does not exist."""
    if _RESULT_ATTRIBUTE in group.attrs:
        return _RESULT_IMAGE
    if level_0 := _ome_level_0(group.attrs):
        return level_0
    images = sorted(name for name, array in group.arrays() if _is_image(array))
    if "science" in images or len(images) == 1:
        return "science" if "science" in images else images[0]
    groups = sorted(group.group_keys())
    if not images and ("image" in groups or len(groups) == 1):
        return "image" if "image" in groups else groups[0]
    return "?"


def _ome_level_0(attributes: Mapping[str, Any]) -> str:
    """Return the path of level 0 from OME-NGFF 0.5 or 0.4 metadata; empty if there is none."""
    ome = attributes.get("ome", attributes)
    try:
        return str(ome["multiscales"][0]["datasets"][0]["path"])
    except (KeyError, IndexError, TypeError):
        return ""


def _is_image(array: zarr.Array[Any]) -> bool:
    return array.ndim >= 2 and array.dtype.kind in "biufc"


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def _list_arrays(root: Node) -> str:
    if isinstance(root, zarr.Array):
        return f"one array of {root.shape}"
    found = [f"{name} {array.shape}" for name, array in _walk_arrays(root, _MAX_DEPTH)]
    return ", ".join(found[:20])


def _walk_arrays(
    group: zarr.Group, depth: int, parent: str = ""
) -> Iterator[tuple[str, zarr.Array[Any]]]:
    yield from ((_join(parent, name), array) for name, array in sorted(group.arrays()))
    if depth > 1:
        for name, child in sorted(group.groups()):
            yield from _walk_arrays(child, depth - 1, _join(parent, name))


# ---------------------------------------------------------------- reader


def _make_reader(path: str, root: Node, member: str) -> Reader:
    array = cast("zarr.Array[Any]", _get_node(root, member))
    name = f"{path} {member}".strip()
    check_real_dtype(array.dtype, name)
    shape = fold_axes(array.shape, name)
    info = ImageInfo(
        shape=shape,
        dtype=array.dtype.newbyteorder("=").name,
        cards=_find_cards(root, member, array),
        bands=number_bands(shape[0]),
        unit=str(array.attrs.get("units", array.attrs.get("BUNIT", ""))),
    )
    scaling = _read_scaling(array)
    return ZarrReader(
        path,
        member,
        _metadata_digest(array),
        tuple(array.shape),
        _overhead_bytes(array),
        info,
        scaling,
    )


def _metadata_digest(array: zarr.Array[Any]) -> str:
    """Return a digest of the metadata, which distinguishes a rewritten array from the opened one."""
    return new_digest(repr(array.metadata.to_dict())).hexdigest()


def _overhead_bytes(array: zarr.Array[Any]) -> int:
    """Return the size of the chunks that are decoded concurrently, compressed and decompressed."""
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    return min(2 * ZARR_CHUNKS_IN_FLIGHT * chunk, 2 * int(array.nbytes))


def _read_scaling(array: zarr.Array[Any]) -> Scaling:
    factor, offset = (
        _float_attribute(array, "scale_factor", 1.0),
        _float_attribute(array, "add_offset", 0.0),
    )
    return Scaling(factor, offset, _find_blank(array))


def _float_attribute(array: zarr.Array[Any], name: str, default: float) -> float:
    value: Any = array.attrs.get(name, default)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"attribute {name}={value!r} is not a number") from None


def _find_blank(array: zarr.Array[Any]) -> int | float | None:
    """Return the stored number that means "no data", or None.

    Notes
    -----
    xarray writes this number as the fill value of the array in zarr v2, and as an attribute in v3 (floats
    as base64 of a little-endian double). In stores of other programs the fill value is an ordinary value.
    """
    blank: Any = array.attrs.get("_FillValue", array.attrs.get("missing_value"))
    if blank is None and "_ARRAY_DIMENSIONS" in array.attrs:
        blank = array.metadata.fill_value
    if isinstance(blank, str):
        blank = _decode_fill(blank)
    if blank is None or math.isnan(blank):
        return None
    return int(blank) if float(blank).is_integer() else float(blank)


def _decode_fill(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float(struct.unpack("<d", base64.standard_b64decode(text))[0])


def _find_cards(root: Node, member: str, array: zarr.Array[Any]) -> tuple[str, ...]:
    """Return the header cards in the attributes of the array, its groups, or a sibling array ``wcs``."""
    for attributes in _header_attributes(root, member, array):
        for key in _CARD_KEYS:
            if cards := _parse_header(attributes.get(key)):
                return cards
    return ()


def _header_attributes(
    root: Node, member: str, array: zarr.Array[Any]
) -> Iterator[Mapping[str, Any]]:
    yield array.attrs
    parent = member
    while parent:
        parent = parent.rpartition("/")[0]
        for node in (_get_node(root, parent), _get_node(root, _join(parent, "wcs"))):
            if node is not None:
                yield node.attrs


def _parse_header(value: Any) -> tuple[str, ...]:
    """Return the cards of a list of cards, the text of a header, or a mapping of keywords to values."""
    if isinstance(value, Mapping):
        header = fits.Header(dict(value))
    elif isinstance(value, str):
        header = fits.Header.fromstring(value, sep="\n" if "\n" in value else "")
    elif isinstance(value, list | tuple):
        header = fits.Header.fromstring("".join(pad_card(str(card)) for card in value))
    else:
        return ()
    return tuple(str(card) for card in header.cards if card.keyword and not is_structural(card))


@dataclass(frozen=True, slots=True)
class ZarrReader:
    """Reader of one array of a store.

    Attributes
    ----------
    path, member : str
        Store, and path of the array in it (empty if the store is the array).
    metadata_digest : str
        Digest of the array's metadata when it was opened.
    shape : tuple of int
        All axes of the array.
    overhead_bytes : int
        Chunks that are decoded concurrently.
    """

    path: str
    member: str
    metadata_digest: str
    shape: tuple[int, ...]
    overhead_bytes: int
    info: ImageInfo
    scaling: Scaling

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield the stored numbers of a box; zarr is thread-safe for reading."""
        try:
            array = _open_array(self.path, self.member, self.metadata_digest, os.getpid())
            index: tuple[slice | int, ...] = (*band_index(self.shape, band), *box.slices)
            yield np.asarray(array[index])
        except LIBRARY_ERRORS as error:
            raise _reading_error(self.path, error) from None

    def digest(self) -> str:
        """Return the digest of the header cards and all stored objects of the array, metadata and chunks.

        Notes
        -----
        For an object whose server identifies its content, the server's version stands for the content.
        """
        root = f"{self.path.rstrip('/')}/{self.member}".rstrip("/")
        digest = new_digest("".join(self.info.cards))
        try:
            for name, version in self._list_objects(root).items():
                digest.update(f"/{name}".encode() + b"\0")
                _update_digest(digest, f"{root}/{name}", version)
        except LIBRARY_ERRORS as error:
            raise _reading_error(self.path, error) from None
        return digest.hexdigest()

    def _list_objects(self, root: str) -> dict[str, ObjectVersion]:
        """Return the versions of the stored objects by name.

        A web server cannot list objects, so the version of each possible one is requested.
        """
        if remote.can_list(root):
            return remote.list_objects(root)
        array = _open_array(self.path, self.member, self.metadata_digest, os.getpid())
        return remote.fetch_versions(root, [*_ARRAY_METADATA, *_chunk_names(array)])


def _chunk_names(array: zarr.Array[Any]) -> Iterator[str]:
    stored = array.shards or array.chunks
    counts = (range(-(-n // step)) for n, step in zip(array.shape, stored, strict=True))
    return (array.metadata.encode_chunk_key(index) for index in product(*counts))


def _update_digest(digest: Any, file: str, version: ObjectVersion) -> None:
    if version.identifies_content:
        digest.update(str(version).encode())
        return
    digest.update(version.size_bytes.to_bytes(8, "little"))
    with open_bytes(file) as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)


@lru_cache(maxsize=16)
def _open_array(path: str, member: str, metadata_digest: str, process: int) -> zarr.Array[Any]:
    with silence_warnings():
        return zarr.open_array(_open_store(path), path=member, mode="r")
