"""Output stores: maps, catalogue, and the ledger of finished tiles."""

from __future__ import annotations

from fcnpipe.stores.base import (
    STAGES,
    Columns,
    Layout,
    ScienceReader,
    State,
    Store,
    Verification,
)
from fcnpipe.stores.identity import RunIdentity
from fcnpipe.stores.integrity import Damage
from fcnpipe.stores.lifecycle import check_owner, lock_output, prepare_output, remove_partial
from fcnpipe.stores.paths import parquet_path, partial_path
from fcnpipe.stores.remote_store import RemoteStore, open_store
from fcnpipe.stores.zarr import ZarrStore

__all__ = [
    "STAGES",
    "Columns",
    "Damage",
    "Layout",
    "RemoteStore",
    "RunIdentity",
    "ScienceReader",
    "State",
    "Store",
    "Verification",
    "ZarrStore",
    "check_owner",
    "lock_output",
    "open_store",
    "parquet_path",
    "partial_path",
    "prepare_output",
    "remove_partial",
]
