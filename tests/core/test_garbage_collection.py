"""When garbage is collected, and among what."""

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


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()
    gc.collect()


def tie() -> weakref.ref[Knot]:
    return weakref.ref(Knot())


def test_what_is_kept_stays_and_what_comes_after_is_collected() -> None:
    kept = tie()
    freeze_objects()
    lost = tie()
    gc.collect()
    assert kept() is not None
    assert lost() is None


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
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
from flows.command_line import run_by_hand

def start() -> None:
    print(gc.isenabled(), "prefect" in sys.modules, gc.get_freeze_count())

start()
run_by_hand(start, "run")
"""


def test_flows_freeze_nothing_but_as_a_command() -> None:
    """Who imports them has other things in the process; there, too, the collector is on."""
    pytest.importorskip("prefect")
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported, begun = (line.split() for line in done.stdout.splitlines())
    assert imported == ["True", "True", "0"]
    assert begun[:2] == ["True", "True"]
    assert int(begun[2]) > 50_000
