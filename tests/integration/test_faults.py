"""Whatever befalls a run: it says so in one line, and ends in the same bytes after all."""

import os
from pathlib import Path

import pytest

from tests.integration.faults import FAULTS, Case, befall, may_mount, run_undisturbed
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
"""One of each kind, and when it strikes; ``python -m benchmarks.fault_injection`` tries all at all moments.

Two runs at once are in test_crash.
"""


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (200, 320))


@pytest.fixture(scope="module")
def undisturbed(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run_undisturbed(tmp_path_factory.mktemp("run"), field)


@pytest.mark.parametrize("name", MOMENT)
def test_a_run_ends_in_the_same_bytes(
    field: Path, undisturbed: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    if name == "read-only disk" and os.geteuid() == 0 and not may_mount(tmp_path):
        pytest.skip("root may write anywhere, and nothing can be mounted here")
    said, different = befall(FAULTS[name], Case(tmp_path, field, MOMENT[name]), undisturbed)
    assert said
    assert different == []
