"""Incoming files: listing, completeness, the registry of known files, and the lock."""

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


def list_names(folder: Path, **more: object) -> set[str]:
    return {os.path.relpath(path, folder) for path in list_files(str(folder), **more)}  # type: ignore[arg-type]


def test_names_of_files_in_transfer_are_not_listed(tmp_path: Path) -> None:
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
    assert list_names(tmp_path) == wanted
    assert list_names(tmp_path, recursive=True) == wanted | {"deep/f.fits"}
    assert list_names(tmp_path, patterns=["*.txt"]) == {"f.txt"}


def test_a_bucket_is_listed_through_its_file_system() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/in/x.fits", b"123")
    system.pipe("/bucket/in/x.fits.part", b"1")
    found = list_files("memory://bucket/in")
    assert list(found) == ["memory:///bucket/in/x.fits"]
    assert found["memory:///bucket/in/x.fits"].size == 3
    assert found["memory:///bucket/in/x.fits"].changed


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        list_files(str(tmp_path / "absent"))


# --- completeness ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """FITS files of each structure: extensions, compressed images, tables, random groups, a long header."""
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
def test_a_file_is_complete_only_with_its_last_pixel(
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
        # A file that ends at the end of an HDU counts as complete: another HDU may or may not follow.
        expected = "" if size in ends and size else "missing" if size else "empty"
        assert expected in describe_missing(str(path), size), size
        assert bool(describe_missing(str(path), size)) == bool(expected), size


def test_files_that_are_not_uncompressed_fits_count_as_complete(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "junk.fits"
    path.write_bytes(b"\x1f\x8b and so on")
    assert describe_missing(str(path), 13) == ""
    path.write_bytes(files["plain"].read_bytes() + b"no HDU" * 999)
    assert describe_missing(str(path), path.stat().st_size) == ""


def write_header(path: Path, *cards: str) -> int:
    """Write a header of the given cards and a block of data; return the size of the file."""
    text = "".join(card.ljust(80) for card in (*cards, "END"))
    return path.write_bytes(
        text.ljust(-(-len(text) // 2880) * 2880).encode("latin-1") + bytes(2880)
    )


@pytest.mark.parametrize(
    "cards",
    [
        ["BITPIX  = 8", "NAXIS   = 'abc'"],
        ["NAXIS   = 0"],
        ["BITPIX  = 8"],
        ["BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 10"],
        ["BITPIX  = 8", "NAXIS   = ((("],
        ["BITPIX  = 8", "NAXIS   = 1e999"],
        ["BITPIX  = 8", "NAXIS   = 999999999"],
        ["BITPIX  =", "NAXIS   = 0"],
        ["BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = 1.5.2"],
        ["BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = 10", "PCOUNT  = 'x'"],
        ["BITPIX  = \xe9", "NAXIS   = 0"],
    ],
    ids=" ".join,
)
def test_a_header_that_cannot_be_understood_is_left_to_the_reader(
    tmp_path: Path, cards: list[str]
) -> None:
    size = write_header(tmp_path / "a.fits", "SIMPLE  = T", *cards)
    assert describe_missing(str(tmp_path / "a.fits"), size) == ""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "cards",
    [
        ["NAXIS1  = -5760"],
        ["NAXIS1  = 2880", "PCOUNT  = -8640"],
        ["NAXIS1  = 2880", "GCOUNT  = -2"],
    ],
)
def test_sizes_below_zero_do_not_lead_backwards(tmp_path: Path, cards: list[str]) -> None:
    size = write_header(tmp_path / "a.fits", "SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 1", *cards)
    assert describe_missing(str(tmp_path / "a.fits"), size) == ""


# --- registry -------------------------------------------------------------------------------------


def process(folder: Path, registry: dict[str, FileRecord], status: str = "done") -> dict[str, str]:
    """Register files as a run does, set their status, and return their status before, by name."""
    found, entered = list_files(str(folder)), {}
    for path in select_pending_files(found, registry, 2):
        registry[path] = register_file(path, found[path], registry)
        entered[os.path.basename(path)] = registry[path].status
        if registry[path].status == "begun" or registry[path].status == "failed":
            known = registry[path]
            registry[path] = FileRecord(
                known.stamp, known.digest, known.out, status, known.attempts + 1
            )
    return entered


def out_of(registry: dict[str, FileRecord], name: str) -> str:
    return next(known.out for path, known in registry.items() if os.path.basename(path) == name)


def test_each_content_is_processed_once(tmp_path: Path) -> None:
    registry: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    assert process(tmp_path, registry) == {"a.fits": "begun"}
    assert process(tmp_path, registry) == {}
    shutil.copy(tmp_path / "a.fits", tmp_path / "b.fits")
    assert process(tmp_path, registry) == {"b.fits": "copy"}
    assert out_of(registry, "b.fits") == "a.zarr"
    os.utime(tmp_path / "a.fits", (1, 1))
    assert process(tmp_path, registry) == {"a.fits": "done"}
    assert process(tmp_path, registry) == {}
    (tmp_path / "a.fits").write_bytes(b"two")
    assert process(tmp_path, registry) == {"a.fits": "begun"}
    assert out_of(registry, "a.fits") == "a.zarr"
    # The original of the copy has changed.
    assert process(tmp_path, registry) == {"b.fits": "begun"}
    assert out_of(registry, "b.fits") == "b.zarr"


def test_a_name_that_is_not_utf8_is_registered(tmp_path: Path) -> None:
    registry: dict[str, FileRecord] = {}
    name = os.fsdecode(b"\xff.fits")
    (tmp_path / name).write_bytes(b"one")
    assert process(tmp_path, registry, "failed") == {name: "begun"}
    assert out_of(registry, name).isascii()
    save_registry(tmp_path / "registry.json", registry)
    assert load_registry(tmp_path / "registry.json") == registry


def test_a_replaced_file_may_overwrite_its_store(tmp_path: Path) -> None:
    registry: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    process(tmp_path, registry)
    (tmp_path / "a.fits").write_bytes(b"two")
    (path, stamp), = list_files(str(tmp_path)).items()  # fmt: skip
    assert register_file(path, stamp, registry).replaced
    assert not register_file(path, stamp, {}).replaced


def test_two_files_with_the_same_stem_have_two_stores(tmp_path: Path) -> None:
    registry: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    (tmp_path / "a.fit").write_bytes(b"two")
    process(tmp_path, registry)
    outs = {out_of(registry, "a.fits"), out_of(registry, "a.fit")}
    assert len(outs) == 2
    assert "a.zarr" in outs


def test_a_failed_file_is_tried_a_limited_number_of_times(tmp_path: Path) -> None:
    registry: dict[str, FileRecord] = {}
    (tmp_path / "a.fits").write_bytes(b"one")
    assert process(tmp_path, registry, "failed") == {"a.fits": "begun"}
    assert process(tmp_path, registry, "failed") == {"a.fits": "failed"}
    assert process(tmp_path, registry, "failed") == {}
    (tmp_path / "a.fits").write_bytes(b"repaired")
    assert process(tmp_path, registry) == {"a.fits": "begun"}


def test_the_registry_is_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    assert load_registry(path) == {}
    registry = {
        "/x/a.fits": FileRecord(FileStamp(3, "1.5"), "d", "a.zarr", "failed", 2, True, "reason")
    }
    save_registry(path, registry)
    assert load_registry(path) == registry
    assert [p.name for p in tmp_path.iterdir()] == ["registry.json"]
    for damage in ("", "{}", "[]", '{"files": {"a": 1}}'):
        path.write_text(damage)
        with pytest.raises(StoreError, match="move it away"):
            load_registry(path)


# --- lock -----------------------------------------------------------------------------------------


def _hold(path: Path, sender: object) -> None:
    with exclusive_lock(path):
        sender.send("held")  # type: ignore[attr-defined]
        signal.pause()


def test_the_lock_is_exclusive_and_released_when_its_process_is_killed(tmp_path: Path) -> None:
    path, context = tmp_path / "lock", multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hold, args=(path, sender))
    process.start()
    assert receiver.recv() == "held"
    with pytest.raises(StoreError, match="wait until it ends"), exclusive_lock(path):
        pass
    process.kill()
    process.join()
    with exclusive_lock(path):
        # A clean-up may remove the lock file; the next process creates another.
        path.unlink()
        with exclusive_lock(path):
            pass
