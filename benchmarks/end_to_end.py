"""End-to-end throughput: the whole job against a bare forward pass of its network and MONAI's sliding window.

    python -m benchmarks.end_to_end --edge 16384 --rounds 3

Prints Mpix/s of each, interleaved, the median ratios, and the peak resident memory of every process
of the whole job. The bare forward pass runs the same network over the same windows (core + halo,
one single-threaded process per core, the same tuned allocator) and discards the outputs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import psutil
from astropy.io import fits

from fcnpipe import networks
from fcnpipe.core.geometry import Box
from fcnpipe.core.spec import make_spec
from fcnpipe.networks.base import Predictor
from fcnpipe.pipeline.plan import Plan, make_plan
from fcnpipe.pipeline.run import segment
from fcnpipe.reporting.observers import SilentObserver

Window = tuple[tuple[int, int], Box]
"""Shape of a window with its halo, and its core in the pixels of that window."""

SCENE_SIDE = 1024
"""Side of a simulated scene, px."""
SCENE_COUNT = 8
"""Number of scenes that the field repeats."""


def write_field(path: Path, edge: int) -> None:
    """Write a square image of a few simulated scenes that are repeated, rotated and mirrored, row by row."""
    from fcnpipe.simulation.scenes import draw

    kinds = ("ground", "crowded", "cluster", "sparse")
    scenes = [
        draw(kinds[i % 4], (SCENE_SIDE, SCENE_SIDE), 900 + i).image for i in range(SCENE_COUNT)
    ]
    scenes = [
        np.nan_to_num(s - np.nanmedian(s)) / np.nanstd(s[s < np.nanmedian(s)]) for s in scenes
    ]
    rng = np.random.default_rng(1)
    header = fits.Header(
        {"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": edge, "NAXIS2": edge}
    )
    stream = fits.StreamingHDU(path, header)
    for y in range(0, edge, SCENE_SIDE):
        row = [
            np.rot90(scenes[rng.integers(SCENE_COUNT)], rng.integers(4))
            for _ in range(0, edge, SCENE_SIDE)
        ]
        stream.write(np.hstack(row)[: edge - y, :edge].astype(np.float32))
    stream.close()


class Stopwatch(SilentObserver):
    """Records the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def end(self, stage: str, seconds: float) -> None:
        """Record the seconds of a stage."""
        self.seconds[stage] = seconds


def run_whole(image: Path, out: Path, options: dict[str, object]) -> tuple[float, dict[int, int]]:
    """Run the whole job; return its seconds and the peak resident bytes of each process."""
    peaks: dict[int, int] = {}
    over = threading.Event()
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark of earlier rounds
    watch = threading.Thread(target=_record_peaks, args=(peaks, over))
    watch.start()
    started = time.perf_counter()
    stages = Stopwatch()
    spec = make_spec(image=(str(image),), out=str(out), overwrite=True, **options)
    result = segment(spec, stages)
    seconds = time.perf_counter() - started
    over.set()
    watch.join()
    rest = seconds - sum(stages.seconds.values())
    parts = ", ".join(f"{name} {spent:.1f}" for name, spent in stages.seconds.items())
    print(f"  {result.sources} sources; seconds: {parts}, before and after {rest:.1f}")
    return seconds, peaks


def _record_peaks(peaks: dict[int, int], over: threading.Event) -> None:
    # The kernel keeps the high-water mark of each process, so reading it once a second suffices.
    me = psutil.Process()
    while not over.wait(1):
        for process in [me, *me.children(recursive=True)]:
            with suppress(OSError, StopIteration):
                status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                line = next(line for line in status if line.startswith("VmHWM"))
                peaks[process.pid] = int(line.split()[1]) * 1024


def run_bare(network: tuple[str, str], windows: list[Window], processes: int) -> float:
    """Return the seconds of the bare forward pass of a (model, precision) over windows, with all processes."""
    os.environ.update(networks.worker_environment())
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _load_predictor, network) as pool:
        pool.map(_run_window, windows[: 2 * processes], chunksize=1)
        started = time.perf_counter()
        for _ in pool.imap_unordered(_run_window, windows, chunksize=1):
            pass
        return time.perf_counter() - started


_PREDICTOR: Predictor


def _load_predictor(model: str, precision: str) -> None:
    global _PREDICTOR
    networks.tune_allocator()
    _PREDICTOR = networks.load_model(model).predictor("cpu", precision, threads=1)


def _run_window(window: Window) -> None:
    shape, core = window
    _PREDICTOR(_noise(shape), core)


@cache
def _noise(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, *shape), np.float32)


def run_monai(model: str, edge: int, roi: int) -> float:
    """Return the seconds of MONAI's sliding window (float32, default overlap of 0.25) over a square image."""
    import torch
    from monai.inferers import sliding_window_inference

    module = networks.load_model(model).module()  # type: ignore[attr-defined]
    torch.set_num_threads(os.cpu_count() or 1)
    image = torch.randn(1, 1, edge, edge)
    with torch.inference_mode():
        started = time.perf_counter()
        sliding_window_inference(image, (roi, roi), 4, module)
        return time.perf_counter() - started


def list_windows(plan: Plan) -> list[Window]:
    """Return the windows that the plan feeds to the network."""
    reads = [(w.core, w.core.grow(plan.halo).clip(plan.canvas)) for w in plan.windows]
    return [(read.shape, core.relative_to(read)) for core, read in reads]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="default")
    parser.add_argument("--engine", default="threads")
    parser.add_argument("--precision", default="auto", help="precision of the whole job")
    parser.add_argument(
        "--bare-precision",
        default="",
        help="precision of the bare pass; default: that of the whole job",
    )
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument(
        "--bare-part", type=int, default=1, help="run the bare pass on every n-th window"
    )
    parser.add_argument(
        "--monai-edge", type=int, default=None, help="side of MONAI's image, px; 0: skip"
    )
    parser.add_argument("--monai-roi", type=int, default=512)
    parser.add_argument("--folder", default=None)
    return parser.parse_args()


def main() -> None:
    args = parse()
    folder = Path(args.folder or tempfile.mkdtemp())
    image, out = folder / f"field{args.edge}.fits", folder / "field.zarr"
    if not image.exists():
        write_field(image, args.edge)
    cores = os.cpu_count() or 1
    monai_edge = args.edge if args.monai_edge is None else args.monai_edge
    bare_precision = args.bare_precision or args.precision
    options = {"model": args.model, "engine": args.engine, "workers": cores, "window": args.window}
    options["precision"] = args.precision
    plan = make_plan(make_spec(image=(str(image),), out=str(out), **options))
    windows = list_windows(plan)[:: args.bare_part]
    part = len(windows) / len(plan.windows)
    mpix, ratios, peers = args.edge**2 / 1e6, [], []
    for number in range(args.rounds):
        bare = run_bare((args.model, bare_precision), windows, cores) / part
        seconds, peaks = run_whole(image, out, options)
        ratios.append(seconds / bare)
        line = (
            f"round {number}: bare pass {mpix / bare:.2f} Mpix/s, whole job {mpix / seconds:.2f} Mpix/s, "
            f"time ratio {ratios[-1]:.2f}"
        )
        if monai_edge:
            process = multiprocessing.get_context("spawn").Pool(1)
            peer = process.apply(run_monai, (args.model, monai_edge, args.monai_roi))
            process.terminate()
            rate = monai_edge**2 / 1e6 / peer
            peers.append(mpix / seconds / rate)
            line += f", MONAI (network only) {rate:.2f} Mpix/s, speed-up {peers[-1]:.2f}"
        print(line)
        print(
            "  peak memory:",
            ", ".join(f"{v / 2**30:.2f}" for v in sorted(peaks.values())[::-1]),
            "GiB",
        )
    print(f"time of whole job / bare pass: median {statistics.median(ratios):.2f}")
    if peers:
        print(f"throughput of whole job / MONAI: median {statistics.median(peers):.2f}")
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
