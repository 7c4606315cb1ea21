"""The deployments of deploy/ and their schedules, on a real server with a real worker."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prefect")

import xarray as xr
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule

from fcnpipe.core.spec import RunSpec
from fcnpipe.survey.incoming_files import load_registry
from tests.deploy.pools import read_templates
from tests.flows import processes
from tests.flows.fields import write_stars
from tests.flows.records import MARKS, artifacts_of

ROOT = Path(__file__).parents[2]
DEPLOYED = yaml.safe_load((ROOT / "deploy/prefect.yaml").read_text())["deployments"]
OPTIONS = {"model": "none", "window": 64, "tile": 64, "engine": "serial", "quiet": True}
SET_FOLDER = "prefect.deployments.steps.set_working_directory"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

pytestmark = MARKS


@pytest.fixture(scope="module")
def deployed(server: processes.Server) -> Iterator[processes.Server]:
    """A server with a worker and all deployments of deploy/prefect.yaml."""
    with processes.worker(server, "fcnpipe"):
        server.prefect("--no-prompt", "deploy", "--prefect-file", "deploy/prefect.yaml", "--all")
        yield server


def find_deployment(name: str) -> DeploymentResponse:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


@contextmanager
def scheduled(name: str, parameters: dict[str, Any], every: float) -> Iterator[DeploymentResponse]:
    """Set the parameters of a deployment, and a schedule that starts in 3 s and ends with the block."""
    found = find_deployment(name)
    begin = datetime.now(UTC) + timedelta(seconds=3)
    schedule = IntervalSchedule(interval=timedelta(seconds=every), anchor_date=begin)
    with get_client(sync_client=True) as client:
        client._client.patch(f"/deployments/{found.id}", json={"parameters": parameters})
        (made,) = client.create_deployment_schedules(found.id, [(schedule, True)])
        try:
            yield found
        finally:
            client.delete_deployment_schedule(found.id, made.id)


def runs(deployment: DeploymentResponse) -> list[FlowRun]:
    """Return the finished runs of a deployment in the order of their start."""
    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(deployment_filter=wanted)
    ended = [run for run in found if run.state and run.state.type in FINAL and run.start_time]
    return sorted(ended, key=lambda run: str(run.start_time))


def wait_for_runs(deployment: DeploymentResponse, count: int) -> list[FlowRun]:
    processes.wait_until(
        lambda: len(runs(deployment)) >= count, f"{count} runs are finished", every=1
    )
    return runs(deployment)


# --- deployments ----------------------------------------------------------------------------------


def test_the_server_has_the_deployments_of_the_file(deployed: processes.Server) -> None:
    names = {Path(d["entrypoint"].partition(":")[0]).stem + "/" + d["name"] for d in DEPLOYED}
    assert names == {
        "segment/segment", "predict/predict", "survey/survey", "watch/watch", "maintain/maintain",
        "train/train", "segment/nightly",
    }  # fmt: skip
    for name in names:
        found = find_deployment(name)
        assert [s.active for s in found.schedules] == [False] * len(found.schedules)
        assert found.global_concurrency_limit is not None
        assert found.global_concurrency_limit.limit == 1
        # Each parameter of the deployment is a parameter of the flow.
        assert set(found.parameters) <= set(found.parameter_openapi_schema["properties"])
    plain = find_deployment("segment/segment")
    known = plain.parameter_openapi_schema["definitions"]["RunSpec"]["properties"]
    assert set(known) == set(RunSpec.model_fields)
    RunSpec(**json.loads(json.dumps(plain.parameters["spec"])))
    (every,) = find_deployment("watch/watch").schedules
    assert every.schedule.interval == timedelta(minutes=5)  # type: ignore[union-attr]
    (nightly,) = find_deployment("maintain/maintain").schedules
    assert nightly.schedule.cron == "30 4 * * *"  # type: ignore[union-attr]


def test_the_work_pools_accept_deployments_in_containers(deployed: processes.Server) -> None:
    """The server validates the job variables of a deployment with the template of its pool."""
    for name, template in read_templates().items():
        if name != "fcnpipe":
            pool = {"name": name, "type": name.partition("-")[2], "base_job_template": template}
            assert deployed.call("POST", "/work_pools/", pool)
    file = "deploy/prefect-containers.yaml"
    deployed.prefect("--no-prompt", "deploy", "--prefect-file", file, "--all")
    for name in ("docker", "kubernetes"):
        found = find_deployment(f"segment/{name}")
        assert found.work_pool_name == f"fcnpipe-{name}"
        assert found.job_variables["image"] == "fcnpipe:cpu"
        assert found.pull_steps == [{SET_FOLDER: {"directory": "/opt/fcnpipe"}}]


# --- schedules ------------------------------------------------------------------------------------


def test_a_scheduled_run_ends_in_a_store(deployed: processes.Server, tmp_path: Path) -> None:
    write_stars(tmp_path / "field.fits", side=192)
    spec = OPTIONS | {"image": [str(tmp_path / "field.fits")], "out": str(tmp_path / "field.zarr")}
    with scheduled("segment/segment", {"spec": spec}, every=86400) as deployment:
        (run,) = wait_for_runs(deployment, 1)
    assert run.state
    assert run.state.is_completed(), run.state.message
    assert run.auto_scheduled
    result, report = artifacts_of(run.id, "markdown")
    tree = xr.open_datatree(tmp_path / "field.zarr", engine="zarr")
    sources = tree["sources"].sizes["source"]
    assert sources == tree["image/0/label"].values.max() >= 7
    assert f"| sources | {sources} |" in result.data
    assert f"| sources | {sources} |" in report.data
    assert [a.key for a in artifacts_of(run.id, "image")] == ["preview", "sky"]
    assert [a.data for a in artifacts_of(run.id, "progress")] == [100.0] * 8


def test_each_incoming_file_is_processed_once(deployed: processes.Server, tmp_path: Path) -> None:
    incoming, found = tmp_path / "incoming", tmp_path / "found"
    incoming.mkdir()
    write_stars(incoming / "whole.fits", 1)
    late = write_stars(tmp_path / "late.fits", 2).read_bytes()
    (incoming / "late.fits").write_bytes(late[:9000])
    write_stars(incoming / "named.fits.part", 3)
    parameters = {
        "source": str(incoming), "folder": str(found), "look": {"settle_seconds": 1}, "options": OPTIONS,
    }  # fmt: skip
    with scheduled("watch/watch", parameters, every=6) as deployment:
        processes.wait_until(
            lambda: (found / "whole.zarr").exists(), "the complete file is processed"
        )
        assert not (found / "late.zarr").exists()
        with (incoming / "late.fits").open("ab") as file:
            for start in range(9000, len(late), 9000):
                file.write(late[start : start + 9000])
                file.flush()
                time.sleep(0.2)
        (incoming / "named.fits.part").rename(incoming / "named.fits")
        shutil.copy(incoming / "whole.fits", incoming / "copied.fits")
        whole = {path: path.stat().st_mtime_ns for path in (found / "whole.zarr").rglob("*")}
        (state,) = found.glob("watch-*.json")
        processes.wait_until(lambda: len(load_registry(state)) == 4, "all four files are known")
        processes.wait_until(
            lambda: all(known.status != "begun" for known in load_registry(state).values()),
            "all four files are done",
        )
        last = len(runs(deployment))
        wait_for_runs(deployment, last + 1)
    ended = runs(deployment)
    assert {run.state.name for run in ended if run.state} <= {"Completed", "Cancelled"}
    assert {Path(p).name: (k.status, k.out) for p, k in load_registry(state).items()} == {
        "whole.fits": ("done", "whole.zarr"),
        "late.fits": ("done", "late.zarr"),
        "named.fits": ("done", "named.zarr"),
        "copied.fits": ("copy", "whole.zarr"),
    }
    assert {known.attempts for known in load_registry(state).values()} == {0, 1}
    stores = {path.name for path in found.glob("*.zarr")}
    assert stores == {"whole.zarr", "late.zarr", "named.zarr"}
    assert whole == {path: path.stat().st_mtime_ns for path in (found / "whole.zarr").rglob("*")}
    tables = [json.loads(a.data) for run in ended for a in artifacts_of(run.id, "table")]
    rows = [(Path(row["image"]).name, row["status"]) for table in tables for row in table]
    assert ("late.fits", "incomplete") in rows
    assert rows.count(("whole.fits", "done")) == rows.count(("late.fits", "done")) == 1
    assert rows.count(("copied.fits", "copy")) == 1
