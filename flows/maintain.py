"""What killed runs have left behind, as a Prefect flow to be scheduled.

::

    files   stores that nobody works on any more, what a writer or a lock left, results that
            only want their name
    runs    of these flows, Running or Pending on the server and silent: Crashed

Nothing is removed unless ``remove`` is set: a run without it shows what it would do. What a live run
holds is never touched, nor what is younger than an age, nor what is no work of ours.

By hand, with or without a server::

    python -m flows.maintain FOLDER... --older-than-days 7 --remove
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventResourceFilter,
)
from prefect.runtime import flow_run
from prefect.states import Crashed
from pydantic import Field

from fcnpipe.core.errors import SpecError
from fcnpipe.survey import cleanup
from flows.artifacts import ROWS_SHOWN
from flows.command_line import run_by_hand
from flows.temporary_server import temporary_server

NAMES = ("segment", "predict", "survey", "watch", "train", "maintain")
"""Flows whose runs are looked after."""
HEARTBEAT = "prefect.flow-run.heartbeat"
LEAST_SILENCE_SECONDS = 600.0
"""A run that is well may say nothing for three minutes, Prefect's interval between heartbeats."""
SECONDS_A_DAY = 86400.0


@flow(name="maintain", retries=0, persist_result=False)
def maintain(
    folders: list[str],
    older_than_days: Annotated[float, Field(ge=0)] = 7.0,
    remove: bool = False,
    silent_seconds: Annotated[float, Field(ge=LEAST_SILENCE_SECONDS)] = 1800.0,
) -> dict[str, int]:
    """Remove what killed runs have left, and call those Crashed that are Running in name only.

    Parameters
    ----------
    folders : list of str
        Where stores lie; folders in them are looked into too.
    older_than_days : float
        What has changed since is left alone.
    remove : bool
        Whether to do it; else it is only shown.
    silent_seconds : float
        A run that gave no sign for so long is dead.

    Returns
    -------
    dict
        How many files and folders were ``found`` and ``cleared``, and how many runs were ``silent``.

    Raises
    ------
    InputError
        If a folder is not there.
    """
    rows = [
        _treat(leftover, remove)
        for folder in folders
        for leftover in cleanup.find_leftovers(folder, older_than_days * SECONDS_A_DAY)
    ]
    silent = crash_silent_runs(silent_seconds, remove)
    done = "done" if remove else "nothing removed, this is what would be done"
    create_table_artifact(
        [*silent, *rows][:ROWS_SHOWN],
        key="maintenance",
        description=f"{len(rows)} leftovers, {len(silent)} silent runs: {done}",
    )
    cleared = sum(row["done"] == "yes" for row in rows)
    return {"found": len(rows), "cleared": cleared, "silent": len(silent)}


def _treat(leftover: cleanup.Leftover, remove: bool) -> dict[str, Any]:
    """Clear a leftover, if that is wanted; give its row."""
    row = asdict(leftover) | {"age_seconds": round(leftover.age_seconds), "done": "no"}
    if not remove or leftover.action == "keep":
        return row
    try:
        cleanup.clean_up(leftover)
    except OSError as error:  # one that cannot be removed never stops the rest
        return row | {"reason": str(error).splitlines()[0]}
    get_run_logger().info(f"{leftover.path}: {leftover.action}")
    return row | {"done": "yes"}


def crash_silent_runs(
    silent_seconds: float, remove: bool, now: datetime | None = None
) -> list[dict[str, Any]]:
    """Set runs to Crashed that gave no sign for so long; only name them without ``remove``."""
    now, rows = now or datetime.now(UTC), []
    with get_client(sync_client=True) as client:
        for found in _list_open_runs(client):
            sign = _last_sign(client, found, now)
            silent = (now - sign).total_seconds()
            if silent < silent_seconds:
                continue
            if remove:
                message = f"no sign of life since {sign:%Y-%m-%d %H:%M:%S} UTC"
                client.set_flow_run_state(found.id, Crashed(message=message))
            rows.append(_describe(found, silent, remove))
    return rows


def _list_open_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Give the runs of our flows that the server takes for alive, without this one."""
    kinds = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    own = flow_run.get_id()
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(NAMES))),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=kinds)),
                id=FlowRunFilterId(not_any_=[UUID(own)]) if own else None,
            ),
            limit=200,
            offset=len(found),
        )
        found += page
        if len(page) < 200:
            return found


def _last_sign(client: SyncPrefectClient, found: FlowRun, now: datetime) -> datetime:
    """Give when a run was last heard of: its state, those of its tasks, or a heartbeat."""
    signs = [found.state.timestamp] if found.state else [found.created or now]
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[found.id]))
    tasks = client.read_task_runs(flow_run_filter=wanted, limit=200)
    signs += [task.state.timestamp for task in tasks if task.state]
    beats = client.read_events(
        EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{found.id}"]),
            occurred=EventOccurredFilter(since=now - timedelta(days=1), until=now),
        ),
        limit=1,
    )
    return max([*signs, *(event.occurred for event in beats.events)])


def _describe(found: FlowRun, silent: float, crashed: bool) -> dict[str, Any]:
    return {
        "kind": "run",
        "path": f"{found.name} ({found.id})",
        "age_seconds": round(silent),
        "size_bytes": 0,
        "action": "crash",
        "reason": f"{found.state_name} and silent",
        "done": "yes" if crashed else "no",
    }


# --- by hand --------------------------------------------------------------------------------------


def start(
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Where stores lie.")],
    older_than_days: Annotated[float, typer.Option(min=0, help="Younger ones are left.")] = 7.0,
    remove: Annotated[bool, typer.Option("--remove", help="Do it; else show it only.")] = False,
    silent_seconds: Annotated[
        float, typer.Option(help="Without a sign for so long: dead.")
    ] = 1800.0,
) -> None:
    """Run the flow once."""
    if silent_seconds < LEAST_SILENCE_SECONDS:
        raise SpecError(
            f"silent_seconds={silent_seconds:g} is below {LEAST_SILENCE_SECONDS:g}: a run that is "
            "well may be silent for minutes"
        )
    with temporary_server():
        counts = maintain(folders, older_than_days, remove, silent_seconds)
    typer.echo(", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    run_by_hand(start, "flows.maintain")
