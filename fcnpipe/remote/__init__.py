"""Objects behind URLs (https, S3, GCS and other protocols of fsspec): range reads, listings and uploads.

::

    url --> connect --> fetch ranges --> compare the version of every answer with that of the object
                          ^   |
                          +---+  transient errors (lost connection, 5xx) are retried, with pauses

No record holds a connection: fsspec keeps one for each process and server, so that everything here is
safe to pickle and to fork. Credentials come from the environment and from config files; a URL that
carries one is refused.
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
