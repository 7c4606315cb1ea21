"""How far a run is: plain lines, a terminal, and nothing at all."""

from __future__ import annotations

import io
import re

from rich.console import Console

from fcnpipe.core.records import TaskReport
from fcnpipe.reporting.observers import Observer, SilentObserver
from fcnpipe.reporting.progress import BarObserver, LineObserver, StageTally, show_progress


def play(progress: Observer) -> None:
    progress.start("predict", 2, 2_000_000)
    progress.report(TaskReport("predict", "r000c000", pixels=1_000_000))
    progress.report(TaskReport("predict", "r000c001", pixels=1_000_000, error="no space left"))
    progress.end("predict", 4.0)
    progress.start("select", 1, 0)
    progress.report(TaskReport("select", "all"))
    progress.end("select", 0.1)


def console(**options: bool) -> Console:
    return Console(file=io.StringIO(), width=100, **options)  # type: ignore[arg-type]


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_lines_sum_a_stage_up_and_name_what_failed() -> None:
    place = console()
    play(LineObserver(place))
    lines = text(place).splitlines()
    assert lines[0] == "predict r000c001 failed: no space left"
    assert re.fullmatch(r"predict +2 tasks +4\.0 s +0\.5 Mpix/s", lines[1])
    assert re.fullmatch(r"select +1 tasks +0\.1 s", lines[2])


def test_lines_in_between_have_a_rate_and_the_time_left() -> None:
    place = console()
    play(LineObserver(place, every=0))
    assert re.search(r"predict +1 of 2 +[\d.]+ Mpix/s +\d+ s left", text(place))


def test_a_terminal_has_a_bar() -> None:
    place = console(force_terminal=True)
    with show_progress(quiet=False, console=place) as progress:
        assert isinstance(progress, BarObserver)
        play(progress)
    assert "predict" in text(place)
    assert "Mpix/s" in text(place)


def test_elsewhere_there_are_lines_and_quiet_is_quiet() -> None:
    place = console()
    with show_progress(quiet=False, console=place) as progress:
        assert isinstance(progress, LineObserver)
    with show_progress(quiet=True, console=place) as progress:
        assert isinstance(progress, SilentObserver)
        play(progress)
    assert text(place) == ""


def test_time_left_is_counted_in_pixels() -> None:
    tally = StageTally("predict", tasks=4, pixels=100)
    assert tally.left == float("inf")
    tally.add(TaskReport("predict", "r000c000", pixels=75))
    assert tally.left < tally.seconds
