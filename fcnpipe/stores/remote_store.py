"""A finished store behind a URL, read where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe import remote
from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Box
from fcnpipe.remote import uploads
from fcnpipe.remote.zarr_store import open_zarr_store
from fcnpipe.stores.integrity import Damage
from fcnpipe.stores.zarr import WCS, ZarrStore


def open_store(path: str | Path) -> ZarrStore:
    """Open a finished store, or a partial one on disk by its full name.

    Parameters
    ----------
    path : str or Path
        Folder or URL.

    Raises
    ------
    StoreError, RemoteError
        If there is none, or it cannot be had.
    """
    text = str(path)
    return RemoteStore.open(text) if remote.is_remote(text) else ZarrStore.open(path)


@dataclass(frozen=True)
class RemoteStore(ZarrStore):
    """A finished store behind a URL, read-only.

    Parameters
    ----------
    path : Path
        Its name.
    url : str
        Where it lies.
    """

    url: str = ""

    @classmethod
    def open(cls, path: str | Path) -> RemoteStore:
        """Open a store by its URL.

        Raises
        ------
        StoreError, RemoteError
            If there is none, or it cannot be had.
        """
        url = remote.check_url(str(path)).rstrip("/")
        store = cls(Path(url.rpartition("/")[2]), url)
        try:
            remote.fetch_version(f"{url}/zarr.json")
        except remote.Missing:
            raise store._unknown() from None
        if "run_key" not in store.attrs:
            raise store._unknown()
        return store

    def _unknown(self) -> StoreError:
        return StoreError(f"{self.url} is no fcnpipe store: give the OUT.zarr of 'fcnpipe segment'")

    @cached_property
    def root(self) -> zarr.Group:
        """The hierarchy, its metadata read once."""
        return zarr.open_group(open_zarr_store(self.url), mode="r")

    @property
    def location(self) -> Any:
        """What zarr and xarray open to read it."""
        return open_zarr_store(self.url)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root group."""
        return dict(self.root.attrs)

    def _read_cards(self) -> list[str]:
        return [str(card) for card in self.root[WCS].attrs.get("fits_cards", [])]  # type: ignore[union-attr]

    def has(self, name: str) -> bool:
        """Whether an array or group such as ``image/0/science`` is there."""
        return name in self.root

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Give (tile_y, tile_x) bool: which tiles are marked."""
        return np.asarray(self._array("ledger")[self._stage(stage)], bool)

    def find_damage(self) -> Iterator[Damage]:
        """Refuse: the bytes are looked at where they are near."""
        raise StoreError(
            f"{self.url} is behind a URL: copy it and its .parquet to a disk, look deep and repair "
            "it there, and copy it back; or segment it again with --overwrite"
        )

    def _map(self, name: str) -> Any:
        return _Map(self._array(name), f"{self.url}/{name}")

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            found = self.root[name]
        except KeyError:
            raise StoreError(f"{self.url} has no array {name}") from None
        assert isinstance(found, zarr.Array), name
        return found

    def _group(self, name: str) -> zarr.Group:
        found = self.root[name]
        assert isinstance(found, zarr.Group), name
        return found

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.url)


@dataclass(frozen=True)
class _Map:
    """A map that zarr reads."""

    array: zarr.Array[Any]
    url: str

    def read(self, box: Box) -> NDArray[Any]:
        """Give the values of a box, (..., h, w)."""
        return np.asarray(self.array[(..., *box.slices)])

    def checksum(self, box: Box) -> int:
        """Give the CRC-32C of the object that is a core, 0 if there is none."""
        height, width = (
            self.array.chunks[-2:] if self.array.shards is None else self.array.shards[-2:]
        )
        place = *(0 for _ in self.array.shape[:-2]), box.y0 // height, box.x0 // width
        key = self.array.metadata.encode_chunk_key(place)
        return int(google_crc32c.value(uploads.get(f"{self.url}/{key}") or b""))
