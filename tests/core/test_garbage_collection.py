"""Garbage collection is paused during imports, and objects are frozen in the processes of commands only."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcnpipe.core.garbage_collection import freeze_objects, pause_collection

ROOT = Path(__file__).parents[2]


class Cycle:
    """A reference cycle, which only the garbage collector can free."""

    def __init__(self) -> None:
        self.reference = self


@pytest.fixture(autouse=True)
def restored_collector() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()
    gc.collect()


def drop_cycle() -> weakref.ref[Cycle]:
    """Return a weak reference to a cycle that is garbage."""
    return weakref.ref(Cycle())


def test_frozen_objects_stay_and_later_garbage_is_freed() -> None:
    kept = drop_cycle()
    freeze_objects()
    freed = drop_cycle()
    gc.collect()
    assert kept() is not None
    assert freed() is None


def test_the_collector_is_restored_after_a_failed_import() -> None:
    with pause_collection():
        assert not gc.isenabled()
    with pytest.raises(ImportError), pause_collection():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with pause_collection():
        pass
    assert not gc.isenabled()


START = """
import gc, sys
from flows.command_line import run_as_command

def start() -> None:
    print(gc.isenabled(), "prefect" in sys.modules, gc.get_freeze_count())

start()
run_as_command(start, "run")
"""


def test_objects_are_frozen_by_flow_commands_and_not_by_imports_of_flows() -> None:
    """A process that imports flows has other objects; the collector is enabled in both cases."""
    pytest.importorskip("prefect")
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported, started = (line.split() for line in done.stdout.splitlines())
    assert imported == ["True", "True", "0"]
    assert started[:2] == ["True", "True"]
    assert int(started[2]) > 50_000
