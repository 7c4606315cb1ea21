"""Maintenance on a server: silent runs are crashed, live ones are not; files go when that is wanted."""

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


def begin(state: State[Any], of: Any = segment, tags: Iterable[str] = ()) -> UUID:
    """A run that somebody began."""
    with get_client(sync_client=True) as client:
        return client.create_flow_run(of, state=state, tags=tags).id


def state_of(run: UUID) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run).state_name)


def beat(server: processes.Server, run: UUID, when: datetime, tags: Iterable[str] = ()) -> None:
    """A heartbeat, as a live run sends it."""
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
        lambda: server.call("POST", "/events/filter", {"filter": wanted})["events"], "it beats"
    )


def test_silent_runs_are_crashed_and_live_ones_are_not(server: processes.Server) -> None:
    @flow.flow(name="somebody-elses")
    def other() -> None: ...

    silent, pending = begin(Running()), begin(Pending(), train)
    foreign, alive = begin(Running(), other), begin(Running())
    assert flow.crash_silent_runs(1800, remove=True) == []
    later = datetime.now(UTC) + timedelta(hours=1)
    beat(server, alive, later - timedelta(minutes=10))
    shown = flow.crash_silent_runs(1800, remove=False, now=later)
    assert {state_of(run) for run in (silent, alive, foreign)} == {"Running"}
    done = flow.crash_silent_runs(1800, remove=True, now=later)
    for rows, word in ((shown, "no"), (done, "yes")):
        told = {row["path"].partition("(")[2][:36]: row["done"] for row in rows}
        assert told[str(silent)] == told[str(pending)] == word
        assert not told.keys() & {str(alive), str(foreign)}
    assert state_of(silent) == state_of(pending) == "Crashed"
    assert state_of(alive) == state_of(foreign) == "Running"


def test_the_automation_crashes_what_has_fallen_silent(server: processes.Server) -> None:
    (automation,) = yaml.safe_load(AUTOMATIONS.read_text())["automations"]
    automation["trigger"]["within"] = 10  # the least that Prefect takes
    made = server.call("POST", "/automations/", automation)
    silent, foreign = begin(Running(), tags=TAGS), begin(Running())
    beat(server, silent, datetime.now(UTC), TAGS)
    beat(server, foreign, datetime.now(UTC))
    processes.wait_until(lambda: state_of(silent) == "Crashed", "the silent one is Crashed")
    server.call("DELETE", f"/automations/{made['id']}")
    assert state_of(foreign) == "Running"


@pytest.mark.parametrize("remove", [False, True])
def test_files_are_removed_only_when_that_is_wanted(tmp_path: Path, remove: bool) -> None:
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


def test_a_run_that_is_well_may_be_silent_for_minutes() -> None:
    with pytest.raises(SpecError, match="silent_seconds=60 is below 600"):
        flow.start(["x"], silent_seconds=60)
