"""The flow maintain: silent runs become Crashed, active ones do not; files are removed on request."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

pytest.importorskip("prefect")

import yaml
from prefect import State
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Pending, Running

from fcnpipe.core.errors import SpecError
from flows import maintain as flow
from flows.segment import segment
from flows.train import train
from tests.flows import processes
from tests.flows.records import MARKS, artifacts_of, runs_of

pytestmark = MARKS
AUTOMATIONS = Path(__file__).parents[2] / "deploy/automations.yaml"
TAGS = ("fcnpipe",)
HEX = "0123456789abcdef0123456789abcdef"


def create_run(state: State[Any], of: Any = segment, tags: Iterable[str] = ()) -> UUID:
    """Create a flow run in a state."""
    with get_client(sync_client=True) as client:
        return client.create_flow_run(of, state=state, tags=tags).id


def state_of(run: UUID) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run).state_name)


def send_heartbeat(
    server: processes.Server, run: UUID, when: datetime, tags: Iterable[str] = ()
) -> None:
    """Emit the heartbeat of an active flow run, and wait until the server has it."""
    about = {"prefect.resource.id": f"prefect.flow-run.{run}"}
    related = [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
        for tag in tags
    ]
    emit_event(flow.HEARTBEAT, resource=about, occurred=when, related=related)
    occurred = {"since": str(when - timedelta(hours=1)), "until": str(when + timedelta(hours=1))}
    resource = {"id": [f"prefect.flow-run.{run}"]}
    wanted = {"resource": resource, "occurred": occurred, "event": {"name": [flow.HEARTBEAT]}}
    processes.wait_until(
        lambda: server.call("POST", "/events/filter", {"filter": wanted})["events"],
        "the heartbeat is recorded",
    )


def test_silent_runs_become_crashed_and_active_ones_do_not(server: processes.Server) -> None:
    @flow.flow(name="somebody-elses")
    def other() -> None: ...

    silent, pending = create_run(Running()), create_run(Pending(), train)
    foreign, alive = create_run(Running(), other), create_run(Running())
    assert flow.crash_silent_runs(1800, remove=True) == []
    later = datetime.now(UTC) + timedelta(hours=1)
    send_heartbeat(server, alive, later - timedelta(minutes=10))
    shown = flow.crash_silent_runs(1800, remove=False, now=later)
    assert {state_of(run) for run in (silent, alive, foreign)} == {"Running"}
    done = flow.crash_silent_runs(1800, remove=True, now=later)
    for rows, word in ((shown, "no"), (done, "yes")):
        done_by_id = {row["path"].partition("(")[2][:36]: row["done"] for row in rows}
        assert done_by_id[str(silent)] == done_by_id[str(pending)] == word
        assert not done_by_id.keys() & {str(alive), str(foreign)}
    assert state_of(silent) == state_of(pending) == "Crashed"
    assert state_of(alive) == state_of(foreign) == "Running"


def test_the_automation_sets_silent_runs_to_crashed(server: processes.Server) -> None:
    (automation,) = yaml.safe_load(AUTOMATIONS.read_text())["automations"]
    automation["trigger"]["within"] = 10  # the minimum that Prefect accepts
    made = server.call("POST", "/automations/", automation)
    silent, foreign = create_run(Running(), tags=TAGS), create_run(Running())
    send_heartbeat(server, silent, datetime.now(UTC), TAGS)
    send_heartbeat(server, foreign, datetime.now(UTC))
    processes.wait_until(lambda: state_of(silent) == "Crashed", "the silent run is Crashed")
    server.call("DELETE", f"/automations/{made['id']}")
    assert state_of(foreign) == "Running"


@pytest.mark.parametrize("remove", [False, True])
def test_files_are_removed_only_on_request(tmp_path: Path, remove: bool) -> None:
    left = tmp_path / f"zarr.json.{HEX}.partial"
    left.touch()
    os.utime(left, (1, 1))
    state: State[Any] = flow.maintain([str(tmp_path)], remove=remove, return_state=True)
    assert state.is_completed()
    assert left.exists() != remove
    assert state.result() == {"found": 1, "cleared": int(remove), "silent": 0}
    (table,) = artifacts_of(runs_of(state)[0].id, "table")
    (row,) = json.loads(table.data)
    assert (row["path"], row["done"]) == (str(left), "yes" if remove else "no")
    assert ("nothing removed" in str(table.description)) != remove


def test_a_limit_of_silence_below_ten_minutes_is_refused() -> None:
    with pytest.raises(SpecError, match="silent_seconds=60 is below 600"):
        flow.start(["x"], silent_seconds=60)
