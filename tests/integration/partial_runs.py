"""Runs that stop after a given task, as if the process had ended then."""

from collections.abc import Iterable, Iterator

from fcnpipe.pipeline import tasks
from fcnpipe.pipeline.session import Session
from fcnpipe.pipeline.workflow import ONCE, Stage


def list_calls(stages: Iterable[Stage]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each task with its names; tasks that may run concurrently are yielded one after the other."""
    for stage in stages:
        for step in stage.steps:
            if step.companion:
                yield step.companion, ONCE
            yield step.task, step.names


def perform_until(session: Session | None, last: str) -> None:
    """Run the tasks of a session one after the other, up to and including ``last``."""
    assert session is not None
    for task, names in list_calls(session.stages):
        for name in names:
            assert not tasks.perform(session.job, task, name).error
        if task == last:
            break
