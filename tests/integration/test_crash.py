"""kill -9 at any moment, the same command again: the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.scenes import read_all, write_field

SETTINGS = ["--model", "none", "--window", "128", "--tile", "128", "--quiet"]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (500, 600))


def start(field: Path, out: Path, engine: str, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), str(out), *SETTINGS, *more]
    return subprocess.Popen(
        [*command, "--engine", engine, "--workers", "2"], start_new_session=True
    )


@pytest.fixture(scope="module")
def finished(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing befell."""
    out = tmp_path_factory.mktemp("undisturbed") / "out.zarr"
    assert start(field, out, "serial").wait(300) == 0
    return out


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, bytes]:
    return read_all(finished)


def wait_for_marks(partial: Path, stage: int, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many tiles of a stage are in the ledger, or the run is over."""
    while process.poll() is None:
        if len(marks(partial, f"c/{stage}")) >= count:
            return
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("engine", "stage", "count"),
    [("serial", 0, 3), ("serial", 2, 5), ("threads", 3, 9), ("dask", 1, 4)],
)
def test_a_killed_run_is_taken_up_and_ends_in_the_same_bytes(
    field: Path, undisturbed: dict[str, bytes], tmp_path: Path, engine: str, stage: int, count: int
) -> None:
    out = tmp_path / "out.zarr"
    process = start(field, out, engine)
    wait_for_marks(tmp_path / "out.zarr.partial", stage, count, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not out.exists()
    assert start(field, out, "threads").wait(300) == 0
    again = read_all(out)
    assert again.keys() == undisturbed.keys()
    assert [name for name in again if again[name] != undisturbed[name]] == []
    assert not (tmp_path / "out.zarr.partial").exists()


def test_what_overwrite_began_is_taken_up_by_the_same_command(
    field: Path, finished: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """As a schedule gives it again after a kill; the old result stays until the new one is whole."""
    out = tmp_path / "out.zarr"
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    process = start(field, out, "threads", "--overwrite")
    wait_for_marks(tmp_path / "out.zarr.partial", 1, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = marks(tmp_path / "out.zarr.partial")
    assert len(done) >= 20 + 7
    assert read_all(out).items() <= undisturbed.items()
    assert start(field, out, "threads", "--overwrite").wait(300) == 0
    assert done.items() <= marks(out).items()
    assert read_all(out) == undisturbed


def marks(store: Path, below: str = "c") -> dict[str, int]:
    """Give when each mark of the ledger was set; one that is being written is none."""
    found = {}
    for path in (store / "ledger" / below).rglob("*"):
        with suppress(FileNotFoundError):  # it has its name meanwhile
            if path.suffix != ".partial" and path.is_file():
                found[str(path.relative_to(store))] = path.stat().st_mtime_ns
    return found


def test_many_kills_in_a_row(field: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out, chance = tmp_path / "out.zarr", random.Random(5)
    for _ in range(4):
        process = start(field, out, "serial")
        try:
            process.wait(chance.uniform(2.0, 7.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    assert start(field, out, "serial").wait(300) == 0
    again = read_all(out)
    assert [name for name in undisturbed if again.get(name) != undisturbed[name]] == []


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["resume", "overwrite"])
def test_a_second_run_on_the_same_output_is_refused(
    field: Path, undisturbed: dict[str, bytes], tmp_path: Path, more: list[str]
) -> None:
    out = tmp_path / "out.zarr"
    process = start(field, out, "serial")
    wait_for_marks(tmp_path / "out.zarr.partial", 1, 2, process)
    process.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), str(out), *SETTINGS, *more]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "is being written by another run" in second.stderr
    assert process.wait(300) == 0
    assert read_all(out) == undisturbed
