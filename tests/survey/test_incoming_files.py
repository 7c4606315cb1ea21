"""Files that arrive: what is looked at, what is whole, what is known, and who may look."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import fsspec
import numpy as np
import pytest
from astropy.io import fits

from fcnpipe.core.errors import InputError, StoreError
from fcnpipe.survey.incoming_files import (
    FileRecord,
    FileStamp,
    describe_missing,
    exclusive_lock,
    list_files,
    load_registry,
    register_file,
    save_registry,
    select_pending_files,
)


def seen(folder: Path, **more: object) -> set[str]:
    return {os.path.relpath(path, folder) for path in list_files(str(folder), **more)}  # type: ignore[arg-type]


def test_only_files_that_have_arrived_by_their_name(tmp_path: Path) -> None:
    wanted = {"a.fits", "B.FITS", "c.fits.fz", "d.fit", "e.fits.gz"}
    others = {
        "a.fits.part", "b.fits.tmp", "c.fits.crdownload", ".d.fits", "e.fits~", "f.txt", "g.fits.md5",
        "h.fits.filepart",
    }  # fmt: skip
    for name in wanted | others:
        (tmp_path / name).touch()
    (tmp_path / "deep/.rsync").mkdir(parents=True)
    (tmp_path / "deep/f.fits").touch()
    (tmp_path / "deep/.rsync/g.fits").touch()
    assert seen(tmp_path) == wanted
    assert seen(tmp_path, recursive=True) == wanted | {"deep/f.fits"}
    assert seen(tmp_path, patterns=["*.txt"]) == {"f.txt"}


def test_a_bucket_is_looked_into_through_its_file_system() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/in/x.fits", b"123")
    system.pipe("/bucket/in/x.fits.part", b"1")
    found = list_files("memory://bucket/in")
    assert list(found) == ["memory:///bucket/in/x.fits"]
    assert found["memory:///bucket/in/x.fits"].size == 3
    assert found["memory:///bucket/in/x.fits"].changed


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        list_files(str(tmp_path / "absent"))


# --- whole or not ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """FITS files of every kind that there is."""
    folder, pixels = (
        tmp_path_factory.mktemp("files"),
        np.arange(5000, dtype=np.int16).reshape(50, 100),
    )
    table = fits.BinTableHDU.from_columns(
        [fits.Column("x", "PJ()", array=np.array([[1], [2, 3]], object))]
    )
    kinds = {
        "plain": [fits.PrimaryHDU(pixels)],
        "extensions": [fits.PrimaryHDU(), fits.ImageHDU(pixels), fits.ImageHDU(pixels.astype("f8"))],
        "compressed": [fits.PrimaryHDU(), fits.CompImageHDU(pixels)],
        "table": [fits.PrimaryHDU(pixels), table],
        "groups": [fits.GroupsHDU(fits.GroupData(np.ones((3, 1, 4, 5)), parnames=["U"], pardata=[[1, 2, 3]]))],
        "long header": [fits.PrimaryHDU(pixels, fits.Header([("COMMENT", str(i)) for i in range(99)]))],
    }  # fmt: skip
    for name, hdus in kinds.items():
        fits.HDUList(hdus).writeto(folder / f"{name}.fits")
    return {name: folder / f"{name}.fits" for name in kinds}


@pytest.mark.parametrize(
    "kind", ["plain", "extensions", "compressed", "table", "groups", "long header"]
)
def test_a_file_is_whole_only_when_its_last_pixel_is_there(
    files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    whole = files[kind].read_bytes()
    with fits.open(files[kind]) as hdus:
        last = hdus[-1].fileinfo()
        ends = {0, *(hdu.fileinfo()["hdrLoc"] for hdu in hdus)}
    path = tmp_path / "cut.fits"
    assert describe_missing(str(files[kind]), len(whole)) == ""
    sizes = {1, 5, 2879, 2881, last["datLoc"] - 1, last["datLoc"], last["datLoc"] + 1, *ends}
    for size in sizes & set(range(len(whole))):
        path.write_bytes(whole[:size])
        # At the end of an HDU nobody can know that another follows.
        expected = "" if size in ends and size else "missing" if size else "empty"
        assert expected in describe_missing(str(path), size), size
        assert bool(describe_missing(str(path), size)) == bool(expected), size


def test_what_is_no_plain_fits_file_is_taken_as_it_is(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "junk.fits"
    path.write_bytes(b"\x1f\x8b and so on")
    assert describe_missing(str(path), 13) == ""
    path.write_bytes(files["plain"].read_bytes() + b"no HDU" * 999)
    assert describe_missing(str(path), path.stat().st_size) == ""


# --- known or not ---------------------------------------------------------------------------------


def settle(folder: Path, log: dict[str, FileRecord], status: str = "done") -> dict[str, str]:
    """What a run does, without the waiting and the work: status by name before the work."""
    found, entered = list_files(str(folder)), {}
    for path in select_pending_files(found, log, 2):
        log[path] = register_file(path, found[path], log)
        entered[os.path.basename(path)] = log[path].status
        if log[path].status == "begun" or log[path].status == "failed":
            known = log[path]
            log[path] = FileRecord(known.stamp, known.digest, known.out, status, known.attempts + 1)
    return entered


def out_of(log: dict[str, FileRecord], name: str) -> str:
    return next(known.out for path, known in log.items() if os.path.basename(path) == name)


def test_each_content_once(tmp_path: Path) -> None:
    log: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    assert settle(tmp_path, log) == {"a.fits": "begun"}
    assert settle(tmp_path, log) == {}
    shutil.copy(tmp_path / "a.fits", tmp_path / "b.fits")
    assert settle(tmp_path, log) == {"b.fits": "copy"}
    assert out_of(log, "b.fits") == "a.zarr"
    os.utime(tmp_path / "a.fits", (1, 1))
    assert settle(tmp_path, log) == {"a.fits": "done"}
    assert settle(tmp_path, log) == {}
    (tmp_path / "a.fits").write_bytes(b"two")
    assert settle(tmp_path, log) == {"a.fits": "begun"}
    assert out_of(log, "a.fits") == "a.zarr"
    # The copy has nothing to be a copy of any more.
    assert settle(tmp_path, log) == {"b.fits": "begun"}
    assert out_of(log, "b.fits") == "b.zarr"


def test_a_replaced_file_may_replace_what_was_made_of_it(tmp_path: Path) -> None:
    log: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    settle(tmp_path, log)
    (tmp_path / "a.fits").write_bytes(b"two")
    (path, stamp), = list_files(str(tmp_path)).items()  # fmt: skip
    assert register_file(path, stamp, log).replaced
    assert not register_file(path, stamp, {}).replaced


def test_two_files_of_one_stem_have_two_stores(tmp_path: Path) -> None:
    log: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    (tmp_path / "a.fit").write_bytes(b"two")
    settle(tmp_path, log)
    outs = {out_of(log, "a.fits"), out_of(log, "a.fit")}
    assert len(outs) == 2
    assert "a.zarr" in outs


def test_what_fails_is_tried_so_many_times(tmp_path: Path) -> None:
    log: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    assert settle(tmp_path, log, "failed") == {"a.fits": "begun"}
    assert settle(tmp_path, log, "failed") == {"a.fits": "failed"}
    assert settle(tmp_path, log, "failed") == {}
    (tmp_path / "a.fits").write_bytes(b"mended")
    assert settle(tmp_path, log) == {"a.fits": "begun"}


def test_the_log_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    assert load_registry(path) == {}
    log = {
        "/x/a.fits": FileRecord(FileStamp(3, "1.5"), "d", "a.zarr", "failed", 2, True, "said so")
    }
    save_registry(path, log)
    assert load_registry(path) == log
    assert [p.name for p in tmp_path.iterdir()] == ["log.json"]
    for damage in ("", "{}", "[]", '{"files": {"a": 1}}'):
        path.write_text(damage)
        with pytest.raises(StoreError, match="move it away"):
            load_registry(path)


# --- one at a time --------------------------------------------------------------------------------


def _hold(path: Path, sender: object) -> None:
    with exclusive_lock(path):
        sender.send("held")  # type: ignore[attr-defined]
        signal.pause()


def test_one_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path, context = tmp_path / "lock", multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hold, args=(path, sender))
    process.start()
    assert receiver.recv() == "held"
    with pytest.raises(StoreError, match="one at a time"), exclusive_lock(path):
        pass
    process.kill()
    process.join()
    with exclusive_lock(path):
        # Whoever cleans up may remove it: the next one makes another.
        path.unlink()
        with exclusive_lock(path):
            pass
