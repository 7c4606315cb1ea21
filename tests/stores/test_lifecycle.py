"""Life cycle of a store: a resumed run writes the same bytes, and the stores of other runs are refused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fcnpipe.core.errors import StoreError, VerificationError
from fcnpipe.stores import (
    RunIdentity,
    ZarrStore,
    lifecycle,
    parquet_path,
    partial_path,
    prepare_output,
)
from fcnpipe.testing.small_run import IDENTITY, LAYOUT, do_tile, end_run, take_up

pytestmark = pytest.mark.filterwarnings("error")


def read_files(path: Path) -> dict[str, bytes]:
    """Return the contents of all files of a store by relative name."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


class Killed(BaseException):
    """A simulated kill -9; no handler of Exception catches it."""


# -- same bytes ------------------------------------------------------------------------


def test_same_bytes_in_any_order_and_with_tiles_done_twice(
    published: ZarrStore, tmp_path: Path
) -> None:
    store = ZarrStore.create(tmp_path / "b" / "out.zarr", LAYOUT, IDENTITY, {"title": "test"})
    tiles = [*LAYOUT.grid, *LAYOUT.grid]
    random.Random(3).shuffle(tiles)
    for tile in tiles:
        do_tile(ZarrStore(store.path), tile)
    other = end_run(store)
    assert read_files(other.path) == read_files(published.path)
    assert parquet_path(other.path).read_bytes() == parquet_path(published.path).read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_same_bytes_after_a_crash_while_a_file_is_written(
    published: ZarrStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    out = tmp_path / "b" / "out.zarr"
    chance = random.Random(seed)
    real = os.replace

    def replace_or_crash(source: str, target: str) -> None:
        if chance.random() < 0.05:
            raise Killed
        real(source, target)

    for attempt in range(200):
        try:
            with monkeypatch.context() as patch:
                if attempt < 12:
                    patch.setattr("os.replace", replace_or_crash)
                    patch.setattr("pathlib.Path.replace", replace_or_crash)
                state, store = take_up(out)
                if state != "complete":
                    for stage in LAYOUT.stages:
                        for tile in store.pending(stage):
                            do_tile(store, tile, (stage,))
                    end_run(store)
            break
        except Killed:
            continue
    assert read_files(out) == read_files(published.path)


SCRIPT = """
import sys
sys.path[:0] = [{root!r}]
from fcnpipe.testing.small_run import IDENTITY, LAYOUT, do_tile, end_run
from fcnpipe.testing.small_run import take_up
state, store = take_up({out!r})
print(state, flush=True)
if state != "complete":
    for tile in LAYOUT.grid:
        if tile in store.pending("label"):
            do_tile(store, tile)
            print(tile.name, flush=True)
    end_run(store)
"""


def test_same_bytes_after_kill_9(published: ZarrStore, tmp_path: Path) -> None:
    out = tmp_path / "b" / "out.zarr"
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), out=str(out))
    states = []
    for lines in (4, 7, None):
        run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        states.append(run.stdout.readline().strip())
        if lines is None:
            run.communicate()
        else:
            for _ in range(lines):
                run.stdout.readline()
            run.send_signal(signal.SIGKILL)
            run.communicate()
    assert states == ["fresh", "resume", "resume"]
    assert read_files(out) == read_files(published.path)


@pytest.mark.parametrize("step", ["rmtree", "sync", "rename"])
def test_crash_between_complete_and_renamed_is_finished_by_the_next_call(
    partial: ZarrStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Killed

    for tile in LAYOUT.grid:
        do_tile(partial, tile)
    out = lifecycle.final_path(partial.path)
    module = "shutil" if step == "rmtree" else "os"
    with monkeypatch.context() as patch:
        patch.setattr(
            lifecycle,
            "_remove_temporary_files",
            lambda path: patch.setattr(f"{module}.{step}", crash),
        )
        with pytest.raises(Killed):
            end_run(partial)
    assert partial.attrs["status"] == "complete"
    assert not out.exists()
    state, store = take_up(out)
    assert (state, store.path) == ("complete", out)
    assert store.verify().ok
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.parquet", "out.zarr"]


def test_temporary_files_of_a_killed_writer_are_not_published(partial: ZarrStore) -> None:
    for tile in LAYOUT.grid:
        do_tile(partial, tile)
    (partial.path / "image/0/label/c/0/0.1234.partial").write_bytes(b"half")
    assert not list(end_run(partial).path.rglob("*.partial"))


# -- fresh, resume, complete, refused --------------------------------------------------


def test_states_of_an_output(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.zarr"
    state, store = take_up(out)
    assert (state, store.path) == ("fresh", partial_path(out))
    for tile in LAYOUT.grid:
        do_tile(store, tile)
    assert prepare_output(out, IDENTITY) == "resume"
    end_run(store)
    assert prepare_output(out, IDENTITY) == "complete"
    assert not partial_path(out).exists()


def test_resumed_store_keeps_its_tile_grid(partial: ZarrStore) -> None:
    out = lifecycle.final_path(partial.path)
    state, store = take_up(out)
    assert (state, store.layout) == ("resume", LAYOUT)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_digest": "other"}, "model digest: model -> other"),
        ({"input_digest": "other"}, "input digest: input -> other"),
        ({"code_version": "2"}, "fcnpipe version: 1 -> 2"),
        ({"spec": {"thresh": 0.5}}, "option minarea: 5 -> null"),
        (
            {"spec": IDENTITY.spec | {"new": None}},
            "the code that started it (fcnpipe 1; only one of the two runs has option new)",
        ),
        ({"spec": {"thresh": 0.4, "minarea": 5}}, "option thresh: 0.5 -> 0.4;"),
        ({"input_digest": "8" * 64}, "input digest: input -> 888888888888...;"),
    ],
)
def test_another_run_is_refused_with_the_differences(
    request: pytest.FixtureRequest, complete: bool, change: dict[str, object], message: str
) -> None:
    store = request.getfixturevalue("published" if complete else "partial")
    out = lifecycle.final_path(store.path)
    with pytest.raises(StoreError, match=r"differs in .*--overwrite") as caught:
        prepare_output(out, replace(IDENTITY, **change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.attrs["run_key"] == IDENTITY.key


def test_long_values_are_shown_from_their_first_difference() -> None:
    one, other = (replace(IDENTITY, input_digest="8" * 64 + part) for part in ("", f"-{'7' * 64}"))
    third = replace(IDENTITY, input_digest="8" * 64 + f"-{'6' * 64}")
    assert other.differences(third) == ["input digest: ...666666666666... -> ...777777777777..."]
    assert other.differences(one) == ["input digest: ...(end) -> ...-77777777777..."]


def test_overwrite_keeps_the_old_result_until_the_new_one_is_complete(published: ZarrStore) -> None:
    out = published.path
    other = RunIdentity("input", "new model", "1", {})
    state, store = take_up(out, other, overwrite=True)
    assert state == "fresh"
    for tile in LAYOUT.grid:
        do_tile(store, tile)
        assert ZarrStore.open(out).identity == IDENTITY
    # The partial store records the option: the resumed run does not need it again.
    state, store = take_up(out, other)
    assert state == "resume"
    end_run(store)
    assert ZarrStore.open(out).identity == other
    assert pq.read_schema(parquet_path(out)).metadata[b"run_key"].decode() == other.key
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.parquet", "out.zarr"]


def test_overwrite_starts_from_scratch(partial: ZarrStore) -> None:
    do_tile(partial, LAYOUT.grid.tile(0, 0))
    out = lifecycle.final_path(partial.path)
    state, store = take_up(out, overwrite=True)
    assert state == "fresh"
    assert not store.done("label").any()


def test_interrupted_run_with_overwrite_is_resumed(partial: ZarrStore) -> None:
    """A schedule repeats the same command after a kill, which resumes the run; another run starts from scratch."""
    out = lifecycle.final_path(partial.path)
    _, store = take_up(out, overwrite=True)
    for tile in LAYOUT.grid:
        do_tile(store, tile)
    state, store = take_up(out, overwrite=True)
    assert state == "resume"
    assert store.done("label").all()
    end_run(store)
    out.rename(store.path)  # as if killed before the last rename
    assert prepare_output(out, IDENTITY, overwrite=True) == "complete"
    assert prepare_output(out, IDENTITY, overwrite=True) == "fresh"
    take_up(out, overwrite=True)
    assert (
        prepare_output(out, RunIdentity("input", "new model", "1", {}), overwrite=True) == "fresh"
    )
    assert not store.path.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_paths_that_are_not_stores_are_never_changed(
    tmp_path: Path, suffix: str, overwrite: bool
) -> None:
    precious = tmp_path / f"out.zarr{suffix}"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="exists and is not an fcnpipe store"):
        prepare_output(tmp_path / "out.zarr", IDENTITY, overwrite=overwrite)
    assert (precious / "thesis.tex").exists()


def test_output_created_during_the_run_is_not_replaced(
    published: ZarrStore, tmp_path: Path
) -> None:
    store = ZarrStore.create(tmp_path / "b.zarr", LAYOUT, IDENTITY)
    for tile in LAYOUT.grid:
        do_tile(store, tile)
    shutil.copytree(published.path, tmp_path / "b.zarr")
    with pytest.raises(StoreError, match="was created during the run"):
        end_run(store)
    assert store.publish(overwrite=True).path == tmp_path / "b.zarr"


def test_unwritable_path_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*; make room or choose another output"):
        prepare_output(tmp_path / "file" / "out.zarr", IDENTITY)


def test_failed_tiles_are_named_until_the_run_is_complete(partial: ZarrStore) -> None:
    partial.close_incomplete(["r000c001 (predict: bad)"])
    assert partial.attrs["status"] == "incomplete"
    assert partial.attrs["failed"] == ["r000c001 (predict: bad)"]
    assert prepare_output(lifecycle.final_path(partial.path), IDENTITY) == "resume"
    partial.reopen()
    assert partial.attrs["status"] == "partial"
    for tile in LAYOUT.grid:
        do_tile(partial, tile)
    assert "failed" not in end_run(partial).attrs


# -- verification ----------------------------------------------------------------------


def test_finished_run_is_verified(published: ZarrStore) -> None:
    check = published.verify()
    assert check.ok
    assert (check.sources, check.tiles, check.pixels) == (4, 12, 30000)


def test_partial_run_is_reported(partial: ZarrStore) -> None:
    assert partial.verify().problems[0] == "status is partial: resume the run"
    assert "catalogue is missing" in partial.verify().problems[1]


def damage_label(store: ZarrStore) -> None:
    core = LAYOUT.grid.tile(1, 2).core
    store.write_tile("label", core, np.full(core.shape, 9, np.int32))


def damage_area(store: ZarrStore) -> None:
    zarr_column(store, "area")[1] = 3


def damage_peak(store: ZarrStore) -> None:
    column = zarr_column(store, "source_id")
    column[1] = int(column[1]) + 50


def damage_rows(store: ZarrStore) -> None:
    zarr_column(store, "label")[2] = 7


def damage_order(store: ZarrStore) -> None:
    column = zarr_column(store, "source_id")
    column[:] = np.asarray(column[:])[::-1]


def damage_source(store: ZarrStore) -> None:
    core = LAYOUT.grid.tile(0, 0).core
    labels = store.read("label", core)
    store.write_tile("label", core, np.where(labels == 1, 0, labels).astype(np.int32))


def damage_ledger(store: ZarrStore) -> None:
    (store.path / "ledger/c/0/2/1").unlink()


def zarr_column(store: ZarrStore, name: str):  # type: ignore[no-untyped-def]
    return store._open_array(f"sources/{name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_label, "labels without a row in r001c002: 9"),
        (damage_area, "area is not the number of pixels: labels 2"),
        (damage_peak, "peak pixels with another label: labels 2"),
        (damage_rows, "labels of the catalogue are not 1, 2, ..."),
        (damage_order, "source_id does not increase"),
        (damage_source, "rows without a pixel: labels 1"),
        (damage_ledger, "stage predict is not done for r002c001"),
    ],
)
def test_each_contradiction_is_reported(published: ZarrStore, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(published)
    assert any(message in problem for problem in published.verify().problems)


def test_stores_with_contradictions_are_not_published(partial: ZarrStore) -> None:
    for tile in list(LAYOUT.grid)[1:]:
        do_tile(partial, tile)
    with pytest.raises(VerificationError, match="is not done for r000c000"):
        end_run(partial)
    assert not lifecycle.final_path(partial.path).exists()
    assert (partial.path / ".scratch").exists()


# -- parquet ---------------------------------------------------------------------------


def test_parquet_is_written_next_to_the_store(published: ZarrStore) -> None:
    path = parquet_path(published.path)
    table = pq.read_table(path)
    assert table.column_names == ["label", "source_id", "area"]
    for name, values in published.read_sources().items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
        assert table[name].to_numpy().dtype == values.dtype
    assert table.schema.field("area").metadata[b"units"] == b"pixel2"
