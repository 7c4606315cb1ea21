"""Objects that are never looked through for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcnpipe.lasting import lasting

ROOT = Path(__file__).parents[1]


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


def test_what_was_there_is_kept_and_what_comes_after_is_collected() -> None:
    with lasting():
        kept = tie()
        assert not gc.isenabled()
    assert gc.isenabled()
    lost = tie()
    gc.collect()
    assert kept() is not None
    assert lost() is None


def test_an_error_leaves_the_collector_on_and_one_that_was_off_stays_so() -> None:
    with pytest.raises(ImportError), lasting():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with lasting():
        pass
    assert not gc.isenabled()


def test_a_process_of_flows_collects_once_prefect_is_there() -> None:
    """And has it among what is kept."""
    pytest.importorskip("prefect")
    told = "import gc, flows, sys; print(gc.isenabled(), 'prefect' in sys.modules, gc.get_freeze_count())"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True
    )
    enabled, imported, count = done.stdout.split()
    assert (enabled, imported) == ("True", "True")
    assert int(count) > 50_000
