"""What a flow shows of a run: its progress, its result, pictures, and the tiles that failed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from fcnpipe.core.errors import FcnpipeError
from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline.plan import Plan
from fcnpipe.pipeline.remote_output import locate_catalogue, read_report
from fcnpipe.reporting import report_rendering, thumbnails
from fcnpipe.reporting.progress import StageTally, describe_failure
from fcnpipe.stores import open_store

UPDATE_EVERY_SECONDS = 5.0
"""Least time between two updates of a progress artifact: each is a call to the server."""
ROWS_SHOWN = 1000
"""Most rows of a table artifact: what the server keeps does not grow with the image."""


class StageArtifact:
    """Shows one stage as a progress artifact and logs the tiles that fail.

    It is an observer of :mod:`fcnpipe.pipeline.run`. ``failed`` holds one line for each task that failed.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.tally = StageTally("", 0, 0)
        self._artifact: Any = None
        self._updated = 0.0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Create the artifact."""
        self.tally = StageTally(stage, tasks, pixels)
        self._artifact = create_progress_artifact(
            0.0, key=f"stage-{stage}", description=f"{stage}: {tasks} tasks, {pixels} px"
        )
        self._updated = time.monotonic()

    def report(self, report: TaskReport) -> None:
        """Count a task, and now and then tell the server."""
        self.tally.add(report)
        if report.error:
            self.failed.append(f"{report.name} ({report.stage}: {report.error})")
            get_run_logger().warning(describe_failure(report))
        if time.monotonic() - self._updated >= UPDATE_EVERY_SECONDS:
            self._update(100.0 * self.tally.done / max(self.tally.tasks, 1))

    def end(self, stage: str, seconds: float) -> None:
        """Complete the artifact and log the stage's summary."""
        self._update(100.0)
        get_run_logger().info(self.tally.summary(seconds))

    def _update(self, percent: float) -> None:
        self._updated = time.monotonic()
        update_progress_artifact(self._artifact, min(percent, 100.0))


@dataclass
class Account:
    """What is told at the end of a flow run.

    Attributes
    ----------
    spec : RunSpec
        The run.
    tiles : int
        Of the image.
    stages : list of str
        One line for each that is through.
    failed : tuple of str
        Tiles that failed, each with the reason.
    facts : dict
        What a finished run gave: ``path``, ``tiles``, ``found`` (it was there already); ``sources``
        and ``catalogue``, or ``outputs``.
    """

    spec: RunSpec
    tiles: int = 0
    stages: list[str] = field(default_factory=list)
    failed: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    found: bool = True

    def begin(self, plan: Plan) -> None:
        """Take down that there is something to do."""
        self.found, self.tiles = False, len(plan.tiles)

    def finish(self) -> None:
        """Take down what the finished store holds."""
        store = open_store(self.spec.out)
        self.tiles = len(store.layout.grid)
        self.facts = {"path": self.spec.out, "tiles": self.tiles, "found": self.found}
        if store.has_sources:
            self.facts |= {
                "sources": store.n_sources,
                "catalogue": locate_catalogue(self.spec.out),
            }
        else:
            self.facts["outputs"] = [output.name for output in store.layout.maps]

    def publish(self) -> None:
        """Create the artifacts."""
        create_markdown_artifact(self.markdown(), key="result", description=self.spec.out)
        show_report(self.spec.out)
        if self.failed:
            rows = [_split(name) for name in self.failed[:ROWS_SHOWN]]
            create_table_artifact(rows, key="failed-tiles", description=f"{len(self.failed)} tiles")
        if self.facts:
            show_pictures(self.spec.out)

    def markdown(self) -> str:
        """Give a table of sources, tiles and paths, the failed tiles, and a line for each stage."""
        facts: dict[str, Any] = {
            "path": f"{self.spec.out}.partial",
            "tiles": self.tiles,
            **self.facts,
        }
        facts |= {
            "failed tiles": len(self.failed),
            "seconds": f"{time.monotonic() - self.begun:.1f}",
        }
        rows = [f"| {name} | {value} |" for name, value in facts.items()]
        names = [f"- {name}" for name in self.failed[:ROWS_SHOWN]]
        return "\n".join(["| | |", "|---|---|", *rows, "", *names, "", "```", *self.stages, "```"])


def show_report(out: str) -> None:
    """Create a Markdown artifact of what the run took, if it came so far that this was written."""
    try:
        report = read_report(out)
    except (OSError, FcnpipeError) as error:
        get_run_logger().warning(f"no report of {out}: {error}")
        return
    if report is not None:
        create_markdown_artifact(
            report_rendering.render_markdown(report), key="report", description=out
        )


def show_pictures(out: str) -> None:
    """Create image artifacts of the result and its sky, as data: URLs.

    Notes
    -----
    The run has landed: a picture that cannot be drawn is a warning, not a failure.
    """
    try:
        store = open_store(out)
        sky, words = thumbnails.draw_sky_thumbnail(store)
        preview = thumbnails.draw_result_thumbnail(store)
    except Exception as error:
        get_run_logger().warning(f"no pictures of {out}: {error}")
        return
    create_image_artifact(thumbnails.encode_data_url(preview), key="preview", description=out)
    create_image_artifact(thumbnails.encode_data_url(sky), key="sky", description=words)


def _split(failure: str) -> dict[str, str]:
    """Give the columns of one line about a tile, ``r000c001 (predict: disk full)``."""
    tile, _, reason = failure.partition(" (")
    return {"tile": tile, "reason": reason.removesuffix(")")}
