"""The Prefect flow against a real server: what it runs, what it records, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

pytest.importorskip("prefect")

import numpy as np
from astropy.io import fits
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.testing.utilities import prefect_test_harness

import flows  # noqa: F401  makes Prefect quiet, so it comes first
from fcnpipe import run
from fcnpipe.errors import InputError, TilesFailed
from fcnpipe.records import TaskReport
from fcnpipe.spec import RunSpec
from fcnpipe.stores import ZarrStore
from flows import segment as flow

ROOT = Path(__file__).parents[2]
HASTY = flow.Patience(retries=1, retry_delay_seconds=0)
STAGES = ("background", "predict", "separate", "merge", "select", "label", "measure", "publish")

pytestmark = [
    # A server takes seconds to start, and minutes on a machine that is busy otherwise.
    pytest.mark.timeout(900),
    # Connections that the server of the test leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="session", autouse=True)
def _server() -> Iterator[None]:
    """One server for all of it: starting one takes longer than any test."""
    with prefect_test_harness(server_startup_timeout=600):
        yield


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    """A sky with twenty stars in four tiles."""
    rng = np.random.default_rng(5)
    y, x = np.indices((192, 192))
    sky = rng.normal(100, 2, (192, 192))
    for cy, cx in rng.uniform(10, 182, (20, 2)):
        sky += 150 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    fits.writeto(tmp_path / "field.fits", sky.astype(np.float32))
    return RunSpec(
        image=(str(tmp_path / "field.fits"),),
        out=str(tmp_path / "field.zarr"),
        model="none",
        window=128,
        tile=128,
        engine="serial",
        quiet=True,
    )


def start(spec: RunSpec) -> State[Any]:
    """Run the flow and give its final state, whatever it is."""
    state: State[Any] = flow.segment(spec, HASTY, return_state=True)
    return state


def runs_of(state: State[Any]) -> tuple[FlowRun, list[TaskRun]]:
    """Give what the server recorded, tasks in order."""
    assert state.state_details.flow_run_id
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=wanted)
        found = client.read_flow_run(state.state_details.flow_run_id)
    return found, sorted(tasks, key=lambda t: t.start_time or t.expected_start_time)


def artifacts_of(flow_run: UUID, kind: str) -> list[Artifact]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return [a for a in found if a.flow_run_id == flow_run and a.type == kind]


# --- the pipeline itself --------------------------------------------------------------------------


def test_one_task_for_each_stage_and_a_result(spec: RunSpec) -> None:
    state = start(spec)
    found, tasks = runs_of(state)
    assert state.is_completed()
    assert found.name == "field"
    assert [t.name for t in tasks] == [*STAGES, "finish"]
    assert Path(spec.out).is_dir()
    (table,) = artifacts_of(found.id, "markdown")
    assert f"| sources | {ZarrStore.open(spec.out).n_sources} |" in table.data
    assert "| failed tiles | 0 |" in table.data
    assert [p.data for p in artifacts_of(found.id, "progress")] == [100.0] * len(STAGES)
    again = start(spec)
    assert again.is_completed()
    assert [t.name for t in runs_of(again)[1]] == []


def test_what_is_wrong_is_not_tried_again(spec: RunSpec) -> None:
    fits.writeto(spec.image[0], np.full((192, 192), np.nan, np.float32), overwrite=True)
    state = start(spec)
    _, tasks = runs_of(state)
    assert state.is_failed()
    assert [t.run_count for t in tasks] == [1]
    with pytest.raises(InputError):
        state.result()


# --- failures, with stages that do as they are told -----------------------------------------------


class Script:
    """Stages that fail for the tiles, and as often, as a test says."""

    def __init__(self, tolerant: bool, failures: int) -> None:
        self.tolerant, self.failures, self.calls = tolerant, failures, 0

    @contextmanager
    def open_session(self, spec: RunSpec) -> Iterator[Any]:
        plan = SimpleNamespace(tiles=("r000c000", "r000c001"))
        yield SimpleNamespace(
            job=SimpleNamespace(plan=plan),
            stages=(run.Stage("predict", ()), run.Stage("label", ())),
        )

    def run_stage(self, session: Any, stage: run.Stage, observer: run.Observer) -> None:
        observer.start(stage.name, 2, 200)
        self.calls += stage.name == "predict"
        broken = stage.name == "predict" and self.calls <= self.failures
        observer.report(TaskReport(stage.name, "r000c000", pixels=100))
        observer.report(TaskReport(stage.name, "r000c001", pixels=100, error="rotten" * broken))
        if broken and not self.tolerant:
            raise TilesFailed(["r000c001 (predict: rotten)"])
        observer.end(stage.name, 0.1)

    def finish(self, session: Any) -> None:
        if self.calls <= self.failures:
            raise TilesFailed(["r000c001"])


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script(*request.param)
    for name in ("open_session", "run_stage", "finish"):
        monkeypatch.setattr(run, name, getattr(made, name))
    return made


@pytest.mark.parametrize("script", [(True, 1), (False, 1)], indirect=True, ids=["kept", "raised"])
def test_a_stage_is_tried_again(
    script: Script, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow.Account, "finish", lambda account: None)
    state = start(spec)
    _, tasks = runs_of(state)
    assert state.is_completed()
    assert [(t.name, t.run_count) for t in tasks] == [("predict", 2), ("label", 1), ("finish", 1)]


@pytest.mark.parametrize("script", [(True, 9)], indirect=True)
def test_failed_tiles_fail_the_run_after_the_rest_has_landed(script: Script, spec: RunSpec) -> None:
    state = start(spec)
    found, tasks = runs_of(state)
    assert state.is_failed()
    assert "r000c001" in (found.state.message or "" if found.state else "")
    assert [t.name for t in tasks][:2] == ["predict", "label"]
    assert tasks[1].state
    assert tasks[1].state.is_completed()
    (table,) = artifacts_of(found.id, "markdown")
    assert "| failed tiles | 1 |" in table.data
    assert "- r000c001" in table.data


@pytest.mark.parametrize("script", [(True, 9)], indirect=True)
def test_failed_tiles_are_exit_code_3(
    script: Script,
    spec: RunSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["flows.segment", *spec.image, spec.out, "--retries", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as leave:
        flow.main()
    assert leave.value.code == 3
    assert "r000c001" in capsys.readouterr().err


# --- as processes ---------------------------------------------------------------------------------


def prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    from prefect.settings import PREFECT_API_URL

    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_deployments_can_be_deployed() -> None:
    made = prefect("work-pool", "create", "--type", "process", "fcnpipe")
    assert made.returncode == 0, made.stdout + made.stderr
    done = prefect("--no-prompt", "deploy", "--prefect-file", "deploy/prefect.yaml", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("segment/nightly")
        plain = client.read_deployment_by_name("segment/segment")
    assert [schedule.active for schedule in nightly.schedules] == [False]
    assert plain.schedules == []
    assert set(plain.parameter_openapi_schema["properties"]) == {"spec", "patience"}
    known = plain.parameter_openapi_schema["definitions"]["RunSpec"]["properties"]
    assert set(known) == set(RunSpec.model_fields)
    for deployment in (nightly, plain):
        RunSpec(**json.loads(json.dumps(deployment.parameters["spec"])))


def test_the_flow_says_what_is_wrong_in_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "flows.segment",
            "absent.fits",
            str(tmp_path / "o.zarr"),
            "--window",
            "1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2
    assert "window=1" in done.stderr
    assert done.stderr.count("\n") == 1
