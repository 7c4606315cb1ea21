"""How far a run is, for people: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fcnpipe.core.records import TaskReport
from fcnpipe.reporting.observers import Observer, SilentObserver

LINE_EVERY_SECONDS = 30.0
"""Least time between two lines about one stage, where there is no terminal."""


@dataclass
class StageTally:
    """What is done of one stage."""

    stage: str
    tasks: int
    pixels: int
    done: int = 0
    done_pixels: int = 0
    begun: float = field(default_factory=time.monotonic)

    def add(self, report: TaskReport) -> None:
        """Count a task."""
        self.done += 1
        self.done_pixels += report.pixels

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.begun

    @property
    def left(self) -> float:
        """Seconds left if it goes on like this; infinite before the first task."""
        share = self.done_pixels / self.pixels if self.pixels else self.done / max(self.tasks, 1)
        return self.seconds * (1 - share) / share if share else float("inf")

    def rate(self, seconds: float) -> str:
        """Give the speed, empty for a stage that is not counted in pixels."""
        return (
            f"{self.done_pixels / max(seconds, 1e-9) / 1e6:.1f} Mpix/s" if self.done_pixels else ""
        )

    def summary(self, seconds: float) -> str:
        """Give one line about the stage as it ends."""
        line = f"{self.stage:<10} {self.done:>6} tasks {seconds:>8.1f} s  {self.rate(seconds)}"
        return line.rstrip()


class LineObserver:
    """One line at the end of each stage, and now and then in between.

    Parameters
    ----------
    console : rich.console.Console
        Where to write.
    every : float
        Seconds between two lines about one stage.
    """

    def __init__(self, console: Console, every: float = LINE_EVERY_SECONDS) -> None:
        self._console, self._every = console, every
        self._tally = StageTally("", 0, 0)
        self._written = 0.0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Begin to count."""
        self._tally, self._written = StageTally(stage, tasks, pixels), time.monotonic()

    def report(self, report: TaskReport) -> None:
        """Count a task; say where we are if that was not said for a while."""
        self._tally.add(report)
        if report.error:
            self._write(describe_failure(report))
        if time.monotonic() - self._written >= self._every:
            self._written = time.monotonic()
            self._write(self._middle())

    def end(self, stage: str, seconds: float) -> None:
        """Sum the stage up."""
        self._write(self._tally.summary(seconds))

    def _middle(self) -> str:
        tally = self._tally
        rate = tally.rate(tally.seconds)
        return (
            f"{tally.stage:<10} {tally.done:>6} of {tally.tasks}  {rate}  {tally.left:.0f} s left"
        )

    def _write(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarObserver:
    """A bar for the stage at work, and a line for each that is through.

    Parameters
    ----------
    bars : rich.progress.Progress
        Started; see :func:`watch`.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars, self._lines = bars, LineObserver(bars.console, every=float("inf"))
        self._bar: TaskID | None = None
        self._tally = StageTally("", 0, 0)

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Show a bar."""
        self._lines.start(stage, tasks, pixels)
        self._tally = StageTally(stage, tasks, pixels)
        self._bar = self._bars.add_task(stage, total=pixels or tasks, count=f"0/{tasks}", rate="")

    def report(self, report: TaskReport) -> None:
        """Move the bar on."""
        self._lines.report(report)
        tally = self._tally
        tally.add(report)
        if self._bar is not None:
            self._bars.update(
                self._bar,
                completed=tally.done_pixels if tally.pixels else tally.done,
                count=f"{tally.done}/{tally.tasks}",
                rate=tally.rate(tally.seconds),
            )

    def end(self, stage: str, seconds: float) -> None:
        """Put a line in the bar's place."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._lines.end(stage, seconds)


def count_steps(progress: Observer, what: str, pixels: int) -> Callable[[int, int], None]:
    """Give a function to be told the steps done and the steps in all, for work without tiles.

    Parameters
    ----------
    progress : Observer
        Shows them as the tasks of one stage.
    what : str
        Name of the stage.
    pixels : int
        Pixels of a step.
    """
    begun = False

    def report(done: int, end: int) -> None:
        nonlocal begun
        if not begun:
            progress.start(what, end - done + 1, (end - done + 1) * pixels)
            begun = True
        progress.report(TaskReport(what, f"step {done}", pixels=pixels))

    return report


def describe_failure(report: TaskReport) -> str:
    """Give one line about a task that failed.

    Examples
    --------
    >>> describe_failure(TaskReport("predict", "r000c001", error="No space left"))
    'predict r000c001 failed: No space left'
    """
    return f"{report.stage} {report.name} failed: {report.error}"


@contextmanager
def show_progress(quiet: bool, console: Console | None = None) -> Iterator[Observer]:
    """Give an observer that suits the place: nothing, a live display, or plain lines.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    console : rich.console.Console, optional
        Standard error if not given.
    """
    console = console or Console(stderr=True)
    if quiet:
        yield SilentObserver()
    elif not console.is_terminal:
        yield LineObserver(console)
    else:
        with Bars(*_columns(), console=console, transient=True) as bars:
            yield BarObserver(bars)


def _columns() -> tuple[TextColumn | BarColumn | TimeRemainingColumn, ...]:
    return (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
