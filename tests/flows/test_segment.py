"""The flows segment and predict on a real server: tasks, artifacts, failures, limits."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prefect")

import numpy as np
import psutil
from astropy.io import fits
from PIL import Image
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import Artifact

import flows  # noqa: F401  makes Prefect quiet, so it comes first
from fcnpipe.core.errors import InputError, SpecError, TilesFailed
from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline import run
from fcnpipe.pipeline.memory import FLOW_BYTES
from fcnpipe.pipeline.plan import make_plan
from fcnpipe.stores import ZarrStore, open_store
from flows import segment as flow
from flows.artifacts import RunSummary
from flows.command_line import run_as_command
from flows.predict import predict
from flows.stage_tasks import Patience
from tests.conftest import Bucket
from tests.flows.processes import Server, wait_until
from tests.flows.records import MARKS, artifacts_of, runs_of
from tests.remote.servers import KEY, SECRET, TOKEN

ROOT = Path(__file__).parents[2]
NO_PAUSE = Patience(retries=1, retry_delay_seconds=0)
STAGES = ("background", "predict", "separate", "merge", "select", "label", "measure", "publish")

pytestmark = MARKS


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    """Spec for an image of twenty stars in four tiles."""
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
    """Run the flow and return its final state."""
    state: State[Any] = flow.segment(spec, NO_PAUSE, return_state=True)
    return state


def picture_of(artifact: Artifact) -> Image.Image:
    """Return the picture of an image artifact, which is a data: URL."""
    kind, _, data = str(artifact.data).partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


# --- complete runs --------------------------------------------------------------------------------


def test_the_server_listens_on_loopback_by_default(server: Server) -> None:
    main = psutil.Process(server.process.popen.pid)
    found = [c for p in (main, *main.children(recursive=True)) for c in p.net_connections()]
    assert {c.laddr[0] for c in found if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_one_task_for_each_stage_and_a_result(spec: RunSpec) -> None:
    planned = make_plan(spec, host_bytes=FLOW_BYTES).memory_bytes / 2**20
    state = start(spec)
    found, tasks = runs_of(state)
    assert state.is_completed()
    assert found.name == "field"
    assert [t.name for t in tasks] == [*STAGES, "finish"]
    assert Path(spec.out).is_dir()
    table, report = artifacts_of(found.id, "markdown")
    assert f"| sources | {ZarrStore.open(spec.out).n_sources} |" in table.data
    assert "| failed tiles | 0 |" in table.data
    assert all(f"| {stage} |" in report.data for stage in STAGES)
    assert "| status | complete |" in report.data
    assert f"of {planned:.1f} MiB projected" in report.data
    assert [p.data for p in artifacts_of(found.id, "progress")] == [100.0] * len(STAGES)
    preview, sky = artifacts_of(found.id, "image")
    assert (preview.key, sky.key) == ("preview", "sky")
    assert picture_of(preview).size == (384, 384)
    assert picture_of(sky).mode == "RGB"
    assert "median 99.9" in str(sky.description) or "median 100" in str(sky.description)
    again = start(spec)
    assert again.is_completed()
    assert [t.name for t in runs_of(again)[1]] == []


def test_predict_in_a_bucket_stores_no_credentials(
    spec: RunSpec, bucket: Bucket, server: Server, tmp_path: Path
) -> None:
    """Credentials of the bucket are neither in the store nor in the records and the log of the server."""
    image = bucket.put("flow/field.fits", Path(spec.image[0]).read_bytes())
    place = {"out": f"{bucket.url}/flow/out.zarr", "scratch": str(tmp_path / "scratch")}
    spec = spec.model_copy(update={"image": (image,), "fwhm": 2.5, **place})
    state: State[Any] = predict(spec, NO_PAUSE, return_state=True)
    found, tasks = runs_of(state)
    assert state.is_completed()
    assert [t.name for t in tasks] == ["background", "predict", "publish", "finish"]
    outputs = [output.name for output in open_store(spec.out).layout.maps]
    assert state.result()["outputs"] == outputs
    assert [a.key for a in artifacts_of(found.id, "image")] == ["preview", "sky"]
    wrong = spec.model_copy(update={"image": (f"{image}.gone",)})
    broken: State[Any] = predict(wrong, NO_PAUSE, return_state=True)
    assert "does not exist" in str(broken.message)
    failed = runs_of(broken)[0]
    logs = {"logs": {"flow_run_id": {"any_": [str(failed.id)]}}}
    wait_until(lambda: server.call("POST", "/logs/filter", logs), "its log has arrived")
    records = [read_records(server, str(run)) for run in (found.id, failed.id)]
    assert all("field.fits" in text for text in records)
    stored = bucket.read_all("flow/")
    assert len(stored) > 50
    for secret in (KEY, SECRET, TOKEN):
        assert not [text for text in records if secret in text]
        assert not [name for name, data in stored.items() if secret.encode() in data]
        assert secret not in server.process.log.read_text()


def read_records(server: Server, run: str) -> str:
    """Return the records of a flow run: parameters, states, tasks, artifacts, logs, events."""
    only = {"flow_runs": {"id": {"any_": [run]}}}
    logs = {"logs": {"flow_run_id": {"any_": [run]}}}
    about = {"filter": {"related": {"id": [f"prefect.flow-run.{run}"]}}}
    answers = [
        server.call("GET", f"/flow_runs/{run}"),
        server.call("GET", f"/flow_run_states/?flow_run_id={run}"),
        server.call("POST", "/task_runs/filter", only),
        server.call("POST", "/artifacts/filter", only),
        server.call("POST", "/logs/filter", logs),
        server.call("POST", "/events/filter", about),
    ]
    assert None not in answers
    return json.dumps(answers)


def test_a_wrong_input_is_not_retried(spec: RunSpec) -> None:
    fits.writeto(spec.image[0], np.full((192, 192), np.nan, np.float32), overwrite=True)
    state = start(spec)
    _, tasks = runs_of(state)
    assert state.is_failed()
    assert [t.run_count for t in tasks] == [1]
    with pytest.raises(InputError):
        state.result()


# --- failures, with scripted stages ---------------------------------------------------------------


class Script:
    """Scripted stages: ``predict`` fails for one tile in the first ``failures`` calls.

    The stage returns with a failed tile if ``tolerant``, else it raises an error.
    """

    def __init__(self, tolerant: bool, failures: int) -> None:
        self.tolerant, self.failures, self.calls = tolerant, failures, 0

    @contextmanager
    def open_session(self, spec: RunSpec, command: str, host_bytes: int) -> Iterator[Any]:
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
def test_a_failed_stage_is_retried(
    script: Script, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunSummary, "read_result", lambda summary: None)
    state = start(spec)
    _, tasks = runs_of(state)
    assert state.is_completed()
    assert [(t.name, t.run_count) for t in tasks] == [("predict", 2), ("label", 1), ("finish", 1)]


@pytest.mark.parametrize("script", [(True, 9)], indirect=True)
def test_failed_tiles_fail_the_run_after_all_others_are_done(script: Script, spec: RunSpec) -> None:
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
    (failed,) = artifacts_of(found.id, "table")
    assert json.loads(failed.data) == [{"tile": "r000c001", "reason": ""}]


@pytest.mark.parametrize("script", [(True, 9)], indirect=True)
def test_failed_tiles_are_exit_code_3(
    script: Script,
    spec: RunSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["flows.segment", *spec.image, spec.out, "--retries", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit:
        run_as_command(flow.start, "flows.segment")
    assert exit.value.code == 3
    assert "r000c001" in capsys.readouterr().err


# --- concurrency limits ---------------------------------------------------------------------------


def test_a_run_holds_a_slot_of_its_limit_while_it_runs(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with get_client(sync_client=True) as client:
        wanted = GlobalConcurrencyLimitCreate(name="camera", limit=2)
        client.create_global_concurrency_limit(wanted)
        found = []

        def record_slots() -> None:
            found.append(client.read_global_concurrency_limit_by_name("camera").active_slots)

        begin = run.open_session
        monkeypatch.setattr(
            run, "open_session", lambda *a, **k: (record_slots(), begin(*a, **k))[1]
        )
        state = flow.segment(spec, Patience(limit="camera"), return_state=True)
        record_slots()
    assert state.is_completed()
    assert found == [1, 0]


def test_a_missing_limit_is_an_error(spec: RunSpec) -> None:
    state = flow.segment(spec, Patience(limit="unheard"), return_state=True)
    with pytest.raises(SpecError, match="no concurrency limit 'unheard': create it"):
        state.result()
    assert not Path(spec.out).exists()


# --- as a process ---------------------------------------------------------------------------------


def test_an_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
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
