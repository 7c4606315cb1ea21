"""Fault injection: kills, signals, full disks, damaged files and hanging tiles in real processes.

A fault is a function that takes a `Case`, disturbs a run of ``fcnpipe segment`` at the moment of the
case, checks exit code and standard error, and returns the outcome in a few words. `run_with_fault`
then resumes the run if it is unfinished, and compares its files with those of `run_without_fault`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

import fcnpipe
from fcnpipe.stores import partial_path
from tests.integration.scenes import list_differences, read_all

HOOKS = Path(__file__).with_name("hooks")
SETTINGS = {"model": "none", "window": 128, "tile": 128, "workers": 2}
MOMENTS = {"early": "measure_cells", "middle": "predict", "late": "measure"}
"""Moment -> the task at which a fault happens, on the tile `TILE`."""
TILE = "r001c001"
"""The second tile of the second row."""
TIMEOUT_SECONDS = 280.0


@dataclass(frozen=True)
class Case:
    """A run with a fault.

    Attributes
    ----------
    folder : Path
        Empty folder for the output and all other files.
    field : Path
        The image.
    moment : str
        Moment of the fault, a key of `MOMENTS`.
    """

    folder: Path
    field: Path
    moment: str

    @property
    def out(self) -> Path:
        return self.folder / "disk" / "out.zarr"

    @property
    def task(self) -> str:
        return MOMENTS[self.moment]

    @contextmanager
    def run(self, fault: str = "", *options: str, **variables: str) -> Iterator[Run]:
        """Start ``fcnpipe segment`` with a fault inside, and kill its remaining processes at the end."""
        self.out.parent.mkdir(exist_ok=True)
        flags = [f for n, v in SETTINGS.items() for f in (f"--{n}", str(v))]
        command = [sys.executable, "-m", "fcnpipe", "segment", str(self.field), str(self.out)]
        run = Run([*command, *flags, "--quiet", *options], self.environment(fault) | variables)
        try:
            yield run
        finally:
            run.end()

    def environment(self, fault: str) -> dict[str, str]:
        """Return the environment that injects ``fault`` into a process; no fault if empty."""
        path = os.pathsep.join([str(HOOKS), str(Path(__file__).parents[2])])
        settings = {"task": self.task, "tile": TILE, "fault": fault, "folder": str(self.folder)}
        environment = {**os.environ, "PYTHONPATH": path}
        return environment | ({"FCNPIPE_FAULT": json.dumps(settings)} if fault else {})

    def wait_for_moment(self, run: Run) -> int:
        """Wait until the task of the fault is reached; return the id of its process."""
        mark = self.folder / "reached"
        wait_for(lambda: mark.exists() or run.process.poll() is not None)
        assert mark.exists(), run.process.communicate()
        return int(mark.read_text())

    def let_task_continue(self) -> None:
        """End the wait of the task of the fault."""
        (self.folder / "go").touch()

    def resume(self) -> None:
        """Run or resume the same run in this process, without a fault."""
        self.out.parent.mkdir(exist_ok=True)
        fcnpipe.segment(self.field, self.out, **SETTINGS, quiet=True)


class Run:
    """A process that leads a session of its own, as in a terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def finish(self) -> tuple[int, str]:
        """Wait for the run and all its processes; return exit code and standard error."""
        stderr = self.process.communicate(timeout=TIMEOUT_SECONDS)[1]
        wait_for(lambda: not list_processes(self.process.pid))
        return self.process.returncode, stderr

    def end(self) -> None:
        """Kill all processes of the session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def wait_for(ready: Callable[[], object], seconds: float = TIMEOUT_SECONDS) -> None:
    start = time.monotonic()
    while not ready():
        assert time.monotonic() - start < seconds
        time.sleep(0.02)


def list_processes(session: int) -> list[psutil.Process]:
    """Return the live processes of a session."""
    return [process for process in psutil.process_iter() if _session(process) == session]


def _session(process: psutil.Process) -> int:
    with suppress(OSError, psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return os.getsid(process.pid)
    return -1


def check_one_line(stderr: str) -> str:
    """Check that a run printed a single line, and return its text."""
    assert stderr.startswith("fcnpipe: "), stderr
    assert stderr.count("\n") == 1, stderr
    return stderr.removeprefix("fcnpipe: ").strip()


# --- processes that die ---------------------------------------------------------------------------


def worker_killed(case: Case) -> str:
    """SIGKILL of a Dask worker: another worker runs its tile, and the run continues."""
    with case.run("wait", "--engine", "dask") as run:
        os.kill(case.wait_for_moment(run), signal.SIGKILL)
        case.let_task_continue()
        assert run.finish() == (0, "")
    return "continues, exit 0"


def run_killed(case: Case) -> str:
    """SIGKILL of the process of the run: its workers end, and the same command resumes the run."""
    with case.run("wait", "--engine", "dask") as run:
        case.wait_for_moment(run)
        run.process.kill()
        run.process.wait(60)
        wait_for(lambda: not list_processes(run.process.pid))
    return "ends with its workers; the same command resumes it"


def scheduler_killed(case: Case) -> str:
    """SIGKILL of an external Dask scheduler: the run ends and names the scheduler."""
    with (
        external_cluster(case) as (scheduler, address),
        case.run("", "--scheduler", address) as run,
    ):
        case.wait_for_moment(run)
        scheduler.kill()
        case.let_task_continue()
        code, stderr = run.finish()
    assert code == 2, stderr
    assert "scheduler" in check_one_line(stderr), stderr
    assert "gone" in stderr, stderr
    return "exit 2, names the scheduler"


@contextmanager
def external_cluster(case: Case) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a scheduler and a worker as processes; yield the scheduler and its address."""
    file = case.folder / "scheduler.json"
    dask = [sys.executable, "-c", "import sys; from dask.__main__ import main; main()"]
    here = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    join = ["--scheduler-file", str(file), "--nthreads", "2", "--no-dashboard"]
    with ExitStack() as stack:
        scheduler = Run([*dask, "scheduler", *here], case.environment(""))
        stack.callback(scheduler.end)
        wait_for(lambda: file.exists() and file.stat().st_size)
        worker = Run([*dask, "worker", *join], case.environment("wait"))
        stack.callback(worker.end)
        yield scheduler.process, json.loads(file.read_text())["address"]


# --- signals --------------------------------------------------------------------------------------


def interrupted(case: Case, number: int, engine: str) -> str:
    """Ctrl-C to the whole process group, or SIGTERM: the run and its workers end at once."""
    with case.run("wait", "--engine", engine) as run:
        case.wait_for_moment(run)
        send = os.killpg if number == signal.SIGINT else os.kill
        send(run.process.pid, number)
        code, stderr = run.finish()
    assert code == 130
    assert check_one_line(stderr).startswith("interrupted: run the same command")
    return "exit 130; the same command resumes it"


# --- tiles that hang, or need too much memory -----------------------------------------------------


def tile_hangs(case: Case, engine: str) -> str:
    """A task on a tile hangs: the tile is abandoned and named, the others are finished."""
    with case.run("hang", "--engine", engine, "--tile-timeout", "6") as run:
        code, stderr = run.finish()
    return check_failed_tile(code, stderr, "not done after 6 s")


def memory_runs_out(case: Case, engine: str) -> str:
    """A task on a tile allocates more memory than exists: the tile is named, the others are finished."""
    with case.run("memory", "--engine", engine) as run:
        code, stderr = run.finish()
    return check_failed_tile(code, stderr, "MemoryError")


def worker_out_of_memory(case: Case) -> str:
    """Each Dask worker that starts the tile is killed: the tile is named, the others are finished."""
    with case.run("kill", "--engine", "dask") as run:
        code, stderr = run.finish()
    return check_failed_tile(code, stderr, "worker")


def check_failed_tile(code: int, stderr: str, why: str) -> str:
    assert code == 3, stderr
    assert f"1 tile(s) failed: {TILE}" in check_one_line(stderr)
    assert why in stderr, stderr
    return f"exit 3, names {TILE} ({why})"


# --- disks and files ------------------------------------------------------------------------------


def disk_full(case: Case) -> str:
    """The disk of the output is full: the run reports it in one line, and is resumed when there is room."""
    filler, mounted = case.out.parent / "filler", os.path.ismount(case.out.parent)
    with case.run("wait" if mounted else "full", "--engine", "threads") as run:
        case.wait_for_moment(run)
        if mounted:
            fill(filler)
        case.let_task_continue()
        code, stderr = run.finish()
    filler.unlink(missing_ok=True)
    assert code == 2, stderr
    assert "make room" in check_one_line(stderr)
    return "exit 2, 'make room'"


def disk_read_only(case: Case) -> str:
    """The disk of the output becomes read-only: the run and its repetition report it in one line."""
    with case.run("wait", "--engine", "threads") as run:
        case.wait_for_moment(run)
        with read_only(case.out.parent):
            case.let_task_continue()
            code, stderr = run.finish()
            assert code == 2, stderr
            assert "cannot write" in check_one_line(stderr)
            with case.run() as again:
                code, stderr = again.finish()
            assert code == 2, stderr
            assert "choose another" in check_one_line(stderr)
    return "exit 2, 'cannot write'"


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 64 MB at a folder, where this is permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Return whether `small_disk` can mount."""
    with small_disk(folder / "probe"):
        return os.path.ismount(folder / "probe")


def fill(file: Path) -> None:
    """Write to a file until the disk is full."""
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(bytes(1 << 16)):
            pass


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only."""
    if os.path.ismount(folder):
        wait_for(lambda: _remount("ro", folder))  # refused while a file is being written
        try:
            yield
        finally:
            assert _remount("rw", folder)
        return
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o755)


def _remount(mode: str, folder: Path) -> bool:
    command = ["mount", "-o", f"remount,{mode}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def input_changes(case: Case) -> str:
    """The image is truncated while it is read: the store is not published, and resuming is refused."""
    content = case.field.read_bytes()
    try:
        with case.run("wait", "--engine", "threads") as run:
            case.wait_for_moment(run)
            os.truncate(case.field, len(content) // 2)
            case.let_task_continue()
            code, stderr = run.finish()
        assert code == 2, stderr
        assert "changed while it was read" in check_one_line(stderr)
        with case.run() as again:
            code, stderr = again.finish()
        assert code == 2, stderr
        assert "truncated; copy it again" in check_one_line(stderr)
    finally:
        case.field.write_bytes(content)
    return "exit 2, names the file; refused until the file is restored"


def lose_partial_shards(case: Case) -> str:
    """Files that the ledger of a killed run marks as done are missing or truncated."""
    with case.run("wait", "--engine", "threads") as run:
        case.wait_for_moment(run)
        run.process.kill()
    level = partial_path(case.out) / "image" / "0"
    # At the early moment there are no maps, only the pixel coordinates.
    files = sorted(level.glob("*/c/**/[0-9]/[0-9]")) or sorted(level.glob("*/c/[0-9]"))
    truncate_and_delete(files[0], files[-1])
    return "repeated when the run is resumed"


def lose_published_shards(case: Case) -> str:
    """Files of a finished store are missing or truncated: ``verify`` names and restores them."""
    case.resume()
    names = {
        "early": ("probability/c/0/1/1", "flags/c/0/2"),
        "middle": ("label/c/1/1", "label/c/0/2"),
        "late": ("elevation/c/0/1", "label/c/2/0"),
    }[case.moment]
    truncate_and_delete(*(case.out / "image/0" / name for name in names))
    code, stderr = verify(case.out, "--deep")
    assert code == 2
    assert all(name.split("/")[0] in check_one_line(stderr) for name in names), stderr
    assert "is missing" in stderr, stderr
    assert "is not what was written" in stderr, stderr
    assert verify(case.out, "--repair", "--quiet") == (0, "")
    assert verify(case.out, "--deep") == (0, "")
    return "`verify --deep` names them, `--repair` restores them"


def truncate_and_delete(truncated: Path, deleted: Path) -> None:
    truncated.write_bytes(truncated.read_bytes()[:-30])
    deleted.unlink()


def verify(out: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "fcnpipe", "verify", str(out), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    return ended.returncode, ended.stderr


def second_run(case: Case) -> str:
    """A second run on the same output is refused, and the first run continues."""
    with case.run("wait", "--engine", "threads") as run:
        case.wait_for_moment(run)
        with case.run() as other:
            code, stderr = other.finish()
        assert code == 2
        assert f"is being written by another run (process {run.process.pid} on " in check_one_line(
            stderr
        )
        case.let_task_continue()
        assert run.finish() == (0, "")
    return "the second run: exit 2, names the process of the first"


def clock_jumps(case: Case) -> str:
    """The clock of the machine jumps back and forth at each reading: the run is unaffected."""
    with case.run("", "--engine", "threads", FCNPIPE_CLOCK="1") as run:
        assert run.finish() == (0, "")
    return "unaffected, exit 0"


# --- all of them ----------------------------------------------------------------------------------

Fault = Callable[[Case], str]
FAULTS: dict[str, Fault] = {
    "SIGKILL of a Dask worker": worker_killed,
    "SIGKILL of the run, Dask": run_killed,
    "SIGKILL of the Dask scheduler": scheduler_killed,
    **{
        f"{name}, {engine}": partial(interrupted, number=number, engine=engine)
        for name, number in (("SIGTERM", signal.SIGTERM), ("Ctrl-C", signal.SIGINT))
        for engine in ("serial", "threads", "dask")
    },
    **{f"hanging tile, {e}": partial(tile_hangs, engine=e) for e in ("serial", "threads", "dask")},
    **{
        f"no memory for a tile, {e}": partial(memory_runs_out, engine=e)
        for e in ("threads", "dask")
    },
    "Dask workers killed for memory": worker_out_of_memory,
    "full disk": disk_full,
    "read-only disk": disk_read_only,
    "image cut short": input_changes,
    "lost shards of a killed run": lose_partial_shards,
    "lost shards of a finished store": lose_published_shards,
    "two runs at once": second_run,
    "clock jumps": clock_jumps,
}
NEED_A_DISK = (disk_full, disk_read_only)
"""Faults that need a file system of their own."""


def run_with_fault(fault: Fault, case: Case, reference: dict[str, bytes]) -> tuple[str, list[str]]:
    """Run with a fault and resume; return the outcome and the files that differ from ``reference``."""
    with small_disk(case.out.parent) if fault in NEED_A_DISK else nullcontext():
        outcome = fault(case)
        case.resume()
        found = read_all(case.out)
        assert not partial_path(case.out).exists()
    return outcome, list_differences(found, reference)


def run_without_fault(folder: Path, field: Path) -> dict[str, bytes]:
    """Return all files of the result of a run without a fault."""
    case = Case(folder / "undisturbed", field, "middle")
    case.folder.mkdir()
    case.resume()
    return read_all(case.out)
