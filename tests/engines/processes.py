"""Fixtures: Dask schedulers and workers as separate processes, on free ports of the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

QUIET = {"DASK_LOGGING__DISTRIBUTED": "error"}


def start(
    program: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command of Dask in a folder; its standard error goes to FOLDER/stderr."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{program}", *arguments]
    settings = {**os.environ, **QUIET, **(environment or {})}
    with ExitStack() as stack:
        log = stack.enter_context((folder / "stderr").open("wb")) if folder else None
        return subprocess.Popen(
            command, env=settings, cwd=folder, stderr=log, start_new_session=True
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


@contextmanager
def running(program: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = start(program, *arguments, **options)
    try:
        yield process
    finally:
        stop(process)


@contextmanager
def scheduler(folder: Path, *arguments: str, **options: Any) -> Iterator[Path]:
    """Start a scheduler, and yield the path of its scheduler file."""
    file = folder / "scheduler.json"
    with running(
        *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
        *("--scheduler-file", str(file), *arguments),
        **options,
    ) as process:
        wait_for(lambda: address_in(file), process)
        yield file


@contextmanager
def workers(
    file: Path, count: int, *arguments: str, **options: Any
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start workers of one thread that connect with a scheduler file, and yield their processes."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                running(
                    *("worker", "--scheduler-file", str(file), "--nthreads", "1"),
                    *("--no-dashboard", "--host", "127.0.0.1", *arguments),
                    **options,
                )
            )
            for _ in range(count)
        ]


def address_in(file: Path) -> str:
    """Return the address in a scheduler file; empty while the file is missing or incomplete."""
    try:
        return str(json.loads(file.read_text())["address"])
    except (OSError, ValueError):
        return ""


def wait_for(ready: object, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < end, f"not ready after {seconds:g} s"
        time.sleep(0.05)
