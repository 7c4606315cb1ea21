"""Read-only zarr store behind a URL, with retries after transient errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from functools import partial

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from fcnpipe.remote.file_systems import connect, storage_options
from fcnpipe.remote.retries import retry


def open_zarr_store(url: str) -> RetryingStore:
    """Return a read-only store for zarr.

    Raises
    ------
    RemoteError
        If the package for the protocol is not installed.
    """
    connect(url)
    return RetryingStore(
        FsspecStore.from_url(url.rstrip("/"), storage_options(url), read_only=True)
    )


class RetryingStore(WrapperStore[FsspecStore]):
    """A store that retries requests after transient errors."""

    @property
    def url(self) -> str:
        """URL of the store, for messages."""
        return f"{self._store.fs.unstrip_protocol(self._store.path)}"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object, or a range of it; None if it does not exist."""
        url = f"{self.url}/{key}"
        return await retry(url, partial(self._store.get, key, prototype, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return ranges of objects."""
        wanted = [self.get(key, prototype, cut) for key, cut in key_ranges]
        return await asyncio.gather(*wanted)

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    async def exists(self, key: str) -> bool:
        """Return whether an object exists."""
        return await retry(f"{self.url}/{key}", partial(self._store.exists, key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a prefix."""
        for name in await retry(f"{self.url}/{prefix}", partial(self._names, prefix)):
            yield name

    async def _names(self, prefix: str) -> list[str]:
        return [name async for name in self._store.list_dir(prefix)]
