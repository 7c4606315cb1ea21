"""Overhead of Prefect and Dask: the flow with one Dask worker against the serial engine, as commands.

    python -m benchmarks.flow_overhead --edge 10000 --rounds 3 --cores 1

Both are complete commands, from the start of the interpreter to its end, take turns, and may use
the same cores. No server is configured, so the flow starts a temporary one, and a cluster of one
worker. The database exists already, as after a first run; with --fresh each run creates a new one.
Fails if the median overhead exceeds 5 % + 15 s, or if the labels differ in any byte.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.end_to_end import write_field
from benchmarks.strong_scaling import read_labels

ALLOWED_FRACTION, ALLOWED_SECONDS = 0.05, 15.0
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def time_command(module: str, *arguments: str, home: Path) -> float:
    """Run a module as a command and return its seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # otherwise each command would compile all modules
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", module, *arguments, "--overwrite", "--quiet"],
        check=True,
        env={**environment, **QUIET, "PREFECT_HOME": str(home)},
    )
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cores", type=int, default=1, help="number of cores that each command may use"
    )
    parser.add_argument("--fresh", action="store_true", help="create a new database for each run")
    parser.add_argument(
        "--image", type=Path, default=None, help="image to use instead of a simulated one"
    )
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # children inherit it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, serial, flow = (
            args.image or folder / "field.fits",
            folder / "s.zarr",
            folder / "f.zarr",
        )
        if args.image is None:
            write_field(image, args.edge)
        rounds, small, home = [], folder / "small.fits", folder / "home"
        write_field(small, 512)
        time_command("flows.segment", str(small), str(flow), "--engine", "serial", home=home)
        for number in range(args.rounds):
            arguments = ("segment", str(image), str(serial), "--engine", "serial")
            plain = time_command("fcnpipe", *arguments, home=home)
            arguments = (str(image), str(flow), "--engine", "dask", "--workers", "1")
            whole = time_command(
                "flows.segment", *arguments, home=folder / f"{number}" if args.fresh else home
            )
            rounds.append((plain, whole))
            print(f"serial {plain:.1f} s, Prefect and Dask {whole:.1f} s: {whole - plain:+.1f} s")
        same = read_labels(serial) == read_labels(flow)
    excess = statistics.median(whole - plain for plain, whole in rounds)
    allowed = ALLOWED_SECONDS + ALLOWED_FRACTION * statistics.median(plain for plain, _ in rounds)
    print(
        f"median overhead {excess:+.1f} s, allowed {allowed:.1f} s; labels {'equal' if same else 'DIFFER'}"
    )
    return int(excess > allowed or not same)


if __name__ == "__main__":
    sys.exit(main())
