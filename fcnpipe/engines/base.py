"""What every engine does: call one task for many names and hand the small reports back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fcnpipe.core.records import TaskReport

Task = Callable[[str], TaskReport]
"""Takes the name of a tile or node. Never raises: a failure comes back in ``report.error``."""


def do_nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class WorkerRequirements:
    """What a process needs before it can do tasks.

    Attributes
    ----------
    environment : mapping
        Variables, set before anything is imported where the process is ours to start.
    prepare : callable
        Is called once in each process, whenever it comes; picklable.
    memory_bytes, task_bytes : int
        What a process of one thread takes at most, and what each thread more; 0 if unknown.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], object] = do_nothing
    memory_bytes: int = 0
    task_bytes: int = 0

    def memory_for(self, threads: int) -> int:
        """Give what a process of so many threads takes at most."""
        return self.memory_bytes + (threads - 1) * self.task_bytes


class Engine(Protocol):
    """Runs a stage's tasks, in any order, somewhere.

    Notes
    -----
    Only names go out and only reports come back; pixels go through storage. An engine keeps a
    bounded number of tasks in flight, so that the driver's memory does not grow with the image.
    """

    @property
    def workers(self) -> int:
        """Tasks that run at the same time."""
        ...

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Give one report for each name, in the order in which they finish."""
        ...

    def close(self) -> None:
        """Free whatever the engine has started; safe to call twice."""
        ...
