"""The recorder of a run: an observer that writes the event log, and the run report next to the store."""

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
"""Minimum time between two checkpoints of the report, s; a SIGKILL loses the events since the last one."""
ALL = "all"
"""Name in the reports of a task that runs once, not for each tile."""


class RunRecorder:
    """Observer that records a run; if the report cannot be written, it warns once and the run continues.

    Parameters
    ----------
    run_report : RunReport
        Report of the earlier sessions of the run.
    store : ZarrStore
        OUT.zarr.partial.
    event_log : EventLog
        Log to which each event is appended.
    """

    def __init__(self, run_report: RunReport, store: ZarrStore, event_log: EventLog) -> None:
        self.run_report, self._event_log = run_report, event_log
        self._scratch = store.path / SCRATCH
        self._out = final_path(store.path)
        self._stage: StageSums | None = None
        self._warned = False
        self._clock = self._saved = time.monotonic()
        measure_usage()  # resets the counts: bytes read for the input digests belong to no stage

    def begin(self, resumed: bool) -> None:
        """Record the start of a session."""
        self.run_report.resumed |= resumed
        self._event_log.run_key = self.run_report.run_key
        facts = self.run_report.model_dump(
            include={"command", "image", "out", "engine", "tiles", "projected_bytes"}
        )
        message = f"{'resumed' if resumed else 'started'}: {self._out}"
        self._event_log.write("run started", message=message, **facts)

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Record the start of a stage."""
        self._advance_clock()
        self._stage = self.run_report.stage(stage)
        self._event_log.write("stage started", stage=stage, tasks=tasks, pixels=pixels)

    def report(self, report: TaskReport) -> None:
        """Record a finished task."""
        assert self._stage is not None
        retried = self._stage.add(report)
        self.run_report.add_peak(report.worker, report.peak_bytes)
        if report.pixels and not report.error:
            slow = SlowTile(
                tile=report.name,
                stage=self._stage.name,
                seconds=report.seconds,
                worker=report.worker,
            )
            self.run_report.add_tile(slow)
        self._log_task(report, retried)
        if time.monotonic() - self._saved >= SAVE_EVERY_SECONDS:
            self._save_checkpoint()

    def end(self, stage: str, seconds: float) -> None:
        """Record the end of a stage."""
        assert self._stage is not None
        self._advance_clock()
        sums, self._stage = self._stage, None
        facts = sums.model_dump(exclude={"name", "failed", "seconds"})
        message = f"{sums.failures} failed" if sums.failures else ""
        self._event_log.write(
            "stage finished", stage=stage, seconds=sums.seconds, message=message, **facts
        )
        self._save_checkpoint()
        self._write_report()

    def complete(self, store: ZarrStore) -> None:
        """Record that the run is complete and its store has the final name."""
        self.run_report.status = "complete"
        self.run_report.sources = store.n_sources if store.has_sources else None

    def close(self, status: str, message: str) -> None:
        """Record the end of the session, with a status and a message unless the run is complete."""
        if self.run_report.status != "complete":
            self.run_report.status, self.run_report.message = status, message
            self._warned = True  # the error that ends the run is reported without a further warning
        self._advance_clock()
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

    def _log_task(self, report: TaskReport, retried: bool) -> None:
        assert self._stage is not None
        event = "tile failed" if report.error else "tile retried" if retried else "tile done"
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

    def _advance_clock(self) -> None:
        """Add the time since the previous call to the run and to the current stage."""
        now = time.monotonic()
        passed, self._clock = now - self._clock, now
        self.run_report.seconds += passed
        if self._stage is not None:
            self._stage.seconds += passed

    def _save_checkpoint(self) -> None:
        """Write the report into the scratch folder, from which a resumed run continues it."""
        self._advance_clock()
        self._saved = self._clock
        self.run_report.ended, self.run_report.driver_bytes = utc_timestamp(), peak_memory_bytes()
        if self._scratch.is_dir():
            with self._warn_on_failure():
                _write(self._scratch / "report.json", self.run_report.model_dump_json(indent=2))

    def _write_report(self) -> None:
        with self._warn_on_failure():
            write_report(self.run_report, self._out)

    @contextmanager
    def _warn_on_failure(self) -> Iterator[None]:
        """Turn the first failure to write the report into a warning, and ignore further ones."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            if not self._warned:
                warnings.warn(f"no report is written next to {self._out}: {reason}", stacklevel=3)
            self._warned = True


@contextmanager
def record_session(recorder: RunRecorder, resumed: bool) -> Iterator[RunRecorder]:
    """Record the start of a session, and its end with the reason."""
    recorder.begin(resumed)
    try:
        yield recorder
    except Exception as error:
        recorder.close("failed", first_line(error))
        raise
    except BaseException:
        recorder.close("interrupted", "interrupted; the same command resumes the run")
        raise
    recorder.close("interrupted", "closed before the run was complete; the same command resumes it")


def write_report(run_report: RunReport, out: Path) -> None:
    """Write OUT.report.json and OUT.report.html."""
    _write(report_path(out, "json"), run_report.model_dump_json(indent=2))
    _write(report_path(out, "html"), report_rendering.render_html(run_report))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
