"""All engines pass the shared suite, Dask with real worker processes; lost workers and scripts without a guard."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import spawn
from pathlib import Path

import pytest

from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import make_spec
from fcnpipe.engines import SerialEngine, ThreadsEngine, open_engine
from fcnpipe.engines.base import Engine, WorkerRequirements
from fcnpipe.engines.dask import start_local
from fcnpipe.engines.dask_cluster import WORKER_PROCESS, ScriptGuard
from fcnpipe.testing.engines import EngineTests


class TestSerial(EngineTests):
    @pytest.fixture
    def engine(self) -> Engine:
        return SerialEngine()


class TestThreads(EngineTests):
    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        engine = ThreadsEngine(3)
        yield engine
        engine.close()


class TestDask(EngineTests):
    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        engine = start_local(1, WorkerRequirements({"FCNPIPE_TEST": "1"}))
        yield engine
        engine.close()


def die(name: str) -> TaskReport:
    """Kill the worker for the name ``poison``; report an environment variable for others."""
    if name == "poison":
        time.sleep(1)  # as long as a short tile; the nanny knows its worker by then
        os.kill(os.getpid(), signal.SIGKILL)
    return TaskReport("die", name, facts={"setting": os.environ.get("FCNPIPE_TEST")})


def die_once(mark: str, name: str) -> TaskReport:
    """Kill the first worker that runs the task ``poison``."""
    if name == "poison" and not Path(mark).exists():
        Path(mark).touch()
        return die(name)
    return TaskReport("die", name)


def test_a_task_that_kills_its_worker_is_named_and_all_others_succeed() -> None:
    engine = start_local(1, WorkerRequirements({"FCNPIPE_TEST": "1"}))
    try:
        reports = {r.name: r for r in engine.run(die, ["a", "poison", "b", "c", "d", "e", "f"])}
    finally:
        engine.close()
    assert "worker lost" in reports["poison"].error
    assert all(not reports[n].error and reports[n].facts["setting"] == "1" for n in "abcdef")


def die_briefly(name: str) -> TaskReport:
    """Run `die`, and report a duration of 10 ms."""
    return replace(die(name), seconds=0.01)


def test_short_tasks_are_submitted_in_groups_and_only_the_one_that_kills_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"t{number:02}" for number in range(80)]
    names[20] = "poison"
    engine = start_local(1, WorkerRequirements())
    submit, sizes = engine._submit, list[int]()
    monkeypatch.setattr(
        engine,
        "_submit",
        lambda task, group, prefix: sizes.append(len(group)) or submit(task, group, prefix),
    )
    try:
        reports = list(engine.run(die_briefly, names))
    finally:
        engine.close()
    assert sorted(report.name for report in reports) == sorted(names)
    assert [report.name for report in reports if report.error] == ["poison"]
    assert max(sizes) == 10
    assert len(sizes) < 70
    assert sizes[-1] == 1


UNGUARDED = """
import sys
from functools import partial
from pathlib import Path

from fcnpipe.engines.base import WorkerRequirements
from fcnpipe.engines.dask import start_local
from tests.engines.test_engines import die_once

with Path(sys.argv[1]).open("a") as file:
    file.write("ran ")
engine = start_local(1, WorkerRequirements({"FCNPIPE_TEST": "1"}))
task = partial(die_once, sys.argv[1] + ".died")
print(sorted(report.name for report in engine.run(task, ["a", "poison", "b"]) if not report.error))
engine.close()
"""


def test_a_script_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path.cwd(), *sys.path)))}
    command = [sys.executable, str(script), str(log)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout == "['a', 'b', 'poison']\n"
    assert (tmp_path / "log.died").exists()
    assert log.read_text() == "ran "


def test_other_processes_import_the_script() -> None:
    before, guard = spawn.get_preparation_data, ScriptGuard()
    other = ScriptGuard()
    assert spawn.get_preparation_data("Process-1") == before("Process-1")
    guard.close()
    other.close()
    assert spawn.get_preparation_data(WORKER_PROCESS) == before(WORKER_PROCESS)


@pytest.mark.parametrize(
    ("engine", "workers", "kind"),
    [("serial", 4, SerialEngine), ("threads", 1, SerialEngine), ("threads", 2, ThreadsEngine)],
)
def test_the_spec_chooses_the_engine(engine: str, workers: int, kind: type) -> None:
    opened = open_engine(
        make_spec(image=("a",), out="o", engine=engine, workers=workers), WorkerRequirements()
    )
    assert isinstance(opened, kind)
    opened.close()


def test_workers_are_silent_when_the_scheduler_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start_local(1, WorkerRequirements())
    levels = []

    def read_level() -> int:
        return logging.getLogger("distributed.worker").getEffectiveLevel()

    def record_level() -> None:
        levels.extend(engine._client.run(read_level).values())
        type(engine._client).close(engine._client)

    monkeypatch.setattr(engine._client, "close", record_level)
    assert list(engine._client.run(read_level).values()) < [logging.CRITICAL]
    engine.close()
    assert levels == [logging.CRITICAL]
