"""Prefect artifacts of a run: progress, result, run report, pictures, failed tiles."""

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
"""Minimum time between two updates of a progress artifact, each of which is a call to the server."""
MAX_ROWS = 1000
"""Maximum number of rows of a table artifact, so that its size does not grow with the image."""


class StageArtifact:
    """An observer that shows a stage as a progress artifact and logs its failed tiles.

    Attributes
    ----------
    failed : list of str
        One line for each failed task.
    tally : StageTally
        Number of tasks and pixels that are done.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.tally = StageTally("", 0, 0)
        self._artifact: Any = None
        self._updated = 0.0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Create the progress artifact."""
        self.tally = StageTally(stage, tasks, pixels)
        self._artifact = create_progress_artifact(
            0.0, key=f"stage-{stage}", description=f"{stage}: {tasks} tasks, {pixels} px"
        )
        self._updated = time.monotonic()

    def report(self, report: TaskReport) -> None:
        """Count a task, and update the artifact from time to time."""
        self.tally.add(report)
        if report.error:
            self.failed.append(f"{report.name} ({report.stage}: {report.error})")
            get_run_logger().warning(describe_failure(report))
        if time.monotonic() - self._updated >= UPDATE_EVERY_SECONDS:
            self._update(100.0 * self.tally.done / max(self.tally.tasks, 1))

    def end(self, stage: str, seconds: float) -> None:
        """Complete the artifact and log the summary of the stage."""
        self._update(100.0)
        get_run_logger().info(self.tally.summary(seconds))

    def _update(self, percent: float) -> None:
        self._updated = time.monotonic()
        update_progress_artifact(self._artifact, min(percent, 100.0))


@dataclass
class RunSummary:
    """The result of a flow run, for its return value and its artifacts.

    Attributes
    ----------
    spec : RunSpec
        Options of the run.
    tiles : int
        Number of tiles of the image.
    stages : list of str
        One line for each completed stage.
    failed : tuple of str
        Failed tiles, each with the reason.
    result : dict
        Result of a finished run: ``path``, ``tiles``, ``found``; ``sources`` and ``catalogue``, or
        ``outputs``.
    started : float
        Time of the start, as returned by `time.monotonic`.
    found : bool
        Whether the finished store existed already, so that there was nothing to do.
    """

    spec: RunSpec
    tiles: int = 0
    stages: list[str] = field(default_factory=list)
    failed: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    found: bool = True

    def set_plan(self, plan: Plan) -> None:
        """Record that the run has tiles to process."""
        self.found, self.tiles = False, len(plan.tiles)

    def read_result(self) -> None:
        """Read the result from the finished store."""
        store = open_store(self.spec.out)
        self.tiles = len(store.layout.grid)
        self.result = {"path": self.spec.out, "tiles": self.tiles, "found": self.found}
        if store.has_sources:
            self.result |= {
                "sources": store.n_sources,
                "catalogue": locate_catalogue(self.spec.out),
            }
        else:
            self.result["outputs"] = [output.name for output in store.layout.maps]

    def publish(self) -> None:
        """Create the artifacts."""
        create_markdown_artifact(self.render_markdown(), key="result", description=self.spec.out)
        publish_report(self.spec.out)
        if self.failed:
            rows = [_parse_failure(name) for name in self.failed[:MAX_ROWS]]
            create_table_artifact(rows, key="failed-tiles", description=f"{len(self.failed)} tiles")
        if self.result:
            publish_pictures(self.spec.out)

    def render_markdown(self) -> str:
        """Return Markdown with a table of the result, the failed tiles, and a line for each stage."""
        facts: dict[str, Any] = {
            "path": f"{self.spec.out}.partial",
            "tiles": self.tiles,
            **self.result,
        }
        facts |= {
            "failed tiles": len(self.failed),
            "seconds": f"{time.monotonic() - self.started:.1f}",
        }
        rows = [f"| {name} | {value} |" for name, value in facts.items()]
        names = [f"- {name}" for name in self.failed[:MAX_ROWS]]
        return "\n".join(["| | |", "|---|---|", *rows, "", *names, "", "```", *self.stages, "```"])


def publish_report(out: str) -> None:
    """Create a Markdown artifact of the run report, if the run has written one."""
    try:
        report = read_report(out)
    except (OSError, FcnpipeError) as error:
        get_run_logger().warning(f"no run report of {out}: {error}")
        return
    if report is not None:
        create_markdown_artifact(
            report_rendering.render_markdown(report), key="report", description=out
        )


def publish_pictures(out: str) -> None:
    """Create image artifacts of the result and its background, as data: URLs.

    Notes
    -----
    The result is complete at this point, so a picture that cannot be drawn is a warning, not a failure.
    """
    try:
        store = open_store(out)
        sky, description = thumbnails.draw_sky_thumbnail(store)
        preview = thumbnails.draw_result_thumbnail(store)
    except Exception as error:
        get_run_logger().warning(f"no pictures of {out}: {error}")
        return
    create_image_artifact(thumbnails.encode_data_url(preview), key="preview", description=out)
    create_image_artifact(thumbnails.encode_data_url(sky), key="sky", description=description)


def _parse_failure(failure: str) -> dict[str, str]:
    """Return the tile and the reason of a line such as ``r000c001 (predict: disk full)``."""
    tile, _, reason = failure.partition(" (")
    return {"tile": tile, "reason": reason.removesuffix(")")}
