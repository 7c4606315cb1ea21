"""Injected faults: a run survives each or reports it in one line, and the final result has the same bytes."""

import os
from pathlib import Path

import pytest

from tests.integration.faults import FAULTS, Case, may_mount, run_with_fault, run_without_fault
from tests.integration.scenes import write_field

MOMENT = {
    "SIGKILL of a Dask worker": "middle",
    "SIGKILL of the Dask scheduler": "middle",
    "SIGTERM, threads": "early",
    "Ctrl-C, dask": "middle",
    "hanging tile, threads": "late",
    "no memory for a tile, threads": "early",
    "Dask workers killed for memory": "middle",
    "full disk": "late",
    "read-only disk": "middle",
    "image cut short": "late",
    "lost shards of a killed run": "middle",
    "clock jumps": "middle",
}
"""One fault of each kind, and its moment; ``python -m benchmarks.fault_injection`` runs all at all moments.

Two runs at once are in test_crash.
"""


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (200, 320))


@pytest.fixture(scope="module")
def reference(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run_without_fault(tmp_path_factory.mktemp("run"), field)


@pytest.mark.parametrize("name", MOMENT)
def test_a_run_with_a_fault_writes_the_same_bytes(
    field: Path, reference: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    if name == "read-only disk" and os.geteuid() == 0 and not may_mount(tmp_path):
        pytest.skip("root can write anywhere, and mounting is not permitted here")
    outcome, different = run_with_fault(
        FAULTS[name], Case(tmp_path, field, MOMENT[name]), reference
    )
    assert outcome
    assert different == []
