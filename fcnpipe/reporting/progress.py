"""Progress display of a run: bars on a terminal, plain lines elsewhere."""

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
"""Minimum time between two lines about one stage, s, without a terminal."""


@dataclass
class StageTally:
    """Counts of the tasks and pixels of one stage that are done."""

    stage: str
    tasks: int
    pixels: int
    done: int = 0
    done_pixels: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, report: TaskReport) -> None:
        """Add the report of a task."""
        self.done += 1
        self.done_pixels += report.pixels

    @property
    def seconds(self) -> float:
        """Time since the start of the stage, s."""
        return time.monotonic() - self.start

    @property
    def seconds_left(self) -> float:
        """Estimated remaining time at the current speed, s; infinite before the first task is done."""
        share = self.done_pixels / self.pixels if self.pixels else self.done / max(self.tasks, 1)
        return self.seconds * (1 - share) / share if share else float("inf")

    def rate(self, seconds: float) -> str:
        """Return the speed in Mpix/s as text; empty for a stage whose tasks have no pixels."""
        return (
            f"{self.done_pixels / max(seconds, 1e-9) / 1e6:.1f} Mpix/s" if self.done_pixels else ""
        )

    def summary(self, seconds: float) -> str:
        """Return one line that summarizes the stage."""
        line = f"{self.stage:<10} {self.done:>6} tasks {seconds:>8.1f} s  {self.rate(seconds)}"
        return line.rstrip()


class LineObserver:
    """Observer that prints one line at the end of each stage, and lines at intervals during it.

    Parameters
    ----------
    console : rich.console.Console
        Console to print on.
    every : float
        Minimum time between two lines about one stage, s.
    """

    def __init__(self, console: Console, every: float = LINE_EVERY_SECONDS) -> None:
        self._console, self._every = console, every
        self._tally = StageTally("", 0, 0)
        self._written = 0.0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Start the counts of a stage."""
        self._tally, self._written = StageTally(stage, tasks, pixels), time.monotonic()

    def report(self, report: TaskReport) -> None:
        """Count a task; print a line if it failed, and one about the stage at intervals."""
        self._tally.add(report)
        if report.error:
            self._write(describe_failure(report))
        if time.monotonic() - self._written >= self._every:
            self._written = time.monotonic()
            self._write(self._progress_line())

    def end(self, stage: str, seconds: float) -> None:
        """Print the summary of the stage."""
        self._write(self._tally.summary(seconds))

    def _progress_line(self) -> str:
        tally = self._tally
        rate = tally.rate(tally.seconds)
        return f"{tally.stage:<10} {tally.done:>6} of {tally.tasks}  {rate}  {tally.seconds_left:.0f} s left"

    def _write(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarObserver:
    """Observer that shows a bar for the running stage, and a line for each finished one.

    Parameters
    ----------
    bars : rich.progress.Progress
        Started display; see :func:`show_progress`.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars, self._lines = bars, LineObserver(bars.console, every=float("inf"))
        self._bar: TaskID | None = None
        self._tally = StageTally("", 0, 0)

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Show the bar of a stage."""
        self._lines.start(stage, tasks, pixels)
        self._tally = StageTally(stage, tasks, pixels)
        self._bar = self._bars.add_task(stage, total=pixels or tasks, count=f"0/{tasks}", rate="")

    def report(self, report: TaskReport) -> None:
        """Advance the bar."""
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
        """Replace the bar by the summary of the stage."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._lines.end(stage, seconds)


def count_steps(observer: Observer, stage: str, pixels: int) -> Callable[[int, int], None]:
    """Return a callback that reports the steps of work without tiles to an observer.

    Its arguments are the number of the step and the total number of steps.

    Parameters
    ----------
    observer : Observer
        Receives the steps as the tasks of one stage.
    stage : str
        Name of the stage.
    pixels : int
        Number of pixels of a step.
    """
    started = False

    def report(done: int, end: int) -> None:
        nonlocal started
        if not started:
            observer.start(stage, end - done + 1, (end - done + 1) * pixels)
            started = True
        observer.report(TaskReport(stage, f"step {done}", pixels=pixels))

    return report


def describe_failure(report: TaskReport) -> str:
    """Return one line about a failed task.

    Examples
    --------
    >>> describe_failure(TaskReport("predict", "r000c001", error="No space left"))
    'predict r000c001 failed: No space left'
    """
    return f"{report.stage} {report.name} failed: {report.error}"


@contextmanager
def show_progress(quiet: bool, console: Console | None = None) -> Iterator[Observer]:
    """Yield an observer that shows bars on a terminal, else lines, or nothing.

    Parameters
    ----------
    quiet : bool
        Whether to show nothing.
    console : rich.console.Console, optional
        Console to print on. The default is standard error.
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
