"""Projected against measured memory of real runs, each a command of its own.

    python -m benchmarks.memory
    python -m benchmarks.memory --only threads

Prints, for each run, the high-water mark (VmHWM) of its process and the maximum of its workers,
together with the plan's projection. Fails if a process needs more memory than projected, or less than
the projection divided by 1.3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from astropy.io import fits

from benchmarks.end_to_end import write_field
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline.memory import FLOW_BYTES, SERVER_BYTES
from fcnpipe.pipeline.plan import Plan, make_plan

MAX_RATIO = 1.3
"""Maximum ratio of projected to measured memory."""
POLL_SECONDS = 0.05
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A run: edge of its image in px, its options, number of bands (the image repeated), and how it is started.

    A flow is started as a command, which starts a Prefect server as well, or called from Python.
    """

    edge: int
    options: dict[str, object]
    bands: int = 1
    start: Literal["", "flow", "flow called"] = ""

    @property
    def name(self) -> str:
        """Description of the run."""
        options = " ".join(
            f"{key}={value}" for key, value in self.options.items() if key != "cluster"
        )
        bands = f" x {self.bands} bands" * (self.bands > 1)
        return f"{self.edge} px {self.start}{bands} {options}"


LOCAL = {"cluster_class": "distributed.LocalCluster"}
ONE_PROCESS = {**LOCAL, "cluster_kwargs": {"n_workers": 1, "threads_per_worker": 2}}
MAPS = {"weight": "weight", "mask": "mask", "keep_image": True}
SERIAL, NONE = {"engine": "serial"}, {"engine": "serial", "model": "none"}
NONE_DASK = {"engine": "dask", "model": "none", "tile": 512, "window": 512}
CASES = (
    *(Case(2048, {**NONE, "tile": tile, "window": 256}) for tile in (256, 1024)),
    *(Case(4096, {**NONE, "tile": tile}) for tile in (2048, 4096)),
    Case(4096, {**NONE, "tile": 2048, "window": 2048}),
    Case(2048, {**NONE, "tile": 1024}, bands=3),
    Case(4096, {**NONE, "tile": 2048, **MAPS}),
    Case(4096, {**NONE, "tile": 2048, **MAPS, "mincont": 0.005}),
    Case(4096, {**SERIAL, "tile": 2048, **MAPS}),
    Case(4096, {**SERIAL, "tile": 2048, **MAPS, "precision": "fp32"}),
    *(
        Case(2048, {**SERIAL, "precision": precision, "window": window, "tile": 1024})
        for precision in ("int8", "bf16", "fp32")
        for window in (256, 512, 1024)
    ),
    *(
        Case(edge, {**SERIAL, "precision": precision, "window": 2048, "tile": 2048})
        for precision in ("int8", "bf16", "fp32")
        for edge in (4096, 6144)
    ),
    Case(4096, {**SERIAL, "tile": 2048}),
    Case(4096, {**SERIAL, "tile": 2048, "window": 256}),
    Case(4096, {**SERIAL, "tile": 4096}),
    Case(4096, {"engine": "threads", "workers": 2}),
    Case(4096, {"engine": "threads", "workers": 2, "precision": "bf16"}),
    Case(4096, {"engine": "threads", "workers": 2, "model": "none"}),
    Case(2048, {"engine": "threads", "workers": 4, "window": 512, "tile": 512}),
    Case(4096, {"engine": "dask", "workers": 2}),
    Case(2048, {**NONE_DASK, "workers": 2}),
    Case(4096, {"engine": "dask", "cluster": ONE_PROCESS}),
    Case(4096, {"engine": "dask", "workers": 1}, start="flow"),
    Case(2048, {**NONE_DASK, "workers": 1}, start="flow"),
    Case(2048, {**NONE, "tile": 1024}, start="flow"),
    Case(4096, {**SERIAL, "tile": 2048}, start="flow"),
    Case(2048, {**NONE, "tile": 1024}, start="flow called"),
    Case(4096, {**SERIAL, "tile": 2048}, start="flow called"),
)
SMALL_CASES = (
    Case(1024, {**NONE, "tile": 512, "window": 512}),
    Case(1024, {"engine": "threads", "workers": 2, "window": 256, "tile": 512}),
)
"""Cases of ``--few``."""


def run_case(case: Case, folder: Path) -> tuple[Plan, list[int]]:
    """Run a case as a command; return its plan and the peak memory of its process and of each worker."""
    image, options = folder / f"{case.edge}.fits", folder / "options.yaml"
    if not image.exists():
        write_field(image, case.edge)
    names = {"image": [str(image)] * case.bands, "out": str(folder / "out.zarr")}
    arguments = {**names, "overwrite": True, "quiet": True, **case.options}
    for name in {"weight", "mask"} & arguments.keys():
        arguments[name] = str(write_map(folder / f"{name}{case.edge}.fits", case.edge))
    options.write_text(json.dumps(arguments))  # JSON is valid YAML
    host_bytes = FLOW_BYTES * (case.start != "") + SERVER_BYTES * (case.start == "flow called")
    # Plan before the run: the plan includes the compilation of kernels that are not compiled yet.
    plan = make_plan(make_spec(**arguments), host_bytes=host_bytes)
    return plan, measure_peaks([sys.executable, *COMMANDS[case.start], str(options)])


CALL = (
    "import sys; from fcnpipe.core.spec import load_spec; from flows.segment import segment; "
    "segment(load_spec(sys.argv[1]))"
)
COMMANDS = {
    "": ("-m", "fcnpipe", "segment", "--config"),
    "flow": ("-m", "flows.segment", "--config"),
    "flow called": ("-c", CALL),
}


def write_map(path: Path, edge: int) -> Path:
    """Write weights between 0 and 1, or a mask with 1 % of the pixels set."""
    drawn = np.random.default_rng(2).random((edge, edge), np.float32)
    bad = (drawn < 0.01).astype(np.uint8)
    fits.writeto(path, drawn if path.name.startswith("weight") else bad, overwrite=True)
    return path


def measure_peaks(command: list[str]) -> list[int]:
    """Run a command; return the peak resident bytes of its process, then of each process that it starts."""
    running = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    first, peaks = psutil.Process(running.pid), {running.pid: 0}
    while running.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for process in (first, *first.children(recursive=True)):
                peaks[process.pid] = max(peaks.get(process.pid, 0), read_peak(process.pid))
        time.sleep(POLL_SECONDS)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return [peak for peak in peaks.values() if peak > MIN_PEAK_BYTES]


MIN_PEAK_BYTES = 64 * MIB
"""Processes below this are ignored: Python starts them to track its shared memory."""


def read_peak(pid: int) -> int:
    """Return the peak resident bytes of a process; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 0


def compare(plan: Plan, peaks: list[int]) -> Iterator[tuple[str, int, int]]:
    """Yield each kind of process with its projected bytes and the maximum of its measured bytes."""
    if plan.driver_bytes:
        yield "driver", plan.driver_bytes, peaks[0]
        yield "worker", plan.memory_bytes, max(peaks[1:])
    else:
        yield "process", plan.memory_bytes, peaks[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", action="store_true", help="two small runs only")
    parser.add_argument("--only", default="", help="runs whose name contains this text")
    args = parser.parse_args()
    wrong = 0
    print(f"{'run':60} {'process':8}{'plan':>7} /{'peak':>6} MiB = ratio", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL_CASES if args.few else CASES:
            if args.only not in case.name:
                continue
            for what, projected, measured in compare(*run_case(case, Path(folder))):
                ratio = projected / measured
                wrong += not 1 <= ratio <= MAX_RATIO
                print(
                    f"{case.name:60} {what:8}{projected / MIB:7.0f} /{measured / MIB:6.0f} MiB = {ratio:.2f}"
                    + "  WRONG" * (not 1 <= ratio <= MAX_RATIO),
                    flush=True,
                )
    print(
        f"{wrong} processes needed more than projected, or less than the projection divided by {MAX_RATIO}"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
