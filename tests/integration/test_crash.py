"""kill -9 at any moment, the same command again: the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import fcnpipe
from fcnpipe.core.errors import StoreError
from tests.integration.faults import HOOKS
from tests.integration.scenes import read_all, write_field

OPTIONS = {"model": "none", "window": 128, "tile": 128, "workers": 2}
SETTINGS = [
    *(word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))),
    "--quiet",
]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (300, 400))


def take_up(field: Path, out: Path, **more: Any) -> None:
    """Run it in this process, undisturbed: the processes of the others take longer than their work."""
    fcnpipe.segment(field, out, **(OPTIONS | more), quiet=True)


def start(field: Path, out: Path, engine: str, *more: str) -> subprocess.Popen[bytes]:
    """Start it as a process, which waits before its end until it may go on, or is killed in time."""
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), str(out), *SETTINGS, *more]
    end = {"task": "check_tile", "tile": "r001c001", "fault": "wait", "folder": str(out.parent)}
    path = os.pathsep.join([str(HOOKS), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "FCNPIPE_FAULT": json.dumps(end)}
    return subprocess.Popen([*command, "--engine", engine], env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def finished(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing befell."""
    out = tmp_path_factory.mktemp("undisturbed") / "out.zarr"
    take_up(field, out)
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
    take_up(field, out)
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
    assert len(done) >= 12 + 7
    assert read_all(out).items() <= undisturbed.items()
    take_up(field, out, overwrite=True)
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
    """Each comes a little further than the one before, whatever the speed of the machine."""
    out, partial = tmp_path / "out.zarr", tmp_path / "out.zarr.partial"
    chance = random.Random(5)
    for count in sorted(chance.sample(range(3, 55), 3)):
        process = start(field, out, "serial")
        while process.poll() is None and len(marks(partial)) < count:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    take_up(field, out)
    again = read_all(out)
    assert [name for name in undisturbed if again.get(name) != undisturbed[name]] == []


def test_a_second_run_on_the_same_output_is_refused(
    field: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    process = start(field, out, "serial")
    wait_for_marks(tmp_path / "out.zarr.partial", 1, 2, process)
    process.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), str(out), *SETTINGS]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    with pytest.raises(StoreError, match="is being written by another run"):
        take_up(field, out, overwrite=True)
    (tmp_path / "go").touch()
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "is being written by another run" in second.stderr
    assert process.wait(300) == 0
    assert read_all(out) == undisturbed
