"""The engine without any concurrency: the reference that the others must equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fcnpipe.core.records import TaskReport
from fcnpipe.engines.base import Task


class SerialEngine:
    """One task after the other in this process."""

    workers = 1

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Give one report for each name, in order."""
        return (task(name) for name in names)

    def close(self) -> None:
        """Do nothing: nothing was started."""
