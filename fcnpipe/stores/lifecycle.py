"""From nothing over OUT.zarr.partial to OUT.zarr, in steps that a crash cannot tear apart.

::

    fresh --create--> OUT.zarr.partial --publish--> OUT.zarr
                        |      ^
                        +-kill-+  resume: same run key, same tile grid

Publishing: verify, parquet aside, consolidate and set the status to complete (one atomic write:
from here on only renames are left), drop the scratch, flush, move an old OUT.zarr aside, rename.
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
from fcnpipe.stores.atomic_writes import TEMPORARY, atomic_write, convert_os_errors
from fcnpipe.stores.base import State, StoreReader
from fcnpipe.stores.hierarchy import SCRATCH
from fcnpipe.stores.identity import RunIdentity, load_identity
from fcnpipe.stores.integrity import CHECKSUMS, seal
from fcnpipe.stores.parquet import write_parquet
from fcnpipe.stores.paths import final_path, parquet_path, partial_path, report_path
from fcnpipe.stores.verification import find_gaps, find_problems

OVERWRITE_MARK = "overwrite"
"""Scratch file that remembers the user's consent to replace OUT.zarr, and that the run began afresh."""

OWNER = "owner.json"
"""Scratch file that names the run to which a partial store belongs."""

CLAIM_SUFFIX = ".claim"
"""Suffix of the file beside a store that is to be taken behind a URL: locked by the run that makes it."""

FAILED = "failed"
"""Root attribute of a partial store: names of the tiles that failed."""


def prepare_output(out: str | Path, identity: RunIdentity, overwrite: bool = False) -> State:
    """Say what is to be done at an output path, and clear it where that is agreed.

    Parameters
    ----------
    out : str or Path
        OUT.zarr.
    identity : RunIdentity
        What the run is made from.
    overwrite : bool
        Whether to start afresh. An existing OUT.zarr stays until the new one is whole. What this
        very run has begun afresh and left, it takes up.

    Returns
    -------
    str
        ``fresh``: create the store; ``resume``: take up OUT.zarr.partial; ``complete``: the
        result is there already.

    Raises
    ------
    StoreError
        If what is there belongs to another run (the message names what differs), is being written
        by one, is no store of ours, or the place cannot be written.
    """
    out, partial = Path(out), partial_path(out)
    with convert_os_errors(out):
        _check_writable(out)
        _check_ours(out)
        _check_ours(partial)
        if partial.exists():
            with lock_output(partial):
                pass
        if overwrite and not _has_begun(partial, identity):
            _remove_all(partial, _leftover(parquet_path(out)))
            return "fresh"
        _finish(partial)
        return _decide(out, partial, identity)


def remove_partial(partial: Path) -> None:
    """Remove OUT.zarr.partial, the catalogue that waits beside it, and the account of its run."""
    out = final_path(partial)
    with convert_os_errors(partial):
        _remove_all(partial, _leftover(parquet_path(out)))
        if not out.exists():
            _remove_all(report_path(out, "json"), report_path(out, "html"))


@contextmanager
def lock_output(partial: Path, owner: str = "") -> Iterator[None]:
    """Keep other runs away from OUT.zarr.partial for a while.

    Parameters
    ----------
    partial : Path
        OUT.zarr.partial.
    owner : str
        Names the run that takes it over, for `check_owner`; nobody does if empty.

    Raises
    ------
    StoreError
        If another run holds it.

    Notes
    -----
    The kernel keeps the lock, on a network file system that of the server: it goes with the process
    that holds it, however that ends and wherever it ran, so that no lock is ever stale. Where there
    are no locks the last run to come owns the store, and `check_owner` stops those before it.
    """
    folder = os.open(partial, os.O_RDONLY)
    try:
        _lock(folder, partial)
        if owner:
            _write_json(partial / SCRATCH / OWNER, _describe_owner(owner))
        yield
    finally:
        os.close(folder)


def _lock(folder: int, partial: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = _read_owner(partial)
        process = f" (process {who['process']} on {who['host']})" if who else ""
        raise StoreError(
            f"{partial} is being written by another run{process}: "
            "wait for it, or choose another output"
        ) from None
    except OSError:
        return  # a file system without locks: nobody can be kept away


def check_owner(partial: Path, owner: str) -> None:
    """Make sure that a run still owns a store.

    Raises
    ------
    StoreError
        If another run has taken it over since, or it has been published.
    """
    if _read_owner(partial).get("run") != owner:
        raise StoreError(
            f"{partial} was taken over by another run, or is finished: nothing more is written by this one"
        )


def _describe_owner(owner: str) -> dict[str, Any]:
    return {"run": owner, "process": os.getpid(), "host": socket.gethostname()}


def _read_owner(partial: Path) -> dict[str, Any]:
    try:
        found = json.loads((partial / SCRATCH / OWNER).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _decide(out: Path, partial: Path, identity: RunIdentity) -> State:
    if partial.exists() and (not out.exists() or _consented(partial, identity)):
        _refuse_another(partial, identity)
        return "resume"
    if out.exists():
        _refuse_another(out, identity)
        return "complete"
    return "fresh"


def _has_begun(partial: Path, identity: RunIdentity) -> bool:
    """Whether OUT.zarr.partial is what the same run with --overwrite has left."""
    found = read_attributes(partial)
    whole = found.get("run_key") == identity.key and found["status"] == "complete"
    return whole or (partial.exists() and _consented(partial, identity))


def _consented(partial: Path, identity: RunIdentity) -> bool:
    asked = (partial / SCRATCH / OVERWRITE_MARK).exists()
    return asked and read_attributes(partial)["run_key"] == identity.key


def _refuse_another(path: Path, identity: RunIdentity) -> None:
    identity.check_same_run(path, load_identity(read_attributes(path)))


def _check_ours(path: Path) -> None:
    """Refuse to touch what is no store of ours, even with --overwrite."""
    if path.exists() and "run_key" not in read_attributes(path):
        raise StoreError(f"{path} exists and is no fcnpipe store: choose another output")


def _check_writable(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"cannot write {out}: no permission in {out.parent}; choose another output"
        )


def read_attributes(path: Path) -> dict[str, Any]:
    """Give the root attributes of a store; empty if there is none or it cannot be read."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def publish_store(store: StoreReader, overwrite: bool = False, checked: bool = False) -> Path:
    """Publish OUT.zarr.partial; give OUT.zarr.

    Raises
    ------
    StoreError
        If OUT.zarr has appeared meanwhile and nobody said ``overwrite``.
    VerificationError
        If labels, catalogue and ledger contradict each other.
    """
    out = final_path(store.path)
    if store.attrs["status"] != "complete":
        _check_consent(store.path, out, overwrite)
        problems = list(find_gaps(store)) if checked else find_problems(store)
        raise_problems(store.path, problems)
        if store.has_sources and not (checked and _leftover(parquet_path(out)).exists()):
            prepare_parquet(store)
        _sweep(store.path)
        _write_checksums(store.path)
        consolidate(store.path, {"status": "complete"})
    _finish(store.path)
    return out


def _write_checksums(path: Path) -> None:
    """Write the checksums of all that is no map; those of the maps are there."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"crc32c": seal(path)}}
    _write_json(path / CHECKSUMS / "zarr.json", group)


def raise_problems(path: Path, problems: list[str]) -> None:
    """Refuse to publish a store that contradicts itself.

    Raises
    ------
    VerificationError
        Naming the first few problems.
    """
    if problems:
        raise VerificationError(f"{path} is not published: {'; '.join(problems[:3])}")


def prepare_parquet(store: StoreReader) -> None:
    """Write OUT.parquet under the name that it has until the store is published.

    Notes
    -----
    Begins to flush to disk, so that little is left to flush when the store is given its name.
    """
    write_parquet(store, _leftover(parquet_path(final_path(store.path))))
    threading.Thread(target=os.sync, daemon=True).start()


def _check_consent(partial: Path, out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite and not (partial / SCRATCH / OVERWRITE_MARK).exists():
        raise StoreError(f"{out} has appeared during the run: move it away, or --overwrite it")


def set_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Update root attributes in one atomic step; what was consolidated is so no longer."""
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"] |= attributes
    root.pop("consolidated_metadata", None)
    _write_json(path / "zarr.json", root)


def consolidate(path: Path, attributes: dict[str, Any]) -> None:
    """Write all metadata into the root's, with ``attributes`` updated, in one atomic step.

    Notes
    -----
    By hand and sorted, because zarr's own order is that of the folder listing: the bytes would
    differ from run to run. The scratch is left out.
    """
    nodes = {
        file.parent.relative_to(path).as_posix(): json.loads(file.read_text())
        for file in sorted(path.rglob("zarr.json"))
    }
    root = nodes.pop(".")
    metadata = {
        name: _as_member(node)
        for name, node in sorted(nodes.items())
        if not name.startswith(SCRATCH)
    }
    root["attributes"].pop(FAILED, None)
    root["attributes"] |= attributes
    root["consolidated_metadata"] = _inline(metadata)
    _write_json(path / "zarr.json", root)


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2))


def _inline(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": metadata}


def _as_member(node: dict[str, Any]) -> dict[str, Any]:
    return node | {"consolidated_metadata": _inline({})} if node["node_type"] == "group" else node


def finish_publishing(partial: Path) -> None:
    """Give a complete OUT.zarr.partial its name, where a crash came between.

    Notes
    -----
    Call it while you `hold` the store.
    """
    with convert_os_errors(partial):
        _finish(partial)


def _finish(partial: Path) -> None:
    """Do what is left after the status is complete; safe to run again after a crash."""
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
            _remove_all(parquet_path(out))  # the catalogue of what was replaced
        _remove_all(aside)
        _adopt_parquet(out, partial)


def _adopt_parquet(out: Path, partial: Path) -> None:
    waiting = _leftover(parquet_path(out))
    if waiting.exists() and not partial.exists():
        os.replace(waiting, parquet_path(out))


def _leftover(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _sweep(path: Path) -> None:
    """Remove temporary files that a killed writer left behind."""
    for folder, _, files in os.walk(path):
        for name in files:
            if name.endswith(TEMPORARY):
                os.unlink(os.path.join(folder, name))


def _remove_all(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
