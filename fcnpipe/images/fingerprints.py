"""Fingerprints of input files, which change when a file is rewritten."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fcnpipe import images, remote
from fcnpipe.core.errors import InputChanged
from fcnpipe.core.spec import RunSpec
from fcnpipe.images.digests import _hash
from fcnpipe.remote import Stamp, is_remote

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Names of what describes an array or a group of them."""


@dataclass(frozen=True, slots=True)
class InputFingerprint:
    """What tells an input file from a later one at the same place, without reading it.

    Attributes
    ----------
    path : str
        The file, as the images are told.
    quick, thorough : str
        What is seen with a glance at a file, and with a look at a whole folder or a URL.
    """

    path: str
    quick: str
    thorough: str

    def check(self, thorough: bool) -> None:
        """Raise InputChanged unless the file is what it was."""
        known = self.thorough if thorough else self.quick
        if images.trace(self.path, thorough) != known:
            raise InputChanged(
                f"{self.path} changed while it was read, so nothing is published: put the old one "
                "back and run the same command again, or begin anew with --overwrite"
            )


def fingerprint_inputs(spec: RunSpec) -> tuple[InputFingerprint, ...]:
    """Give traces of image, weight, mask and prior as they are now."""
    named = (*spec.image, spec.weight, spec.mask, spec.prior)
    paths = [images.locate(path) for path in named if path]
    return tuple(
        InputFingerprint(p, images.trace(p), images.trace(p, thorough=True)) for p in paths
    )


def trace(path: str, thorough: bool = False) -> str:
    """Give what changes with the content of a file, without reading it; empty if that takes long.

    Parameters
    ----------
    path : str
        Local path or URL, as `locate` gives it.
    thorough : bool
        Look at every file of a folder, and ask for the version of what lies behind a URL.

    Notes
    -----
    Number, size and time of change on disk. Times are compared for being equal, never for being
    later: a clock that is set does no harm.
    """
    if is_remote(path):
        return _ask_version(path) if thorough else ""
    if os.path.isdir(path):
        return _trace_folder(path) if thorough else ""
    return _trace_file(path)


def _ask_version(url: str) -> str:
    """Give the stamp of an object, or of all below a URL; of a web server's, that of its metadata."""
    try:
        return str(remote.look(url))
    except remote.Missing:
        return _hash(str(_look_below(url)).encode())


def _look_below(url: str) -> dict[str, Stamp]:
    if remote.can_list(url):
        return remote.list_objects(url)
    return remote.look_at_all(url, ZARR_METADATA)


def _trace_folder(path: str) -> str:
    files = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    return _hash("\n".join(f"{file} {_trace_file(file)}" for file in files).encode())


def _trace_file(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
