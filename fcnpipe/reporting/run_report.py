"""The run report: times, bytes, memory and failures of a run by stage, written as OUT.report.json.

::

    task reports --> RunRecorder --> event log: JSON lines (fcnpipe.reporting.event_log)
                          |
                          +--------> RunReport: OUT.zarr.partial/.scratch/report.json during the run,
                                     OUT.report.json and OUT.report.html next to the store

A resumed run continues the report of the earlier session. The report contains sums and the extreme values only, so
its size does not grow with the number of tiles.
"""

from __future__ import annotations

from pydantic import BaseModel, ValidationError, computed_field

from fcnpipe.core.records import TaskReport

MAX_SLOW_TILES = 10
"""Maximum number of slowest tiles in a report."""
MAX_FAILED_NAMES = 1000
"""Maximum number of failed tasks of a stage that are kept by name."""
MAX_PROCESSES = 100
"""Maximum number of processes that are kept by name, those with the highest memory peaks."""


class StageSums(BaseModel):
    """Sums over the tasks of one stage.

    Attributes
    ----------
    name : str
        Name of the stage.
    seconds : float
        Wall time in the driver, s.
    task_seconds : float
        Sum of the wall times of all tasks, s.
    tasks : int
        Number of tasks done.
    tiles : int
        Number of these tasks that process the core of a tile.
    pixels : int
        Number of pixels of these cores.
    read_bytes, written_bytes : int
        Bytes of pixels and maps; see :class:`fcnpipe.core.resource_usage.ResourceUsage`.
    retries : int
        Number of tasks done after an earlier failure.
    failures : int
        Number of failed tasks that have not been done since.
    failed : dict
        Reason of each of these failures, by task; at most 1000.
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
        """Mpix per second of wall time; 0 for a stage whose tasks have no pixels."""
        return self.pixels / self.seconds / 1e6 if self.seconds else 0.0

    def add(self, report: TaskReport) -> bool:
        """Add the report of a task, and return whether the task was done after an earlier failure."""
        key = f"{report.stage} {report.name}"
        self.task_seconds += report.seconds
        self.read_bytes += report.read_bytes
        self.written_bytes += report.written_bytes
        retried = self.failed.pop(key, None) is not None
        self.failures -= retried
        if report.error:
            self.failures += 1
            if len(self.failed) < MAX_FAILED_NAMES:
                self.failed[key] = report.error
            return False
        self.tasks += 1
        self.tiles += report.pixels > 0
        self.pixels += report.pixels
        self.retries += retried
        return retried


class SlowTile(BaseModel):
    """Wall time of one tile in one stage, and the process that ran it."""

    tile: str
    stage: str
    seconds: float
    worker: str


class RunReport(BaseModel):
    """The report of a run.

    Attributes
    ----------
    format : int
        Version of this record.
    status : str
        ``running``, ``complete``, ``failed`` or ``interrupted``; a killed run stays ``running``.
    message : str
        Reason why the run is not complete.
    command : str
        ``segment`` or ``predict``.
    image, out, model, run_key
        Input images, output store, model, and digest of everything that determines the result.
    shape : (int, int)
        Height and width of the image, px.
    tile : int
        Edge of a tile, px.
    tiles : int
        Number of tiles of the image.
    engine : str
        Name of the engine of the last session.
    workers : int
        Number of tasks that it runs at the same time.
    began : str
        Start of the first session, UTC.
    ended : str
        End of the last session, UTC.
    sessions : int
        Number of times that the run was started or resumed.
    resumed : bool
        Whether the run was resumed.
    seconds : float
        Wall time of all sessions, s.
    sources : int or None
        Number of sources in the catalogue of a complete run.
    projected_bytes : int
        Peak memory of a process as projected by the plan.
    driver_projected_bytes : int
        Projected peak memory of a driver that runs no tiles; 0 if the driver runs tiles itself.
    driver_bytes : int
        Measured peak memory of the driver.
    peaks : dict
        Measured peak memory of each process that ran tasks, by its name.
    stages : list of StageSums
        Stages in the order in which they ran.
    slowest : list of SlowTile
        Slowest tiles, in descending order of time.
    versions : dict
        Versions of Python and packages.
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
        """The highest measured peak memory of a process that ran tasks."""
        return max(self.peaks.values(), default=0)

    @property
    def failures(self) -> int:
        """Number of failed tasks that have not been done since."""
        return sum(stage.failures for stage in self.stages)

    def stage(self, name: str) -> StageSums:
        """Return the sums of a stage; add the stage with sums of 0 if the report does not contain it."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        self.stages.append(StageSums(name=name))
        return self.stages[-1]

    def add_peak(self, worker: str, size_bytes: int) -> None:
        """Record the peak memory of a process."""
        if worker:
            self.peaks[worker] = max(size_bytes, self.peaks.get(worker, 0))
        if len(self.peaks) > MAX_PROCESSES:
            del self.peaks[min(self.peaks, key=self.peaks.__getitem__)]

    def add_tile(self, tile: SlowTile) -> None:
        """Record the time of a tile if it is among the slowest."""
        if len(self.slowest) < MAX_SLOW_TILES or tile.seconds > self.slowest[-1].seconds:
            ranked = sorted([*self.slowest, tile], key=lambda one: -one.seconds)
            self.slowest = ranked[:MAX_SLOW_TILES]


def parse_report(data: str | bytes) -> RunReport | None:
    """Return the report in a JSON document; None if the document is invalid or has another format version."""
    try:
        report = RunReport.model_validate_json(data)
    except ValidationError:
        return None
    return report if report.format == RunReport().format else None
