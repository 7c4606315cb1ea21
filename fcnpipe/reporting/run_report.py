"""The account of a run: what it took, stage by stage; it lies beside the store and adds up.

::

    reports of tasks --> Recorder --> JSON lines (fcnpipe.reporting.event_log)
                             |
                             +------> Report: OUT.zarr.partial/.scratch/report.json while it runs,
                                      OUT.report.json and OUT.report.html beside the store

A run that is taken up goes on with the account of the one before. What it holds are sums, and the
few worst: it does not grow with the tiles.
"""

from __future__ import annotations

from pydantic import BaseModel, ValidationError, computed_field

from fcnpipe.core.records import TaskReport

SLOWEST = 10
"""Tiles that are named for having taken longest."""
MOST_NAMES = 1000
"""Failed tasks of a stage that are kept by name."""
MOST_PROCESSES = 100
"""Processes that are kept by name: of more, those that took most memory."""


class StageSums(BaseModel):
    """What one stage took.

    Attributes
    ----------
    name : str
        Of the stage.
    seconds, task_seconds : float
        Wall time as the driver saw it, and that of all tasks together.
    tasks, tiles : int
        Tasks that were done, and those of them that are one for each tile.
    pixels : int
        Pixels of the cores of these.
    read_bytes, written_bytes : int
        Pixels and maps; see :class:`fcnpipe.core.resource_usage.ResourceUsage`.
    retries : int
        Tasks that were done after they had failed.
    failed : dict
        Reason of each task that has failed and not been done since, by its name; the first of many.
    failures : int
        How many these are.
    """

    name: str
    seconds: float = 0.0
    task_seconds: float = 0.0
    tasks: int = 0
    tiles: int = 0
    pixels: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    retries: int = 0
    failures: int = 0
    failed: dict[str, str] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speed(self) -> float:
        """Mpix/s of wall time; 0 for a stage that is not counted in pixels."""
        return self.pixels / self.seconds / 1e6 if self.seconds else 0.0

    def add(self, report: TaskReport) -> bool:
        """Count a task; give whether it was done after it had failed."""
        key = f"{report.stage} {report.name}"
        self.task_seconds += report.seconds
        self.read_bytes += report.read_bytes
        self.written_bytes += report.written_bytes
        again = self.failed.pop(key, None) is not None
        self.failures -= again
        if report.error:
            self._note_failure(key, report.error)
            return False
        self.tasks += 1
        self.tiles += report.pixels > 0
        self.pixels += report.pixels
        self.retries += again
        return again

    def _note_failure(self, key: str, reason: str) -> None:
        self.failures += 1
        if len(self.failed) < MOST_NAMES:
            self.failed[key] = reason


class SlowTile(BaseModel):
    """A tile that took long in a stage."""

    tile: str
    stage: str
    seconds: float
    worker: str


class RunReport(BaseModel):
    """The account of a run.

    Attributes
    ----------
    format : int
        Of this record.
    status : str
        ``running``, ``complete``, ``failed``, ``interrupted``; a run that was killed stays
        ``running``.
    message : str
        Why it is not complete.
    command : str
        ``segment`` or ``predict``.
    image, out, model, run_key
        What was made of what.
    shape, tile, tiles
        Height and width, px; edge of a tile, px; tiles of the image.
    engine, workers
        What ran the tiles, and how many at a time, in the last session.
    began, ended : str
        Of the first session and the last, UTC.
    sessions : int
        Times that the run was begun or taken up.
    resumed : bool
        Whether it was taken up.
    seconds : float
        Wall time of all sessions.
    sources : int or None
        In the catalogue, once it is complete.
    projected_bytes : int
        Peak memory that the plan projects for a process.
    driver_projected_bytes : int
        The same for the process that only drives the run; 0 if it has the tiles itself.
    driver_bytes : int
        Measured peak of the process that drives the run.
    peaks : dict
        Measured peak of each process that did tasks, by its name.
    stages : list of StageSums
        In their order.
    slowest : list of SlowTile
        The slowest first.
    versions : dict
        Of Python and packages.
    """

    format: int = 1
    status: str = "running"
    message: str = ""
    command: str = ""
    image: list[str] = []
    out: str = ""
    model: str = ""
    run_key: str = ""
    shape: tuple[int, int] = (0, 0)
    tile: int = 0
    tiles: int = 0
    engine: str = ""
    workers: int = 0
    began: str = ""
    ended: str = ""
    sessions: int = 0
    resumed: bool = False
    seconds: float = 0.0
    sources: int | None = None
    projected_bytes: int = 0
    driver_projected_bytes: int = 0
    driver_bytes: int = 0
    peaks: dict[str, int] = {}
    stages: list[StageSums] = []
    slowest: list[SlowTile] = []
    versions: dict[str, str] = {}

    @property
    def peak_bytes(self) -> int:
        """The highest measured peak of a process that did tasks."""
        return max(self.peaks.values(), default=0)

    @property
    def failures(self) -> int:
        """Tasks that have failed and not been done since."""
        return sum(stage.failures for stage in self.stages)

    def stage(self, name: str) -> StageSums:
        """Give the sums of a stage, which begin at 0."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        self.stages.append(StageSums(name=name))
        return self.stages[-1]

    def note_peak(self, worker: str, size_bytes: int) -> None:
        """Keep the peak of a process."""
        if worker:
            self.peaks[worker] = max(size_bytes, self.peaks.get(worker, 0))
        if len(self.peaks) > MOST_PROCESSES:
            del self.peaks[min(self.peaks, key=self.peaks.__getitem__)]

    def note_tile(self, tile: SlowTile) -> None:
        """Keep a tile if it is among the slowest."""
        if len(self.slowest) < SLOWEST or tile.seconds > self.slowest[-1].seconds:
            ranked = sorted([*self.slowest, tile], key=lambda one: -one.seconds)
            self.slowest = ranked[:SLOWEST]


def parse_report(data: str | bytes) -> RunReport | None:
    """Give the account that was written; None if it is broken, or of another format."""
    try:
        report = RunReport.model_validate_json(data)
    except ValidationError:
        return None
    return report if report.format == RunReport().format else None
