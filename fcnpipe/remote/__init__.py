"""Objects behind URLs: https, S3, GCS and whatever else fsspec knows, read by range and put whole.

::

    url --> connect --> fetch ranges --> every answer is held against the object's stamp
                          ^   |
                          +---+  what may pass (lost connection, 5xx) is tried again, with pauses

No connection is kept in a record: fsspec holds one for each process and server, so that everything
here is safe to pickle and to fork. Credentials come from the environment and from config files; a URL
that carries one is refused.
"""

from __future__ import annotations

from fcnpipe.core.paths import can_list, check_url, is_remote
from fcnpipe.remote.byte_ranges import ObjectVersion, fetch_version, read, read_rows
from fcnpipe.remote.errors import (
    Changed,
    Forbidden,
    Missing,
    RemoteError,
    Unreachable,
)
from fcnpipe.remote.file_object import RemoteFile, read_whole
from fcnpipe.remote.file_systems import connect
from fcnpipe.remote.listing import (
    fetch_versions,
    find_objects,
    list_folder,
    list_objects,
    match_objects,
)

__all__ = [
    "Changed",
    "Forbidden",
    "Missing",
    "ObjectVersion",
    "RemoteError",
    "RemoteFile",
    "Unreachable",
    "can_list",
    "check_url",
    "connect",
    "fetch_version",
    "fetch_versions",
    "find_objects",
    "is_remote",
    "list_folder",
    "list_objects",
    "match_objects",
    "read",
    "read_rows",
    "read_whole",
]
