"""Records of a flow run on a Prefect server: task runs and artifacts."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun

MARKS = [
    # The start of a server takes seconds, and minutes on a busy machine.
    pytest.mark.timeout(900),
    # Prefect leaves open connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("server"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""Marks of every module with tests that need a server."""


def runs_of(state: State[Any]) -> tuple[FlowRun, list[TaskRun]]:
    """Return a flow run and its task runs in the order of their start."""
    assert state.state_details.flow_run_id
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=wanted)
        found = client.read_flow_run(state.state_details.flow_run_id)
    return found, sorted(tasks, key=lambda t: t.start_time or t.expected_start_time)


def artifacts_of(flow_run: UUID, kind: str) -> list[Artifact]:
    """Return the artifacts of a kind in the order of their creation."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    return sorted((a for a in found if a.type == kind), key=lambda a: str(a.created))
