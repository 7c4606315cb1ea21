"""Surveys: a bad image does not affect the others, and a second run processes only the rest."""

from __future__ import annotations

import json
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


def test_images_share_the_cores_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subflows, "count_cores", lambda: 8)
    spec = RunSpec(image=("a",), out="b")
    assert subflows.divide_cores(spec, 3).workers == 2
    assert subflows.divide_cores(spec, 99).workers == 1
    assert subflows.divide_cores(spec, 1) == spec
    elsewhere = spec.model_copy(update={"scheduler": "tcp://127.0.0.1:8786"})
    assert subflows.divide_cores(elsewhere, 3) == elsewhere
