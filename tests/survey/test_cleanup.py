"""Leftovers of killed runs are found and removed; locked files, stores and foreign files are kept."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fcnpipe import images
from fcnpipe.core.errors import InputError, StoreError
from fcnpipe.stores.lifecycle import lock_output, set_attributes
from fcnpipe.survey.cleanup import clean_up, find_leftovers
from fcnpipe.survey.incoming_files import exclusive_lock
from tests.flows.fields import write_stars

HEX = "0123456789abcdef0123456789abcdef"
DAY = 86400.0
SETTINGS = ["--model", "none", "--window", "64", "--tile", "64", "--engine", "serial", "--quiet"]


def segment(image: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fcnpipe", "segment", str(image), str(out), *SETTINGS]
    return subprocess.Popen(command)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished store and the partial store of a killed run."""
    folder = tmp_path_factory.mktemp("results")
    image = write_stars(folder / "field.fits", side=320)
    assert segment(image, folder / "whole.zarr").wait(120) == 0
    process = segment(image, folder / "killed.zarr")
    while process.poll() is None and not (folder / "killed.zarr.partial/ledger/c/1").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (folder / "killed.zarr.partial").is_dir()
    return folder


@pytest.fixture
def folder(results: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the results in the subfolder ``deep``."""
    shutil.copytree(results, tmp_path / "deep")
    return tmp_path


def age(folder: Path, days: float = 30) -> None:
    """Set the modification times of all files back by a number of days."""
    then = time.time() - days * DAY
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (then, then))


def found(folder: Path, days: float = 7) -> dict[str, str]:
    return {Path(one.path).name: one.action for one in find_leftovers(str(folder), days * DAY)}


def clear_all(folder: Path) -> None:
    for one in find_leftovers(str(folder), 7 * DAY):
        if one.action != "keep":
            clean_up(one)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_store_of_a_killed_run_is_removed_when_it_is_old(folder: Path) -> None:
    assert found(folder) == {}
    age(folder)
    assert found(folder) == {"killed.zarr.partial": "remove"}
    assert "killed.zarr.partial" in names(folder / "deep")
    (one,) = find_leftovers(str(folder), 7 * DAY)
    size = sum(p.lstat().st_size for p in Path(one.path).rglob("*"))
    assert size <= one.size_bytes <= size + 4096
    assert 29 < one.age_seconds / DAY < 31
    clean_up(one)
    outputs = {"whole.parquet", "whole.report.html", "whole.report.json"}
    assert names(folder / "deep") == {"field.fits", "whole.zarr", *outputs}


def test_a_store_with_a_recent_file_is_kept(folder: Path) -> None:
    age(folder)
    os.utime(next((folder / "deep/killed.zarr.partial").rglob("zarr.json")))
    assert found(folder) == {}


def _hold(path: Path, sender: object) -> None:
    with lock_output(path):
        sender.send("held")  # type: ignore[attr-defined]
        signal.pause()


def test_a_store_that_a_running_process_has_locked_is_kept(folder: Path) -> None:
    age(folder)
    partial = folder / "deep/killed.zarr.partial"
    (one,) = find_leftovers(str(folder), 7 * DAY)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hold, args=(partial, sender))
    process.start()
    try:
        assert receiver.recv() == "held"
        assert found(folder) == {"killed.zarr.partial": "keep"}
        with pytest.raises(StoreError, match="being written"):
            clean_up(one)  # listed before the run locked it
        assert partial.is_dir()
    finally:
        process.kill()
        process.join()
    clean_up(one)
    assert not partial.exists()


def test_a_complete_result_is_renamed(folder: Path) -> None:
    deep = folder / "deep"
    (deep / "whole.zarr").rename(deep / "named.zarr.partial")
    age(folder)
    assert found(folder)["named.zarr.partial"] == "finish"
    clear_all(folder)
    assert "named.zarr" in names(deep)
    assert (
        json.loads((deep / "named.zarr/zarr.json").read_text())["attributes"]["status"]
        == "complete"
    )


def test_an_incomplete_store_is_removed_like_a_partial_one(folder: Path) -> None:
    set_attributes(folder / "deep/killed.zarr.partial", {"status": "incomplete"})
    age(folder)
    assert found(folder) == {"killed.zarr.partial": "remove"}


def test_an_old_result_is_removed_only_if_its_replacement_exists(folder: Path) -> None:
    deep = folder / "deep"
    (deep / "killed.zarr.partial").rename(deep / ".whole.zarr.replaced")
    age(folder)
    assert found(folder) == {".whole.zarr.replaced": "remove"}
    (deep / "whole.zarr").rename(deep / "elsewhere.zarr")
    assert found(folder) == {".whole.zarr.replaced": "keep"}
    clear_all(folder)
    assert ".whole.zarr.replaced" in names(deep)


def test_other_leftovers_are_removed_and_foreign_files_are_kept(folder: Path) -> None:
    deep = folder / "deep"
    ours = {
        f"new.zarr.partial.{HEX}.new/zarr.json", f"zarr.json.{HEX}.partial", f".{HEX}.survey.ecsv",
        "gone.parquet.partial", "watch-incoming-1.json.lock", "fcnpipe-x1/unpacked.fits",
    }  # fmt: skip
    others = {
        "killed.parquet.partial", "notes.partial", "other.lock", "fcnpipe-notes/unpacked.txt",
        "somebody.zarr.partial/zarr.json", ".hidden", "watch-incoming-1.json", "a.fits.part",
    }  # fmt: skip
    for name in ours | others:
        (deep / name).parent.mkdir(exist_ok=True)
        (deep / name).write_text("{}")
    age(folder)
    expected = {name.partition("/")[0] for name in ours} | {"killed.zarr.partial"}
    assert set(found(folder)) == expected
    with exclusive_lock(deep / "watch-incoming-1.json.lock"):
        assert found(folder)["watch-incoming-1.json.lock"] == "keep"
    clear_all(folder)
    kept = {name.partition("/")[0] for name in others} - {"killed.parquet.partial"}
    whole = {"whole.zarr", "whole.parquet", "whole.report.html", "whole.report.json"}
    assert names(deep) == kept | whole | {"field.fits"}


def test_other_files_of_a_running_process_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked claims of URLs, a decompressed image, and the unpublished catalogue of a published store."""
    deep = folder / "deep"
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    (deep / "killed.zarr.claim").write_text("token\ns3://nowhere/killed.zarr\n")
    (deep / "begun.zarr.claim").write_text("token\n")
    shutil.move(deep / "whole.parquet", deep / "whole.parquet.partial")
    with gzip.open(deep / "field.fits.gz", "wb") as packed:
        packed.write((deep / "field.fits").read_bytes())
    image = images.open_image(deep / "field.fits.gz")
    decompressed = Path(image.readers[0].file.copy).parent  # type: ignore[attr-defined]
    age(folder)
    with lock_output(deep / "killed.zarr.claim"), lock_output(deep / "begun.zarr.claim"):
        assert found(folder) == {
            "killed.zarr.partial": "keep", "begun.zarr.claim": "keep", decompressed.name: "keep",
            "whole.parquet.partial": "finish",
        }  # fmt: skip
    assert found(folder)["killed.zarr.partial"] == "remove"
    clear_all(folder)
    assert {"whole.parquet", "killed.zarr.claim"} <= names(deep)
    assert not {"killed.zarr.partial", "begun.zarr.claim", "whole.parquet.partial"} & names(deep)
    age(folder, days=0.01)
    assert found(folder, 0) == {"killed.zarr.claim": "remove"}


def test_files_with_a_time_in_the_future_are_new(folder: Path) -> None:
    age(folder, -30)
    assert found(folder, 0) == {}


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        find_leftovers(str(tmp_path / "absent"), 0)
