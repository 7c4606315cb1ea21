"""Observers of a run: the interface that progress bars, reports and Prefect artifacts implement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fcnpipe.core.records import TaskReport


class Observer(Protocol):
    """Receives the progress of a run."""

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Receive the start of a stage, with the number of its tasks and of the pixels of their cores."""
        ...

    def report(self, report: TaskReport) -> None:
        """Receive the report of a finished task."""
        ...

    def end(self, stage: str, seconds: float) -> None:
        """Receive the end of a stage, with its wall time."""
        ...


class SilentObserver:
    """An observer that ignores everything."""

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Ignore the start of a stage."""

    def report(self, report: TaskReport) -> None:
        """Ignore the report of a task."""

    def end(self, stage: str, seconds: float) -> None:
        """Ignore the end of a stage."""


@dataclass(frozen=True)
class ObserverGroup:
    """Several observers as one; each call is passed on to all of them, in order."""

    observers: tuple[Observer, ...]

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Pass on the start of a stage."""
        for observer in self.observers:
            observer.start(stage, tasks, pixels)

    def report(self, report: TaskReport) -> None:
        """Pass on the report of a task."""
        for observer in self.observers:
            observer.report(report)

    def end(self, stage: str, seconds: float) -> None:
        """Pass on the end of a stage."""
        for observer in self.observers:
            observer.end(stage, seconds)
