"""Progress display: plain lines, bars on a terminal, and silence."""

from __future__ import annotations

import io
import re

from rich.console import Console

from fcnpipe.core.records import TaskReport
from fcnpipe.reporting.observers import Observer, SilentObserver
from fcnpipe.reporting.progress import BarObserver, LineObserver, StageTally, show_progress


def play(observer: Observer) -> None:
    """Send the events of two stages, with a failed tile, to an observer."""
    observer.start("predict", 2, 2_000_000)
    observer.report(TaskReport("predict", "r000c000", pixels=1_000_000))
    observer.report(TaskReport("predict", "r000c001", pixels=1_000_000, error="no space left"))
    observer.end("predict", 4.0)
    observer.start("select", 1, 0)
    observer.report(TaskReport("select", "all"))
    observer.end("select", 0.1)


def make_console(**options: bool) -> Console:
    return Console(file=io.StringIO(), width=100, **options)  # type: ignore[arg-type]


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_lines_summarize_stages_and_name_failed_tiles() -> None:
    console = make_console()
    play(LineObserver(console))
    lines = text(console).splitlines()
    assert lines[0] == "predict r000c001 failed: no space left"
    assert re.fullmatch(r"predict +2 tasks +4\.0 s +0\.5 Mpix/s", lines[1])
    assert re.fullmatch(r"select +1 tasks +0\.1 s", lines[2])


def test_lines_during_a_stage_have_the_speed_and_the_time_left() -> None:
    console = make_console()
    play(LineObserver(console, every=0))
    assert re.search(r"predict +1 of 2 +[\d.]+ Mpix/s +\d+ s left", text(console))


def test_a_terminal_has_a_bar() -> None:
    console = make_console(force_terminal=True)
    with show_progress(quiet=False, console=console) as observer:
        assert isinstance(observer, BarObserver)
        play(observer)
    assert "predict" in text(console)
    assert "Mpix/s" in text(console)


def test_without_a_terminal_there_are_lines_and_quiet_prints_nothing() -> None:
    console = make_console()
    with show_progress(quiet=False, console=console) as observer:
        assert isinstance(observer, LineObserver)
    with show_progress(quiet=True, console=console) as observer:
        assert isinstance(observer, SilentObserver)
        play(observer)
    assert text(console) == ""


def test_the_time_left_is_estimated_from_pixels() -> None:
    tally = StageTally("predict", tasks=4, pixels=100)
    assert tally.seconds_left == float("inf")
    tally.add(TaskReport("predict", "r000c000", pixels=75))
    assert tally.seconds_left < tally.seconds
