"""Read-only access to a finished store behind a URL, without copying it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
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
from fcnpipe.stores.array_access import convert_data_errors
from fcnpipe.stores.integrity import Damage
from fcnpipe.stores.zarr import WCS, ZarrStore

_FIX = (
    "copy it and its .parquet to a local disk, run 'fcnpipe verify --deep' or '--repair' there "
    "and copy it back; or segment the image again with --overwrite"
)


def open_store(path: str | Path) -> ZarrStore:
    """Open a finished store on disk or behind a URL, or a partial store on disk by its path OUT.zarr.partial.

    Parameters
    ----------
    path : str or Path
        Folder or URL.

    Returns
    -------
    ZarrStore
        A `RemoteStore` for a URL.

    Raises
    ------
    StoreError
        If the path is not a store.
    RemoteError
        If the server does not deliver it.
    """
    text = str(path)
    return RemoteStore.open(text) if remote.is_remote(text) else ZarrStore.open(path)


@dataclass(frozen=True)
class RemoteStore(ZarrStore):
    """A finished store behind a URL, read-only.

    Parameters
    ----------
    path : Path
        Name of the store, the last part of the URL.
    url : str
        Full URL.
    """

    url: str = ""

    @classmethod
    def open(cls, path: str | Path) -> RemoteStore:
        """Open a store by its URL.

        Raises
        ------
        StoreError
            If there is no store.
        RemoteError
            If the server does not deliver it.
        """
        url = remote.check_url(str(path)).rstrip("/")
        store = cls(Path(url.rpartition("/")[2]), url)
        try:
            remote.fetch_version(f"{url}/zarr.json")
        except remote.Missing:
            raise store._not_a_store() from None
        if "run_key" not in store.attrs:
            raise store._not_a_store()
        return store

    def _not_a_store(self) -> StoreError:
        return StoreError(
            f"{self.url} is not an fcnpipe store: pass the OUT.zarr of 'fcnpipe segment'"
        )

    @cached_property
    def root(self) -> zarr.Group:
        """Root group; its metadata are read once."""
        return zarr.open_group(open_zarr_store(self.url), mode="r")

    @property
    def location(self) -> Any:
        """Store argument for zarr and xarray, with which they open the store."""
        return open_zarr_store(self.url)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root group."""
        return dict(self.root.attrs)

    def _read_cards(self) -> list[str]:
        return [str(card) for card in self.root[WCS].attrs.get("fits_cards", [])]  # type: ignore[union-attr]

    def has(self, name: str) -> bool:
        """Return whether an array or group such as ``image/0/science`` exists."""
        return name in self.root

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Return a (tile_y, tile_x) bool array that is True for the marked tiles."""
        return np.asarray(self._open_array("ledger")[self._stage_index(stage)], bool)

    def find_damage(self) -> Iterator[Damage]:
        """Raise StoreError, because only stores on a local disk can be searched for damage."""
        raise StoreError(f"{self.url} is behind a URL: {_FIX}")

    def convert_errors(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which damaged data of an array raise a StoreError that states the fix."""
        return convert_data_errors(self.url, name, _FIX)

    def _open_map(self, name: str) -> Any:
        return _RemoteMap(self._open_array(name), f"{self.url}/{name}")

    def _open_array(self, name: str) -> zarr.Array[Any]:
        try:
            found = self.root[name]
        except KeyError:
            raise StoreError(f"{self.url} has no array {name}") from None
        assert isinstance(found, zarr.Array), name
        return found

    def _open_group(self, name: str) -> zarr.Group:
        found = self.root[name]
        assert isinstance(found, zarr.Group), name
        return found

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.url)


@dataclass(frozen=True)
class _RemoteMap:
    """A map behind a URL, read through zarr."""

    array: zarr.Array[Any]
    url: str

    def read(self, box: Box) -> NDArray[Any]:
        """Read the values of a box, (..., h, w)."""
        with convert_data_errors("the store", self.url, _FIX):
            return np.asarray(self.array[(..., *box.slices)])

    def checksum(self, box: Box) -> int:
        """Return the CRC-32C of the object that holds a core; 0 if there is none."""
        height, width = (
            self.array.chunks[-2:] if self.array.shards is None else self.array.shards[-2:]
        )
        index = *(0 for _ in self.array.shape[:-2]), box.y0 // height, box.x0 // width
        key = self.array.metadata.encode_chunk_key(index)
        return int(google_crc32c.value(uploads.get(f"{self.url}/{key}") or b""))
