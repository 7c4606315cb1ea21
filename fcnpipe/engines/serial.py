"""The serial engine: one task at a time in this process; other engines must return equal results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fcnpipe.core.records import TaskReport
from fcnpipe.engines.base import Task


class SerialEngine:
    """Engine that runs one task after the other in this process."""

    workers = 1

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Yield one report for each name, in order."""
        return (task(name) for name in names)

    def close(self) -> None:
        """Do nothing, as the engine has no resources."""
