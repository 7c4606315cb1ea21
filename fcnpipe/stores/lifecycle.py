"""Life cycle of a store: create or resume OUT.zarr.partial, lock it, publish it as OUT.zarr.

::

    fresh --create--> OUT.zarr.partial --publish--> OUT.zarr
                        |      ^
                        +-kill-+  resume: same run key, same tile grid

Every step survives a crash. Publishing verifies the store, writes the parquet file under a temporary
name, consolidates the metadata and sets the status to complete. That is one atomic write, after which
only renames remain: remove the scratch folder, flush, move an old OUT.zarr aside, rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcnpipe.core.errors import StoreError, VerificationError
from fcnpipe.stores.atomic_writes import TEMPORARY_SUFFIX, atomic_write, convert_os_errors
from fcnpipe.stores.base import State, StoreReader
from fcnpipe.stores.hierarchy import SCRATCH
from fcnpipe.stores.identity import RunIdentity, load_identity
from fcnpipe.stores.integrity import CHECKSUMS, checksum_arrays
from fcnpipe.stores.parquet import write_parquet
from fcnpipe.stores.paths import (
    final_path,
    parquet_path,
    partial_parquet_path,
    partial_path,
    report_path,
)
from fcnpipe.stores.verification import find_gaps, find_problems

OVERWRITE_MARK = "overwrite"
"""Scratch file of a run with --overwrite: it may replace OUT.zarr, and it started from scratch."""

OWNER_FILE = "owner.json"
"""Scratch file that names the run to which a partial store belongs."""

CLAIM_SUFFIX = ".claim"
"""Suffix of the lock file next to a store that is to be uploaded to a URL."""

FAILED_TILES = "failed"
"""Root attribute of a partial store: names of the tiles that failed."""


def prepare_output(out: str | Path, identity: RunIdentity, overwrite: bool = False) -> State:
    """Find the state of an output path, and clear the path where --overwrite permits it.

    Parameters
    ----------
    out : str or Path
        OUT.zarr.
    identity : RunIdentity
        Inputs, model, version and options of the run.
    overwrite : bool
        Whether to start from scratch. An existing OUT.zarr stays until the new one is complete. An
        unfinished run with the same identity that itself started with ``overwrite`` is resumed.

    Returns
    -------
    str
        ``fresh``: create the store; ``resume``: continue OUT.zarr.partial; ``complete``: the
        result exists already.

    Raises
    ------
    StoreError
        If the path holds the store of another run (the message names the differences), is being
        written by a run, holds something other than a store, or cannot be written.
    """
    out, partial = Path(out), partial_path(out)
    with convert_os_errors(out):
        _check_writable(out)
        _check_is_store(out)
        _check_is_store(partial)
        if partial.exists():
            with lock_output(partial):
                pass
        if overwrite and not _is_own_overwrite(partial, identity):
            _remove_all(partial, partial_parquet_path(out))
            return "fresh"
        _finish_renames(partial)
        return _find_state(out, partial, identity)


def remove_partial(partial: Path) -> None:
    """Remove OUT.zarr.partial, its unpublished parquet file, and the reports of its run."""
    out = final_path(partial)
    with convert_os_errors(partial):
        _remove_all(partial, partial_parquet_path(out))
        if not out.exists():
            _remove_all(report_path(out, "json"), report_path(out, "html"))


@contextmanager
def lock_output(partial: Path, owner: str = "") -> Iterator[None]:
    """Hold an exclusive lock on OUT.zarr.partial, or on any other path.

    Parameters
    ----------
    partial : Path
        OUT.zarr.partial.
    owner : str
        Name of the run that becomes the owner of the store, for `check_owner`; the owner stays the
        same if it is empty.

    Raises
    ------
    StoreError
        If another run holds the lock.

    Notes
    -----
    The kernel, or the server of a network file system, holds the lock. It releases the lock when the
    process ends for any reason, so there are no stale locks. On a file system without locks the last
    run that starts owns the store, and `check_owner` stops the others.
    """
    folder = os.open(partial, os.O_RDONLY)
    try:
        _lock(folder, partial)
        if owner:
            record = {"run": owner, "process": os.getpid(), "host": socket.gethostname()}
            _write_json(partial / SCRATCH / OWNER_FILE, record)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, partial: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _read_owner(partial)
        process = f" (process {owner['process']} on {owner['host']})" if owner else ""
        raise StoreError(
            f"{partial} is being written by another run{process}: "
            "wait for it, or choose another output"
        ) from None
    except OSError:
        return  # a file system without locks


def check_owner(partial: Path, owner: str) -> None:
    """Check that a run still owns a store.

    Raises
    ------
    StoreError
        If another run has become the owner since, or the store has been published.
    """
    if _read_owner(partial).get("run") != owner:
        raise StoreError(
            f"{partial} belongs to another run now, or is published: this run stops writing"
        )


def _read_owner(partial: Path) -> dict[str, Any]:
    try:
        found = json.loads((partial / SCRATCH / OWNER_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _find_state(out: Path, partial: Path, identity: RunIdentity) -> State:
    if partial.exists() and (not out.exists() or _has_overwrite_mark(partial, identity)):
        identity.check_same_run(partial, load_identity(read_attributes(partial)))
        return "resume"
    if out.exists():
        identity.check_same_run(out, load_identity(read_attributes(out)))
        return "complete"
    return "fresh"


def _is_own_overwrite(partial: Path, identity: RunIdentity) -> bool:
    """Return whether an earlier, interrupted call of this run with --overwrite wrote OUT.zarr.partial."""
    found = read_attributes(partial)
    complete = found.get("run_key") == identity.key and found["status"] == "complete"
    return complete or (partial.exists() and _has_overwrite_mark(partial, identity))


def _has_overwrite_mark(partial: Path, identity: RunIdentity) -> bool:
    marked = (partial / SCRATCH / OVERWRITE_MARK).exists()
    return marked and read_attributes(partial)["run_key"] == identity.key


def _check_is_store(path: Path) -> None:
    """Raise StoreError if the path holds anything but a store, even with --overwrite."""
    if path.exists() and "run_key" not in read_attributes(path):
        raise StoreError(f"{path} exists and is not an fcnpipe store: choose another output")


def _check_writable(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"cannot write {out}: no permission in {out.parent}; choose another output"
        )


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the root attributes of a store; empty if they are missing or cannot be read."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def publish_store(store: StoreReader, overwrite: bool = False, checked: bool = False) -> Path:
    """Publish OUT.zarr.partial and return OUT.zarr.

    Parameters
    ----------
    store : StoreReader
        The partial store.
    overwrite : bool
        Whether an existing OUT.zarr may be replaced.
    checked : bool
        Whether labels and catalogue have been verified and the parquet file written already.

    Raises
    ------
    StoreError
        If OUT.zarr was created during the run and may not be replaced.
    VerificationError
        If labels, catalogue and ledger contradict each other.
    """
    out = final_path(store.path)
    if store.attrs["status"] != "complete":
        _check_may_replace(store.path, out, overwrite)
        problems = list(find_gaps(store)) if checked else find_problems(store)
        raise_problems(store.path, problems)
        if store.has_sources and not (checked and partial_parquet_path(out).exists()):
            prepare_parquet(store)
        _remove_temporary_files(store.path)
        _write_array_checksums(store.path)
        consolidate(store.path, {"status": "complete"})
    _finish_renames(store.path)
    return out


def _write_array_checksums(path: Path) -> None:
    """Write the checksums of all arrays but the maps, whose checksums are written already."""
    attributes = {"crc32c": checksum_arrays(path)}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    _write_json(path / CHECKSUMS / "zarr.json", group)


def raise_problems(path: Path, problems: list[str]) -> None:
    """Raise an error if there are problems that forbid publication.

    Raises
    ------
    VerificationError
        With the first three problems.
    """
    if problems:
        raise VerificationError(f"{path} is not published: {'; '.join(problems[:3])}")


def prepare_parquet(store: StoreReader) -> None:
    """Write OUT.parquet under its temporary name, which `publish_store` changes.

    Notes
    -----
    This also starts to flush all files to disk in the background, so that little remains to be
    flushed when the store is renamed.
    """
    write_parquet(store, partial_parquet_path(final_path(store.path)))
    threading.Thread(target=os.sync, daemon=True).start()


def _check_may_replace(partial: Path, out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite and not (partial / SCRATCH / OVERWRITE_MARK).exists():
        raise StoreError(f"{out} was created during the run: move it away, or use --overwrite")


def set_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Update root attributes in one atomic write; consolidated metadata are removed."""
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"] |= attributes
    root.pop("consolidated_metadata", None)
    _write_json(path / "zarr.json", root)


def consolidate(path: Path, attributes: dict[str, Any]) -> None:
    """Consolidate the metadata in the root and update its attributes, in one atomic write.

    Notes
    -----
    The nodes are sorted by name. `zarr.consolidate_metadata` is not used, because it keeps the order of
    the folder listing, so the bytes would differ from run to run. The scratch folder is omitted.
    """
    nodes = {
        file.parent.relative_to(path).as_posix(): json.loads(file.read_text())
        for file in sorted(path.rglob("zarr.json"))
    }
    root = nodes.pop(".")
    metadata = {
        name: _consolidated_member(node)
        for name, node in sorted(nodes.items())
        if not name.startswith(SCRATCH)
    }
    root["attributes"].pop(FAILED_TILES, None)
    root["attributes"] |= attributes
    root["consolidated_metadata"] = _inline(metadata)
    _write_json(path / "zarr.json", root)


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2))


def _inline(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": metadata}


def _consolidated_member(node: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a node as zarr writes them inside consolidated metadata."""
    return node | {"consolidated_metadata": _inline({})} if node["node_type"] == "group" else node


def finish_publishing(partial: Path) -> None:
    """Rename a complete OUT.zarr.partial to OUT.zarr after a crash during publication.

    Notes
    -----
    Hold the lock of the store (`lock_output`) during the call.
    """
    with convert_os_errors(partial):
        _finish_renames(partial)


def _finish_renames(partial: Path) -> None:
    """Do the steps of publication that follow the status complete; they can be repeated after a crash."""
    out = final_path(partial)
    aside = out.with_name(f".{out.name}.replaced")
    if read_attributes(partial).get("status") == "complete" and partial != out:
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        os.sync()
        if out.exists():
            _remove_all(aside)
            os.rename(out, aside)
        os.rename(partial, out)
    if out.exists():
        if (aside / "sources").exists() and not (out / "sources").exists():
            _remove_all(parquet_path(out))  # the catalogue of the replaced store
        _remove_all(aside)
        unpublished = partial_parquet_path(out)
        if unpublished.exists() and not partial.exists():
            os.replace(unpublished, parquet_path(out))


def _remove_temporary_files(path: Path) -> None:
    """Remove the temporary files of killed writers."""
    for folder, _, files in os.walk(path):
        for name in files:
            if name.endswith(TEMPORARY_SUFFIX):
                os.unlink(os.path.join(folder, name))


def _remove_all(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
