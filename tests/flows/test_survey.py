"""Surveys: a bad image does not affect the others, and a second run processes only the rest."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prefect")

import xarray as xr
from astropy.table import Table
from prefect import State

from fcnpipe.core.errors import ImagesFailed, SpecError
from fcnpipe.core.spec import RunSpec
from fcnpipe.survey import incoming_files
from flows import subflows, survey, watch
from flows.stage_tasks import Patience
from tests.flows import fatal_images
from tests.flows.fields import write_stars
from tests.flows.records import MARKS, artifacts_of, runs_of

pytestmark = MARKS
OPTIONS = {"model": "none", "window": 64, "tile": 64, "engine": "serial", "quiet": True}
NO_RETRIES = Patience(retries=0)


def start(images: Any, folder: Path, **more: Any) -> State[Any]:
    state: State[Any] = survey.segment_survey(
        images, str(folder), OPTIONS, patience=NO_RETRIES, return_state=True, **more
    )
    return state


def statuses(table: Path) -> dict[str, str]:
    return {Path(row["image"]).stem: str(row["status"]) for row in Table.read(table)}


def test_bad_images_are_named_and_the_others_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subflows, "_process_image", fatal_images.process_image)
    for seed, name in enumerate(("one", "two", "cut", "poison")):
        write_stars(tmp_path / f"{name}.fits", seed)
    whole = (tmp_path / "cut.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[:20000])
    out = tmp_path / "out"
    images = [f"{tmp_path}/*.fits", {"image": str(tmp_path / "one.fits"), "out": "w", "window": 1}]
    state = start(images, out, at_once=2)
    found, _ = runs_of(state)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ImagesFailed)
    assert sorted(Path(n.split(" (")[0]).stem for n in error.names) == ["cut", "one", "poison"]
    rows = {Path(str(row["out"])).name: row for row in Table.read(out / "survey.ecsv")}
    assert {name: str(row["status"]) for name, row in rows.items()} == {
        "one.zarr": "done", "two.zarr": "done", "cut.zarr": "failed", "poison.zarr": "failed",
        "w": "failed",
    }  # fmt: skip
    assert "SIGKILL" in rows["poison.zarr"]["error"]
    assert "truncated" in rows["cut.zarr"]["error"]
    assert "window=1" in rows["w"]["error"]
    assert (
        rows["one.zarr"]["sources"]
        == xr.open_zarr(out / "one.zarr", group="sources").sizes["source"]
    )
    (artifact,) = artifacts_of(found.id, "table")
    assert "2 done, 3 failed" in str(artifact.description)
    assert {row["status"] for row in json.loads(artifact.data)[:3]} == {"failed"}

    # The second run processes only the rest: the file is complete now, and no process is killed.
    (tmp_path / "cut.fits").write_bytes(whole)
    monkeypatch.undo()
    before = {p: p.stat().st_mtime_ns for p in (out / "one.zarr").rglob("*")}
    again = start(f"{tmp_path}/*.fits", out, table=str(out / "again.csv"))
    assert again.is_completed()
    assert statuses(out / "again.csv") == {
        "one": "found", "two": "found", "cut": "done", "poison": "done",
    }  # fmt: skip
    assert before == {p: p.stat().st_mtime_ns for p in (out / "one.zarr").rglob("*")}
    assert [row["status"] for row in again.result()] == ["done", "found", "done", "found"]


def test_a_survey_that_overwrites_processes_no_image_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A survey started again before all images are finished resumes; after that it overwrites them."""
    monkeypatch.setattr(subflows, "_process_image", fatal_images.process_image)
    for seed, name in enumerate(("one", "two", "poison")):
        write_stars(tmp_path / f"{name}.fits", seed, side=64)
    images, out = [{"image": f"{tmp_path}/*.fits", "overwrite": True}], tmp_path / "out"

    def run() -> dict[str, str]:
        start(images, out, at_once=2)
        return statuses(out / "survey.ecsv")

    assert run() == {"one": "done", "two": "done", "poison": "failed"}
    monkeypatch.undo()
    write_stars(tmp_path / "two.fits", 9, side=64)
    assert run() == {"one": "found", "two": "done", "poison": "done"}
    (tmp_path / "poison.fits").unlink()
    assert run() == {"one": "done", "two": "done"}
    assert list(out.glob("*.begun")) == []


def test_a_finished_image_that_a_killed_watch_did_not_record_is_kept(tmp_path: Path) -> None:
    write_stars(tmp_path / "field.fits", side=64)
    out, look = tmp_path / "out", watch.Look(settle_seconds=0)

    def run() -> dict[str, int]:
        return watch.watch(str(tmp_path), str(out), OPTIONS, look, patience=NO_RETRIES)

    assert run() == {"done": 1}
    (state,) = out.glob("watch-*.json")
    log = incoming_files.load_registry(state)
    begun = {name: replace(one, status="begun", replaced=True) for name, one in log.items()}
    incoming_files.save_registry(state, begun)
    before = {path: path.stat().st_mtime_ns for path in (out / "field.zarr").rglob("*")}
    assert run() == {"done": 1}
    assert before == {path: path.stat().st_mtime_ns for path in (out / "field.zarr").rglob("*")}


def test_images_that_do_not_exist_fail_before_the_folder_is_created(tmp_path: Path) -> None:
    state = start(str(tmp_path / "*.fits"), tmp_path / "out")
    assert isinstance(state.result(raise_on_failure=False), SpecError)
    assert not (tmp_path / "out").exists()


def write_unusable_files(folder: Path) -> list[str]:
    """Write a good image and files that cannot be understood; return the stems of the latter as in tables."""
    good = write_stars(folder / "good.fits", side=64).read_bytes()
    headers = {
        "naxis": "NAXIS   = 'abc'",
        "bitpix": "BITPIX  = 8",
        "card": "NAXIS   = (((",
        "size": "NAXIS   = -1",
    }
    for name, card in headers.items():
        text = "".join(one.ljust(80) for one in ("SIMPLE  = T", card, "END")).ljust(2880)
        (folder / f"{name}.fits").write_bytes(text.encode() + name.encode().ljust(2880))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.fits")).write_bytes(good[:-1] + b"\1")
    (folder / "new\nline.fits").write_bytes(good[:-1] + b"\2")
    return [*headers, r"\udcff"]


def test_files_that_cannot_be_understood_do_not_affect_the_others(tmp_path: Path) -> None:
    bad = write_unusable_files(tmp_path)
    broken_map = {"image": f"{tmp_path}/good.fits", "out": "w", "weight": "http://[x"}
    state = start([f"{tmp_path}/*.fits", broken_map], tmp_path / "out", at_once=2)
    assert isinstance(state.result(raise_on_failure=False), ImagesFailed)
    rows = {Path(str(row["out"])).name: row for row in Table.read(tmp_path / "out/survey.ecsv")}
    assert rows.pop("w")["status"] == "failed"
    found = {Path(str(row["image"])).stem: row for row in rows.values()}
    failed = {name for name, row in found.items() if row["status"] == "failed"}
    assert failed == set(bad)
    assert all(found[name]["error"] for name in bad)
    assert found.keys() - failed == {"good", r"new\nline"}


def test_watch_names_files_that_cannot_be_understood(tmp_path: Path) -> None:
    bad = write_unusable_files(tmp_path)
    out, look = tmp_path / "out", watch.Look(settle_seconds=0, attempts=1)

    def run() -> State[Any]:
        state: State[Any] = watch.watch(
            str(tmp_path), str(out), OPTIONS, look, 2, patience=NO_RETRIES, return_state=True
        )
        return state

    state = run()
    assert isinstance(state.result(raise_on_failure=False), ImagesFailed)
    (artifact,) = artifacts_of(runs_of(state)[0].id, "table")
    rows = {Path(row["image"]).stem: row for row in json.loads(artifact.data)}
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(bad, "failed"), "good": "done", r"new\nline": "done",
    }  # fmt: skip
    assert "is not UTF-8" in rows[r"\udcff"]["reason"]
    assert run().is_completed()  # each was tried once


def test_a_file_that_cannot_be_registered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stars(tmp_path / "good.fits", side=64)
    write_stars(tmp_path / "odd.fits", 1, side=64)

    def describe(path: str, size: int) -> str:
        if path.endswith("odd.fits"):
            raise KeyError("NAXIS")
        return ""

    monkeypatch.setattr(incoming_files, "describe_missing", describe)
    look = watch.Look(settle_seconds=0)
    counts = watch.watch(str(tmp_path), str(tmp_path / "out"), OPTIONS, look, patience=NO_RETRIES)
    assert counts == {"done": 1, "incomplete": 1}


@pytest.mark.parametrize("out", ["survey.ecsv", "./survey.ecsv.begun"])
def test_a_store_does_not_replace_the_table(tmp_path: Path, out: str) -> None:
    write_stars(tmp_path / "a.fits", side=64)
    state = start([{"image": str(tmp_path / "a.fits"), "out": out}], tmp_path / "out")
    with pytest.raises(SpecError, match="is a file of the survey"):
        state.result()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [survey.start, watch.start])
def test_names_that_a_flow_cannot_record_are_refused(command: Any) -> None:
    """The parameters of a flow are UTF-8; images of a survey are escaped and found again."""
    with pytest.raises(SpecError, match="is not UTF-8: rename"):
        command(paths=["in", "out\udcff"])


def test_images_share_the_cores_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subflows, "count_cores", lambda: 8)
    spec = RunSpec(image=("a",), out="b")
    assert subflows.divide_cores(spec, 3).workers == 2
    assert subflows.divide_cores(spec, 99).workers == 1
    assert subflows.divide_cores(spec, 1) == spec
    elsewhere = spec.model_copy(update={"scheduler": "tcp://127.0.0.1:8786"})
    assert subflows.divide_cores(elsewhere, 3) == elsewhere
