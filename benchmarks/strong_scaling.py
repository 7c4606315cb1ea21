"""Strong scaling of the Dask engine: two workers of one thread each against one, on this machine.

    python -m benchmarks.strong_scaling --edge 12288 --rounds 3

Both clusters stay alive and take turns, with the other one idle. A first small run loads everything
that workers load once. The speed-up counts the steps that run tile by tile, in rounds in which
other processes took at most 3 % of the processors: such load takes time from two workers but not
from one. Fails if the median speed-up is below 1.8, if there is no quiet round, or if the labels of
the two runs differ in any byte.

The limit of the machine is printed too: two independent processes with the serial engine, each on
an image of its own, against one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.end_to_end import Stopwatch, write_field
from fcnpipe import networks
from fcnpipe.core.spec import make_spec
from fcnpipe.engines import WorkerRequirements
from fcnpipe.engines.dask import DaskEngine, start_local
from fcnpipe.pipeline.run import finish, run_stage
from fcnpipe.pipeline.session import Session, open_session
from fcnpipe.pipeline.tasks import LEDGER
from fcnpipe.pipeline.workflow import Stage

MIN_SPEED_UP = 1.8
"""Minimum median speed-up."""
MAX_FOREIGN_LOAD = 0.03
"""Maximum fraction of the processors' time that other processes may take in a round that counts."""
COUNTS = (1, 2)
TILE_STEPS = (*LEDGER, "check_tile")
"""Steps with a task for every tile."""


class StepTimer(Stopwatch):
    """Records the seconds of each step and the CPU seconds of the workers."""

    def __init__(self) -> None:
        super().__init__()
        self.busy: dict[str, float] = {}
        self.foreign = 0.0
        """Fraction of the processors' time that other processes took."""

    def sum_tile_steps(self) -> tuple[float, float]:
        """Return the seconds of all steps that run tile by tile, and the CPU seconds of the workers in them."""
        names = [name for name in self.seconds if name in TILE_STEPS]
        return sum(self.seconds[n] for n in names), sum(self.busy[n] for n in names)


def read_worker_cpu_seconds(engine: DaskEngine) -> float:
    """Return the CPU seconds of all workers so far."""
    return float(sum(engine._client.run(time.process_time).values()))


def read_foreign_cpu_seconds(engine: DaskEngine) -> float:
    """Return the CPU seconds so far of all processes except this one and its workers."""
    times = psutil.cpu_times()
    idle = times.idle + times.iowait + times.guest + times.guest_nice
    return float(sum(times) - idle - time.process_time() - read_worker_cpu_seconds(engine))


def run_steps(image: Path, out: Path, engine: DaskEngine, options: dict[str, object]) -> StepTimer:
    """Run all steps on an engine and return their seconds."""
    watch = StepTimer()
    spec = make_spec(image=(str(image),), out=str(out), overwrite=True, engine="serial", **options)
    with open_session(spec) as opened:
        assert opened is not None
        session = replace(opened, engine=engine)
        started, foreign = time.perf_counter(), read_foreign_cpu_seconds(engine)
        for stage in split_steps(session):
            before = read_worker_cpu_seconds(engine)
            run_stage(session, stage, watch)
            watch.busy[stage.name] = read_worker_cpu_seconds(engine) - before
        seconds = (time.perf_counter() - started) * (os.cpu_count() or 1)
        watch.foreign = (read_foreign_cpu_seconds(engine) - foreign) / seconds
        finish(session)
    return watch


def split_steps(session: Session) -> Iterator[Stage]:
    """Yield each step as a stage of its own, under the name of its task."""
    for stage in session.stages:
        for step in stage.steps:
            yield Stage(step.task, (step,))


@contextmanager
def start_clusters(counts: Sequence[int]) -> Iterator[dict[int, DaskEngine]]:
    """Start a cluster for each number of workers, for the duration of the context."""
    needs = WorkerRequirements(networks.worker_environment(), networks.tune_allocator)
    with ExitStack() as closing:
        engines: dict[int, DaskEngine] = {}
        for count in counts:
            engines[count] = start_local(count, needs)
            closing.callback(engines[count].close)
        yield engines


def compare(rounds: list[dict[int, StepTimer]]) -> float:
    """Print the median seconds of each step and return the median speed-up of the tile steps."""
    one, two = COUNTS
    print(f"{'step':16}{'1 worker, s':>14}{'2 workers, s':>14}{'speed-up':>10}")
    for name in rounds[0][one].seconds:
        slow, fast = (statistics.median(r[n].seconds[name] for r in rounds) for n in COUNTS)
        mark = "" if name in TILE_STEPS else "  not by tile"
        print(f"{name:16}{slow:14.2f}{fast:14.2f}{slow / fast:10.2f}{mark}")
    gains = [0.0]
    for clocks in rounds:
        (slow, cpu_one), (fast, cpu_two) = (clocks[n].sum_tile_steps() for n in COUNTS)
        foreign = max(clock.foreign for clock in clocks.values())
        if foreign <= MAX_FOREIGN_LOAD:
            gains.append(slow / fast)
        print(
            f"tile steps: 1 worker {slow:.1f} s, 2 workers {fast:.1f} s, speed-up {slow / fast:.2f}; CPU "
            f"{cpu_one:.1f} and {cpu_two:.1f} s, which allows {two * cpu_one / cpu_two:.2f}; "
            f"other processes {foreign:.1%}"
        )
    return statistics.median(gains[1:] or gains)


def run_serial(image: Path, out: Path, options: dict[str, object]) -> float:
    """Return the seconds of the tile steps of a run in this process."""
    watch = Stopwatch()
    spec = make_spec(image=(str(image),), out=str(out), overwrite=True, engine="serial", **options)
    with open_session(spec) as session:
        assert session is not None
        for stage in split_steps(session):
            run_stage(session, stage, watch)
    return sum(watch.seconds[name] for name in TILE_STEPS)


def measure_limit(small: Path, image: Path, folder: Path, options: dict[str, object]) -> float:
    """Return the throughput of two processes relative to one."""
    os.environ.update(networks.worker_environment())
    with multiprocessing.get_context("spawn").Pool(2) as pool:

        def run(image: Path, count: int) -> float:
            outs = [folder / f"alone{n}.zarr" for n in range(count)]
            return max(pool.starmap(run_serial, [(image, o, options) for o in outs], chunksize=1))

        run(small, 2)
        return 2 * run(image, 1) / run(image, 2)


def read_labels(out: Path) -> dict[str, bytes]:
    """Return the contents of the files of the label image, by relative path."""
    folder = out / "image/0/label"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=12288)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tile", type=int, default=2048)
    parser.add_argument("--model", default="default")
    parser.add_argument("--bar", type=float, default=MIN_SPEED_UP)
    parser.add_argument(
        "--image", type=Path, default=None, help="image to use instead of a simulated one"
    )
    args = parser.parse_args()
    options = {"model": args.model, "tile": args.tile, "window": min(args.tile, 1024)}
    with tempfile.TemporaryDirectory() as name, start_clusters(COUNTS) as engines:
        folder = Path(name)
        image, small = args.image or folder / "field.fits", folder / "small.fits"
        write_field(small, 2 * args.tile)
        if args.image is None:
            write_field(image, args.edge)
        outs = {count: folder / f"{count}.zarr" for count in COUNTS}
        rounds: list[dict[int, StepTimer]] = []
        for count in COUNTS:
            run_steps(small, outs[count], engines[count], options)
        for number in range(args.rounds):
            order = COUNTS if number % 2 == 0 else COUNTS[::-1]
            rounds.append({n: run_steps(image, outs[n], engines[n], options) for n in order})
        gain = compare(rounds)
        limit = measure_limit(small, image, folder, options)
        one, two = (read_labels(out) for out in outs.values())
    print(f"two independent processes: {limit:.2f} times the throughput of one")
    print(
        f"median speed-up {gain:.2f} (minimum {args.bar}); "
        f"labels {'equal' if one == two else 'DIFFER'}"
    )
    return int(gain < args.bar or one != two)


if __name__ == "__main__":
    sys.exit(main())
