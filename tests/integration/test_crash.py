"""Runs killed with kill -9 at any moment are resumed by the same command and write the same bytes."""

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
from tests.integration.scenes import list_differences, read_all, write_field

OPTIONS = {"model": "none", "window": 128, "tile": 128, "workers": 2}
SETTINGS = [
    *(word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))),
    "--quiet",
]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (300, 400))


def resume(field: Path, out: Path, **more: Any) -> None:
    """Run or resume the run in this process, which is faster than starting another one."""
    fcnpipe.segment(field, out, **(OPTIONS | more), quiet=True)


def start(field: Path, out: Path, engine: str, *more: str) -> subprocess.Popen[bytes]:
    """Start the run in a process that waits before its end until it is killed or FOLDER/go exists."""
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), str(out), *SETTINGS, *more]
    fault = {"task": "check_tile", "tile": "r001c001", "fault": "wait", "folder": str(out.parent)}
    path = os.pathsep.join([str(HOOKS), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "FCNPIPE_FAULT": json.dumps(fault)}
    return subprocess.Popen([*command, "--engine", engine], env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def finished(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that was not killed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out.zarr"
    resume(field, out)
    return out


@pytest.fixture(scope="module")
def reference(finished: Path) -> dict[str, bytes]:
    return read_all(finished)


def wait_for_marks(partial: Path, stage: int, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until ``count`` tiles of a stage are marked in the ledger, or the run has ended."""
    while process.poll() is None:
        if len(read_marks(partial, f"c/{stage}")) >= count:
            return
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("engine", "stage", "count"),
    [("serial", 0, 3), ("serial", 2, 5), ("threads", 3, 9), ("dask", 1, 4)],
)
def test_a_killed_run_is_resumed_and_writes_the_same_bytes(
    field: Path, reference: dict[str, bytes], tmp_path: Path, engine: str, stage: int, count: int
) -> None:
    out = tmp_path / "out.zarr"
    process = start(field, out, engine)
    wait_for_marks(tmp_path / "out.zarr.partial", stage, count, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not out.exists()
    resume(field, out)
    assert list_differences(read_all(out), reference) == []
    assert not (tmp_path / "out.zarr.partial").exists()


def test_a_killed_run_with_overwrite_is_resumed_by_the_same_command(
    field: Path, finished: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """The old result stays until the new one is complete; a schedule may repeat the command."""
    out = tmp_path / "out.zarr"
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    process = start(field, out, "threads", "--overwrite")
    wait_for_marks(tmp_path / "out.zarr.partial", 1, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = read_marks(tmp_path / "out.zarr.partial")
    assert len(done) >= 12 + 7
    assert read_all(out).items() <= reference.items()
    resume(field, out, overwrite=True)
    assert done.items() <= read_marks(out).items()
    assert read_all(out) == reference


def read_marks(store: Path, below: str = "c") -> dict[str, int]:
    """Return the time of each mark in the ledger, without marks that are being written."""
    found = {}
    for path in (store / "ledger" / below).rglob("*"):
        with suppress(FileNotFoundError):  # renamed in the meantime
            if path.suffix != ".partial" and path.is_file():
                found[str(path.relative_to(store))] = path.stat().st_mtime_ns
    return found


def test_a_run_killed_several_times_is_resumed(
    field: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """Each run proceeds further than the one before, regardless of the speed of the machine."""
    out, partial = tmp_path / "out.zarr", tmp_path / "out.zarr.partial"
    chance = random.Random(5)
    for count in sorted(chance.sample(range(3, 55), 3)):
        process = start(field, out, "serial")
        while process.poll() is None and len(read_marks(partial)) < count:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    resume(field, out)
    assert list_differences(read_all(out), reference) == []


def test_a_second_run_on_the_same_output_is_refused(
    field: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    process = start(field, out, "serial")
    wait_for_marks(tmp_path / "out.zarr.partial", 1, 2, process)
    process.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), str(out), *SETTINGS]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    with pytest.raises(StoreError, match="is being written by another run"):
        resume(field, out, overwrite=True)
    (tmp_path / "go").touch()
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "is being written by another run" in second.stderr
    assert process.wait(300) == 0
    assert read_all(out) == reference
