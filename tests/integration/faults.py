"""What may befall a run, as real processes meet it: each fault with what the user then sees.

A fault is a function that takes a `Case`, disturbs a run of ``fcnpipe segment`` at the moment that
the case names, checks what the run says, and gives it in a few words. Afterwards the same run is
taken up, if it is not done, and must give the bytes of a run that nothing befell: `befall`.
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
from tests.integration.scenes import read_all

HOOKS = Path(__file__).with_name("hooks")
SETTINGS = {"model": "none", "window": 128, "tile": 128, "workers": 2}
MOMENTS = {"early": "measure_cells", "middle": "predict", "late": "measure"}
"""The task, on the second tile of the second row, at which a fault strikes."""
TILE = "r001c001"
PATIENCE_SECONDS = 280.0


@dataclass(frozen=True)
class Case:
    """A run that something befalls.

    Attributes
    ----------
    folder : Path
        Empty; for the output and all else.
    field : Path
        The image.
    moment : str
        When it happens.
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
        """Start ``fcnpipe segment`` with a fault inside; nothing of it is left afterwards."""
        self.out.parent.mkdir(exist_ok=True)
        flags = [f for n, v in SETTINGS.items() for f in (f"--{n}", str(v))]
        command = [sys.executable, "-m", "fcnpipe", "segment", str(self.field), str(self.out)]
        started = Run([*command, *flags, "--quiet", *options], self.environment(fault) | variables)
        try:
            yield started
        finally:
            started.end()

    def environment(self, fault: str) -> dict[str, str]:
        """What makes a process of the run meet a fault; none if empty."""
        path = os.pathsep.join([str(HOOKS), str(Path(__file__).parents[2])])
        what = {"task": self.task, "tile": TILE, "fault": fault, "folder": str(self.folder)}
        found = {**os.environ, "PYTHONPATH": path}
        return found | ({"FCNPIPE_FAULT": json.dumps(what)} if fault else {})

    def wait_for_moment(self, run: Run) -> int:
        """Wait until the fault's task is reached; give the process that does it."""
        mark = self.folder / "reached"
        wait_for(lambda: mark.exists() or run.process.poll() is not None)
        assert mark.exists(), run.process.communicate()
        return int(mark.read_text())

    def go_on(self) -> None:
        """Let the waiting task go on."""
        (self.folder / "go").touch()

    def take_up(self) -> None:
        """Run it again, in this process and undisturbed."""
        self.out.parent.mkdir(exist_ok=True)
        fcnpipe.segment(self.field, self.out, **SETTINGS, quiet=True)


class Run:
    """A process that leads a session of its own, as under a terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where the tests run in the background, Ctrl-C is ignored, and so it would be here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def finish(self) -> tuple[int, str]:
        """Give exit code and standard error; nothing that the run started is left."""
        said = self.process.communicate(timeout=PATIENCE_SECONDS)[1]
        wait_for(lambda: not alive(self.process.pid))
        return self.process.returncode, said

    def end(self) -> None:
        """Kill what is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def wait_for(ready: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds
        time.sleep(0.02)


def alive(session: int) -> list[psutil.Process]:
    """Give the processes of a session."""
    return [process for process in psutil.process_iter() if _session(process) == session]


def _session(process: psutil.Process) -> int:
    with suppress(OSError, psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return os.getsid(process.pid)
    return -1


def one_line(said: str) -> str:
    """Give what a run said, which must be one line, without its paths."""
    assert said.startswith("fcnpipe: "), said
    assert said.count("\n") == 1, said
    return said.removeprefix("fcnpipe: ").strip()


# --- processes that die ---------------------------------------------------------------------------


def worker_killed(case: Case) -> str:
    """SIGKILL of a Dask worker: another does its tile, the run does not stop."""
    with case.run("wait", "--engine", "dask") as run:
        os.kill(case.wait_for_moment(run), signal.SIGKILL)
        case.go_on()
        assert run.finish() == (0, "")
    return "goes on by itself, exit 0"


def run_killed(case: Case) -> str:
    """SIGKILL of the process of the run: its workers leave, a resume does the rest."""
    with case.run("wait", "--engine", "dask") as run:
        case.wait_for_moment(run)
        run.process.kill()
        run.process.wait(60)
        wait_for(lambda: not alive(run.process.pid))
    return "ends, its workers too; the same command does the rest"


def scheduler_killed(case: Case) -> str:
    """SIGKILL of an external Dask scheduler: the run says so; with a new one it is taken up."""
    with (
        external_cluster(case) as (scheduler, address),
        case.run("", "--scheduler", address) as run,
    ):
        case.wait_for_moment(run)
        scheduler.kill()
        case.go_on()
        code, said = run.finish()
    assert code == 2, said
    assert "scheduler" in one_line(said), said
    assert "gone" in said, said
    return "exit 2, names the scheduler"


@contextmanager
def external_cluster(case: Case) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A scheduler and a worker as processes: the scheduler, and its address."""
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
    """Ctrl-C, which the whole group gets, or SIGTERM: ends at once, nothing is left running."""
    with case.run("wait", "--engine", engine) as run:
        case.wait_for_moment(run)
        send = os.killpg if number == signal.SIGINT else os.kill
        send(run.process.pid, number)
        code, said = run.finish()
    assert code == 130
    assert one_line(said) == "interrupted; the same command takes the run up again"
    return "exit 130, the same command goes on"


# --- tiles that do not end, or take too much ------------------------------------------------------


def tile_hangs(case: Case, engine: str) -> str:
    """A task on a tile hangs: it is abandoned and named, the rest lands."""
    with case.run("hang", "--engine", engine, "--tile-timeout", "6") as run:
        code, said = run.finish()
    return _named(code, said, "not done after 6 s")


def memory_runs_out(case: Case, engine: str) -> str:
    """A task on a tile asks for more memory than there is: it is named, the rest lands."""
    with case.run("memory", "--engine", engine) as run:
        code, said = run.finish()
    return _named(code, said, "MemoryError")


def worker_out_of_memory(case: Case) -> str:
    """The kernel kills each Dask worker that comes to a tile: it is named, the rest lands."""
    with case.run("kill", "--engine", "dask") as run:
        code, said = run.finish()
    return _named(code, said, "worker")


def _named(code: int, said: str, why: str) -> str:
    assert code == 3, said
    assert f"1 tile(s) failed: {TILE}" in one_line(said)
    assert why in said, said
    return f"exit 3, names {TILE} ({why})"


# --- disks and files ------------------------------------------------------------------------------


def disk_full(case: Case) -> str:
    """The disk of the output fills up: one line; with room again the run is taken up."""
    filler, mounted = case.out.parent / "filler", os.path.ismount(case.out.parent)
    with case.run("wait" if mounted else "full", "--engine", "threads") as run:
        case.wait_for_moment(run)
        if mounted:
            fill(filler)
        case.go_on()
        code, said = run.finish()
    filler.unlink(missing_ok=True)
    assert code == 2, said
    assert "make room" in one_line(said)
    return "exit 2, 'make room'"


def disk_read_only(case: Case) -> str:
    """The disk of the output may not be written any more: one line."""
    with case.run("wait", "--engine", "threads") as run:
        case.wait_for_moment(run)
        with read_only(case.out.parent):
            case.go_on()
            code, said = run.finish()
            assert code == 2, said
            assert "cannot write" in one_line(said)
            with case.run() as again:
                code, said = again.finish()
            assert code == 2, said
            assert "choose another" in one_line(said)
    return "exit 2, 'cannot write'"


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Make a folder a file system of 64 MB, where this is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether `small_disk` can do what it is for."""
    with small_disk(folder / "probe"):
        return os.path.ismount(folder / "probe")


def fill(file: Path) -> None:
    """Write until there is no room."""
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(bytes(1 << 16)):
            pass


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write into a folder."""
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


def _remount(how: str, folder: Path) -> bool:
    command = ["mount", "-o", f"remount,{how}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def input_changes(case: Case) -> str:
    """The image is cut short while it is read: not published, and not taken up so."""
    before = case.field.read_bytes()
    try:
        with case.run("wait", "--engine", "threads") as run:
            case.wait_for_moment(run)
            os.truncate(case.field, len(before) // 2)
            case.go_on()
            code, said = run.finish()
        assert code == 2, said
        assert "changed while it was read" in one_line(said)
        with case.run() as again:
            code, said = again.finish()
        assert code == 2, said
        assert "truncated; copy it again" in one_line(said)
    finally:
        case.field.write_bytes(before)
    return "exit 2, names the file; refused until it is put back"


def shards_lost(case: Case) -> str:
    """Files are lost, or end too early, of which the ledger of a killed run says that they are there."""
    with case.run("wait", "--engine", "threads") as run:
        case.wait_for_moment(run)
        run.process.kill()
    level = partial_path(case.out) / "image" / "0"
    # Early there are no maps yet, but the coordinates of the pixels.
    files = sorted(level.glob("*/c/**/[0-9]/[0-9]")) or sorted(level.glob("*/c/[0-9]"))
    spoil(files[0], files[-1])
    return "done again when the run is taken up"


def published_shards_lost(case: Case) -> str:
    """Files are lost of a finished store, or end too early: found, named, made anew."""
    case.take_up()
    places = {
        "early": ("probability/c/0/1/1", "flags/c/0/2"),
        "middle": ("label/c/1/1", "label/c/0/2"),
        "late": ("elevation/c/0/1", "label/c/2/0"),
    }[case.moment]
    spoil(*(case.out / "image/0" / place for place in places))
    code, said = verify(case.out, "--deep")
    assert code == 2
    assert all(place.split("/")[0] in one_line(said) for place in places), said
    assert "is missing" in said, said
    assert "is not what was written" in said, said
    assert verify(case.out, "--repair", "--quiet") == (0, "")
    assert verify(case.out, "--deep") == (0, "")
    return "`verify --deep` names them, `--repair` makes them anew"


def spoil(one: Path, other: Path) -> None:
    one.write_bytes(one.read_bytes()[:-30])
    other.unlink()


def verify(out: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "fcnpipe", "verify", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return done.returncode, done.stderr


def second_run(case: Case) -> str:
    """Another run on the same output: refused, the first is not disturbed."""
    with case.run("wait", "--engine", "threads") as run:
        case.wait_for_moment(run)
        with case.run() as other:
            code, said = other.finish()
        assert code == 2
        assert f"is being written by another run (process {run.process.pid} on " in one_line(said)
        case.go_on()
        assert run.finish() == (0, "")
    return "the second: exit 2, names the process of the first"


def clock_jumps(case: Case) -> str:
    """The clock of the machine is set, back and forth, all the time."""
    with case.run("", "--engine", "threads", FCNPIPE_CLOCK="1") as run:
        assert run.finish() == (0, "")
    return "nothing, exit 0"


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
    "lost shards of a killed run": shards_lost,
    "lost shards of a finished store": published_shards_lost,
    "two runs at once": second_run,
    "clock jumps": clock_jumps,
}
ON_A_DISK = (disk_full, disk_read_only)
"""Faults that want a file system of their own."""


def befall(fault: Fault, case: Case, undisturbed: dict[str, bytes]) -> tuple[str, list[str]]:
    """Let a fault befall a run, and take that up: what was said, and the files that differ then."""
    with small_disk(case.out.parent) if fault in ON_A_DISK else nullcontext():
        said = fault(case)
        case.take_up()
        found = read_all(case.out)
        assert not partial_path(case.out).exists()
    names = found.keys() | undisturbed.keys()
    return said, sorted(n for n in names if found.get(n) != undisturbed.get(n))


def run_undisturbed(folder: Path, field: Path) -> dict[str, bytes]:
    """Give every file of the result of a run that nothing befalls."""
    case = Case(folder / "undisturbed", field, "middle")
    case.folder.mkdir()
    case.take_up()
    return read_all(case.out)
