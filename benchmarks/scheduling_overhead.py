"""Overhead of the driver for each tile, in time and memory, measured with tiles that need no work.

    python -m benchmarks.scheduling_overhead --tiles 100000

An image without data is divided into that many tiles and planned, and one stage of it runs on Dask.
Everything is as in a real run (store, ledger, report), except that the workers do nothing. The
driver is this process, which also contains the scheduler of a local cluster.
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
"""Edge of a tile, px."""


def do_nothing(job: Job, name: str) -> TaskReport:
    """Report a tile as done without any work."""
    return TaskReport("predict", name, pixels=EDGE * EDGE)


@dataclass(frozen=True)
class IdleEngine:
    """Engine that sends all tasks to its workers, which do nothing."""

    inner: Engine

    @property
    def workers(self) -> int:
        """Number of workers of the inner engine."""
        return self.inner.workers

    def run(self, task: Callable[[str], TaskReport], names: Iterable[str]) -> Iterator[TaskReport]:
        """Yield a report for each name."""
        job = task.args[0]  # type: ignore[attr-defined]
        return self.inner.run(partial(do_nothing, job), names)

    def close(self) -> None:
        """Close the inner engine."""
        self.inner.close()


def make_run_spec(folder: Path, tiles: int, workers: int) -> RunSpec:
    """Return the spec of a run over an image of zeros that takes no disk space."""
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
    """Return wall and CPU seconds of the driver for a stage, and the growth of its memory in bytes."""
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
            measure(session, few)  # opens connections and fills caches
            wall, cpu, growth = measure(session, stage)
        print(
            f"seconds for 1,000 tiles: {1e3 * wall / count:.2f}; CPU of the driver: {1e3 * cpu / count:.2f}"
        )
        print(
            f"driver memory grew by {growth / 2**20:.1f} MiB, {growth / count:.0f} bytes per tile"
        )


if __name__ == "__main__":
    main()
