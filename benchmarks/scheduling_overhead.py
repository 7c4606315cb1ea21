"""What the driver takes for a tile: seconds and memory, where the tiles themselves take nothing.

    python -m benchmarks.scheduling_overhead --tiles 100000

An image without data, cut into that many tiles, is planned and a stage of it run on Dask, everything as
in a real run (the store, the ledger, the report) but for what a worker does, which is nothing. The
driver is this process, in which the scheduler of a local cluster lives as well.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import zarr

from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.engines import Engine
from fcnpipe.pipeline.job import Job
from fcnpipe.pipeline.plan import make_plan
from fcnpipe.pipeline.run import run_stage
from fcnpipe.pipeline.session import Session, open_session
from fcnpipe.pipeline.workflow import Stage, list_stages
from fcnpipe.reporting.observers import SilentObserver

EDGE = 64
"""Of a tile, px."""


def do_nothing(job: Job, name: str) -> TaskReport:
    """Do nothing to a tile."""
    return TaskReport("predict", name, pixels=EDGE * EDGE)


@dataclass(frozen=True)
class IdleEngine:
    """An engine whose workers are sent everything, and do nothing."""

    inner: Engine

    @property
    def workers(self) -> int:
        """Of the engine."""
        return self.inner.workers

    def run(self, task: Callable[[str], TaskReport], names: Iterable[str]) -> Iterator[TaskReport]:
        """Give a report for each name."""
        job = task.args[0]  # type: ignore[attr-defined]
        return self.inner.run(partial(do_nothing, job), names)

    def close(self) -> None:
        """Close the engine."""
        self.inner.close()


def make_run_spec(folder: Path, tiles: int, workers: int) -> RunSpec:
    """Give the spec of a run over an image of zeros, of which nothing is on disk."""
    side = math.ceil(math.sqrt(tiles)) * EDGE
    shape = (EDGE * math.ceil(tiles * EDGE / side), side)
    image = zarr.create_array(
        folder / "empty.zarr", shape=shape, chunks=(1024, 1024), dtype="float32", fill_value=0
    )
    assert image.shape == shape
    return make_spec(
        image=(str(folder / "empty.zarr"),),
        out=str(folder / "out.zarr"),
        model="none",
        window=EDGE,
        tile=EDGE,
        engine="dask",
        workers=workers,
    )


def measure(session: Session, stage: Stage) -> tuple[float, float, int]:
    """Give wall and processor seconds of the driver for a stage, and the bytes that it grew by."""
    me = psutil.Process()
    gc.collect()
    before, started, cpu = me.memory_info().rss, time.perf_counter(), time.process_time()
    run_stage(session, stage, SilentObserver())
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    gc.collect()
    return wall, cpu, me.memory_info().rss - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = make_run_spec(Path(folder), args.tiles, args.workers)
        started = time.perf_counter()
        count = len(make_plan(spec).tiles)
        print(f"{count} tiles planned in {time.perf_counter() - started:.2f} s")
        started = time.perf_counter()
        with open_session(spec) as opened:
            assert opened is not None
            print(f"store and workers ready in {time.perf_counter() - started:.1f} s")
            session = replace(opened, engine=IdleEngine(opened.engine))
            (stage,) = (stage for stage in list_stages(session.job) if stage.name == "predict")
            few = replace(stage, steps=(replace(stage.steps[0], names=stage.steps[0].names[:500]),))
            measure(session, few)  # connections and caches are there afterwards
            wall, cpu, growth = measure(session, stage)
        print(
            f"seconds for 1,000 tiles: {1e3 * wall / count:.2f}, of the driver's processor {1e3 * cpu / count:.2f}"
        )
        print(
            f"driver memory grew by {growth / 2**20:.1f} MiB, {growth / count:.0f} bytes for each tile"
        )


if __name__ == "__main__":
    main()
