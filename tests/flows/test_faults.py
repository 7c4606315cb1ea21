"""Runs with a killed Prefect server or worker: the result is the same, byte for byte."""

from pathlib import Path

import pytest

pytest.importorskip("prefect")

from tests.flows import processes
from tests.flows.faults import list_faults
from tests.flows.records import MARKS
from tests.integration.faults import Case, run_with_fault, run_without_fault
from tests.integration.scenes import write_field

pytestmark = MARKS


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (200, 320))


@pytest.fixture(scope="module")
def undisturbed(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run_without_fault(tmp_path_factory.mktemp("run"), field)


@pytest.mark.parametrize("who", ["server", "worker"])
def test_a_killed_prefect_process_changes_nothing(
    server: processes.Server,
    field: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    who: str,
) -> None:
    case = Case(tmp_path, field, "middle")
    fault = list_faults(server)[f"SIGKILL of the Prefect {who}"]
    description, different = run_with_fault(fault, case, undisturbed)
    assert description
    assert different == []
