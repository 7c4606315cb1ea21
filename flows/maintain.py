"""Removal of leftovers of killed runs, as a Prefect flow for a schedule.

::

    files   abandoned unfinished stores, temporary files of writers and locks, finished results
            that only lack their final name
    runs    flow runs that are Running or Pending on the server without any activity: set to Crashed

Without ``remove`` a run only lists what it would do. Files of running runs, files younger than a minimum
age and files of other programs are never touched.

Run the flow from the command line, with or without a Prefect server::

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
from flows.artifacts import MAX_ROWS
from flows.command_line import run_as_command
from flows.temporary_server import temporary_server

FLOW_NAMES = ("segment", "predict", "survey", "watch", "train", "maintain")
"""Flows whose runs are checked."""
HEARTBEAT = "prefect.flow-run.heartbeat"
MIN_SILENT_SECONDS = 600.0
"""Minimum of ``silent_seconds``: a healthy run is silent for up to 180 s, the interval of heartbeats."""
SECONDS_PER_DAY = 86400.0


@flow(name="maintain", retries=0, persist_result=False)
def maintain(
    folders: list[str],
    older_than_days: Annotated[float, Field(ge=0)] = 7.0,
    remove: bool = False,
    silent_seconds: Annotated[float, Field(ge=MIN_SILENT_SECONDS)] = 1800.0,
) -> dict[str, int]:
    """Remove leftovers of killed runs, and set dead flow runs to Crashed.

    Parameters
    ----------
    folders : list of str
        Folders with stores; subfolders are searched too.
    older_than_days : float
        Minimum age in days; files that have changed since are kept.
    remove : bool
        Whether to remove leftovers and to set dead runs to Crashed; otherwise they are only listed.
    silent_seconds : float
        Time in seconds without activity after which a flow run counts as dead.

    Returns
    -------
    dict
        Number of files and folders that were ``found`` and ``cleared``, and of ``silent`` runs.

    Raises
    ------
    InputError
        If a folder does not exist.
    """
    rows = [
        _clean_up(leftover, remove)
        for folder in folders
        for leftover in cleanup.find_leftovers(folder, older_than_days * SECONDS_PER_DAY)
    ]
    silent = crash_silent_runs(silent_seconds, remove)
    mode = "removed" if remove else "nothing removed, run with remove=true to remove them"
    create_table_artifact(
        [*silent, *rows][:MAX_ROWS],
        key="maintenance",
        description=f"{len(rows)} leftovers, {len(silent)} silent runs: {mode}",
    )
    cleared = sum(row["done"] == "yes" for row in rows)
    return {"found": len(rows), "cleared": cleared, "silent": len(silent)}


def _clean_up(leftover: cleanup.Leftover, remove: bool) -> dict[str, Any]:
    """Remove a leftover if ``remove`` is set; return its row."""
    row = asdict(leftover) | {"age_seconds": round(leftover.age_seconds), "done": "no"}
    if not remove or leftover.action == "keep":
        return row
    try:
        cleanup.clean_up(leftover)
    except OSError as error:  # one leftover that cannot be removed must not stop the others
        return row | {"reason": str(error).splitlines()[0]}
    get_run_logger().info(f"{leftover.path}: {leftover.action}")
    return row | {"done": "yes"}


def crash_silent_runs(
    silent_seconds: float, remove: bool, now: datetime | None = None
) -> list[dict[str, Any]]:
    """Set flow runs without activity to Crashed, or only list them without ``remove``."""
    now, rows = now or datetime.now(UTC), []
    with get_client(sync_client=True) as client:
        for found in _list_open_runs(client):
            latest = _find_last_activity(client, found, now)
            silent = (now - latest).total_seconds()
            if silent < silent_seconds:
                continue
            if remove:
                message = f"no activity since {latest:%Y-%m-%d %H:%M:%S} UTC"
                client.set_flow_run_state(found.id, Crashed(message=message))
            rows.append(_describe_run(found, silent, remove))
    return rows


def _list_open_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Return the runs of these flows that the server regards as alive, without the current run."""
    kinds = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    own = flow_run.get_id()
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOW_NAMES))),
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


def _find_last_activity(client: SyncPrefectClient, found: FlowRun, now: datetime) -> datetime:
    """Return the time of the last state of a run or of its tasks, or of its last heartbeat."""
    times = [found.state.timestamp] if found.state else [found.created or now]
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[found.id]))
    tasks = client.read_task_runs(flow_run_filter=wanted, limit=200)
    times += [task.state.timestamp for task in tasks if task.state]
    beats = client.read_events(
        EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{found.id}"]),
            occurred=EventOccurredFilter(since=now - timedelta(days=1), until=now),
        ),
        limit=1,
    )
    return max([*times, *(event.occurred for event in beats.events)])


def _describe_run(found: FlowRun, silent: float, crashed: bool) -> dict[str, Any]:
    return {
        "kind": "run",
        "path": f"{found.name} ({found.id})",
        "age_seconds": round(silent),
        "size_bytes": 0,
        "action": "crash",
        "reason": f"{found.state_name} and silent",
        "done": "yes" if crashed else "no",
    }


# --- command line ---------------------------------------------------------------------------------


def start(
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Folders with stores.")],
    older_than_days: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Minimum age of a leftover.")
    ] = 7.0,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            metavar="",
            help="Remove leftovers and set dead runs to Crashed; otherwise only list them.",
        ),
    ] = False,
    silent_seconds: Annotated[
        float,
        typer.Option(
            metavar="s", help="Time without activity after which a flow run counts as dead."
        ),
    ] = 1800.0,
) -> None:
    """Remove leftovers of killed runs, and set dead flow runs to Crashed."""
    if silent_seconds < MIN_SILENT_SECONDS:
        raise SpecError(
            f"silent_seconds={silent_seconds:g} is below {MIN_SILENT_SECONDS:g}: use a longer time, because "
            "a healthy run may be silent for minutes"
        )
    with temporary_server():
        counts = maintain(folders, older_than_days, remove, silent_seconds)
    typer.echo(", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    run_as_command(start, "flows.maintain", "found survey --older-than-days 7 --remove")
