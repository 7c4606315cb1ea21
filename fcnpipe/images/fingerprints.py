"""Fingerprints of input files, to detect changes during a run without reading the content."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fcnpipe import images, remote
from fcnpipe.core.errors import InputChanged
from fcnpipe.core.spec import RunSpec
from fcnpipe.images.digests import hash_bytes
from fcnpipe.remote import is_remote

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Names of the metadata files of a zarr array or group."""


@dataclass(frozen=True, slots=True)
class InputFingerprint:
    """State of an input file when a run started, by which a later change is detected.

    Attributes
    ----------
    path : str
        Local path or URL, as `images.locate` returns it.
    quick : str
        Fingerprint of a single file; empty for a folder or URL.
    thorough : str
        Fingerprint of a file, folder or URL.
    """

    path: str
    quick: str
    thorough: str

    def check(self, thorough: bool) -> None:
        """Raise InputChanged if the file has changed, according to its quick or thorough fingerprint."""
        known = self.thorough if thorough else self.quick
        if fingerprint(self.path, thorough) != known:
            raise InputChanged(
                f"{self.path} changed while it was read, so nothing is published: restore the old "
                "file and run the same command again, or start from scratch with --overwrite"
            )


def fingerprint_inputs(spec: RunSpec) -> tuple[InputFingerprint, ...]:
    """Return the present fingerprints of image, weight, mask and prior."""
    named = (*spec.image, spec.weight, spec.mask, spec.prior)
    paths = [images.locate(path) for path in named if path]
    return tuple(InputFingerprint(p, fingerprint(p), fingerprint(p, thorough=True)) for p in paths)


def fingerprint(path: str, thorough: bool = False) -> str:
    """Return a text that changes when a file is rewritten; empty for a folder or URL unless ``thorough``.

    Parameters
    ----------
    path : str
        Local path or URL, as `images.locate` returns it.
    thorough : bool
        Whether to inspect every file of a folder and to query the version of objects behind a URL.

    Notes
    -----
    On disk: inode, size and modification time. Times are compared for equality, never for order, so a
    change of the system clock has no effect.
    """
    if is_remote(path):
        return _fingerprint_url(path) if thorough else ""
    if os.path.isdir(path):
        return _fingerprint_folder(path) if thorough else ""
    return _fingerprint_file(path)


def _fingerprint_url(url: str) -> str:
    """Return the version of an object, or the digest of the versions of all objects below a URL.

    A web server cannot list objects, so only the metadata of a zarr store are used there.
    """
    try:
        return str(remote.fetch_version(url))
    except remote.Missing:
        below = (
            remote.list_objects(url)
            if remote.can_list(url)
            else remote.fetch_versions(url, ZARR_METADATA)
        )
        return hash_bytes(str(below).encode())


def _fingerprint_folder(path: str) -> str:
    files = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    return hash_bytes("\n".join(f"{file} {_fingerprint_file(file)}" for file in files).encode())


def _fingerprint_file(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
