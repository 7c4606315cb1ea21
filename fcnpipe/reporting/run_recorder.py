"""Takes down what happens in a run, in the journal and in the account beside the store."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcnpipe.core.errors import first_line
from fcnpipe.core.records import TaskReport
from fcnpipe.core.resource_usage import measure_usage, peak_memory_bytes
from fcnpipe.reporting import report_rendering
from fcnpipe.reporting.event_log import EventLog, utc_timestamp
from fcnpipe.reporting.run_report import RunReport, SlowTile, StageSums
from fcnpipe.stores import ZarrStore
from fcnpipe.stores.atomic_writes import atomic_write
from fcnpipe.stores.hierarchy import SCRATCH
from fcnpipe.stores.paths import final_path, report_path

SAVE_EVERY_SECONDS = 5.0
"""Least time between two savings of the account: what a SIGKILL can make it forget."""
ALL = "all"
"""Name of a task that is not done by tile."""


class RunRecorder:
    """An observer that takes down what it is told; that it cannot, it says once and lets the run go on.

    Parameters
    ----------
    account : Report
        Of the run so far.
    store : ZarrStore
        OUT.zarr.partial.
    journal : Journal
        Is given a line for each event.
    """

    def __init__(self, run_report: RunReport, store: ZarrStore, event_log: EventLog) -> None:
        self.run_report, self._event_log = run_report, event_log
        self._scratch = store.path / SCRATCH
        self._out = final_path(store.path)
        self._stage: StageSums | None = None
        self._told = False
        self._seen = self._saved = time.monotonic()
        measure_usage()  # what was read before, for the digests, belongs to no stage

    def begin(self, resumed: bool) -> None:
        """Take down that a session begins."""
        self.run_report.resumed |= resumed
        self._event_log.run_key = self.run_report.run_key
        what = "taken up" if resumed else "begun"
        told = self.run_report.model_dump(
            include={"command", "image", "out", "engine", "tiles", "projected_bytes"}
        )
        self._event_log.write("run started", message=f"{what}: {self._out}", **told)

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Take down that a stage begins."""
        self._let_time_pass()
        self._stage = self.run_report.stage(stage)
        self._event_log.write("stage started", stage=stage, tasks=tasks, pixels=pixels)

    def report(self, report: TaskReport) -> None:
        """Count a task."""
        assert self._stage is not None
        again = self._stage.add(report)
        self.run_report.note_peak(report.worker, report.peak_bytes)
        if report.pixels and not report.error:
            slow = SlowTile(
                tile=report.name,
                stage=self._stage.name,
                seconds=report.seconds,
                worker=report.worker,
            )
            self.run_report.note_tile(slow)
        self._write_task(report, again)
        if time.monotonic() - self._saved >= SAVE_EVERY_SECONDS:
            self._save_checkpoint()

    def end(self, stage: str, seconds: float) -> None:
        """Take down that a stage has ended."""
        assert self._stage is not None
        self._let_time_pass()
        sums, self._stage = self._stage, None
        told = sums.model_dump(exclude={"name", "failed", "seconds"})
        message = f"{sums.failures} failed" if sums.failures else ""
        self._event_log.write(
            "stage finished", stage=stage, seconds=sums.seconds, message=message, **told
        )
        self._save_checkpoint()
        self._write_report()

    def complete(self, store: ZarrStore) -> None:
        """Take down that the run is done, and its store has its name."""
        self.run_report.status = "complete"
        self.run_report.sources = store.n_sources if store.has_sources else None

    def close(self, status: str, message: str) -> None:
        """Take down how the session ends, unless it has completed the run."""
        if self.run_report.status != "complete":
            self.run_report.status, self.run_report.message = status, message
            self._told = True  # the line that ends the run is enough
        self._let_time_pass()
        self._save_checkpoint()
        self._write_report()
        done = self.run_report.status == "complete"
        self._event_log.write(
            "run finished",
            "info" if done else "error",
            status=self.run_report.status,
            seconds=self.run_report.seconds,
            message=self.run_report.message,
            sources=self.run_report.sources,
            peak_bytes=self.run_report.peak_bytes,
        )

    def _write_task(self, report: TaskReport, again: bool) -> None:
        assert self._stage is not None
        event = "tile failed" if report.error else "tile retried" if again else "tile done"
        self._event_log.write(
            event,
            "warning" if report.error else "info",
            stage=self._stage.name,
            task=report.stage,
            tile=None if report.name == ALL else report.name,
            worker=report.worker,
            seconds=report.seconds,
            message=report.error,
            pixels=report.pixels,
        )

    def _let_time_pass(self) -> None:
        """Add the time since this was last called to the run, and to the stage it is in."""
        seen = time.monotonic()
        passed, self._seen = seen - self._seen, seen
        self.run_report.seconds += passed
        if self._stage is not None:
            self._stage.seconds += passed

    def _save_checkpoint(self) -> None:
        """Keep the account where a session that takes the run up will look for it."""
        self._let_time_pass()
        self._saved = self._seen
        self.run_report.ended, self.run_report.driver_bytes = utc_timestamp(), peak_memory_bytes()
        if self._scratch.is_dir():
            with self._spared():
                _write(self._scratch / "report.json", self.run_report.model_dump_json(indent=2))

    def _write_report(self) -> None:
        """Write the account beside the store."""
        with self._spared():
            write_report(self.run_report, self._out)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Let a run go on whose account cannot be written."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            if not self._told:
                warnings.warn(f"no report is written beside {self._out}: {reason}", stacklevel=3)
            self._told = True


@contextmanager
def record_session(recorder: RunRecorder, resumed: bool) -> Iterator[RunRecorder]:
    """Take down how a session begins, and how it ends."""
    recorder.begin(resumed)
    try:
        yield recorder
    except Exception as error:
        recorder.close("failed", first_line(error))
        raise
    except BaseException:
        recorder.close("interrupted", "interrupted; the same command takes the run up again")
        raise
    recorder.close("interrupted", "left before its end; the same command takes the run up again")


def write_report(run_report: RunReport, out: Path) -> None:
    """Write OUT.report.json and OUT.report.html."""
    _write(report_path(out, "json"), run_report.model_dump_json(indent=2))
    _write(report_path(out, "html"), report_rendering.render_html(run_report))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
