"""The interface of engines: run one task for many tile names and return small reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fcnpipe.core.records import TaskReport

Task = Callable[[str], TaskReport]
"""Function of the name of a tile or node. It never raises: ``report.error`` describes a failure."""


def do_nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class WorkerRequirements:
    """Requirements of the tasks of a run on a worker process.

    Attributes
    ----------
    environment : mapping
        Environment variables. In processes that the engine starts they are set before any import.
    prepare : callable
        Function to call once in each process, including processes that join later; picklable.
    memory_bytes : int
        Projected peak memory of a process with one thread; 0 if unknown.
    task_bytes : int
        Projected additional memory for each further thread; 0 if unknown.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], object] = do_nothing
    memory_bytes: int = 0
    task_bytes: int = 0

    def memory_for(self, threads: int) -> int:
        """Return the projected peak memory of a process with a number of threads, bytes."""
        return self.memory_bytes + (threads - 1) * self.task_bytes


class Engine(Protocol):
    """Runs the tasks of a stage, in any order.

    Notes
    -----
    Only names are sent and only reports are returned; pixels go through storage. An engine keeps a
    bounded number of tasks in flight, so that the memory of the driver does not grow with the image.
    """

    @property
    def workers(self) -> int:
        """Number of tasks that run at the same time."""
        ...

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Yield one report for each name, in the order in which the tasks finish."""
        ...

    def close(self) -> None:
        """Release all resources of the engine; may be called twice."""
        ...
