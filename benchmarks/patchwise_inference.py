"""Speed of Ciresan's network at every pixel: patch-wise against dense inference, interleaved.

    python -m benchmarks.patchwise_inference --patches 64 --edge 256 --rounds 3

Prints the median time for a pixel and its spread for both, and the ratios of time and of
multiplications. Both compute the same logits; the maximum difference is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]


def make_runs(options: argparse.Namespace) -> dict[str, tuple[Run, int]]:
    """Return the two ways of inference and the number of pixels that each labels."""
    import torch

    from fcnpipe.networks.architectures.ciresan import PATCH_SIDE, Ciresan, CiresanPatch

    torch.manual_seed(0)
    patch = CiresanPatch(maps=options.maps).eval()
    dense = Ciresan.from_patch(patch, padding="valid")
    image = torch.randn(1, 1, *(options.edge + PATCH_SIDE - 1,) * 2)
    row = image.unfold(2, PATCH_SIDE, 1).unfold(3, PATCH_SIDE, 1)[0, 0].flatten(0, 1)
    patches = row[: options.patches, None].contiguous()
    return {
        "patch by patch": (lambda: patch(patches), len(patches)),
        "dense": (lambda: dense(image)[0].flatten(1).T, options.edge**2),
    }


def count_operations(maps: int) -> tuple[int, int]:
    """Return the number of multiplications for a pixel, of a patch and of a large image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fcnpipe.networks.architectures.ciresan import PATCH_SIDE, Ciresan, CiresanPatch

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        CiresanPatch(maps=maps)(torch.empty(1, 1, PATCH_SIDE, PATCH_SIDE))
        kernels = [p.numel() for p in Ciresan(maps=maps).parameters() if p.dim() > 1]
    return counter.get_total_flops() // 2, sum(kernels)


def measure(runs: dict[str, tuple[Run, int]], rounds: int) -> dict[str, list[float]]:
    """Time each way once in each round, after one warm-up round; return seconds for a pixel."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, (run, pixels) in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - started) / pixels)
    return {name: values[1:] for name, values in seconds.items()}


def report(seconds: dict[str, list[float]]) -> float:
    """Print a line for each way; return the speed-up of the last over the first."""
    medians = [statistics.median(values) for values in seconds.values()]
    for (name, values), median in zip(seconds.items(), medians, strict=True):
        spread = (max(values) - min(values)) / median
        print(f"{name:16s} {1e6 * median:10.2f} us/px  +-{spread / 2:4.0%}")
    return medians[0] / medians[-1]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=64, help="number of patches in a batch")
    parser.add_argument("--edge", type=int, default=256, help="side of the dense output, px")
    parser.add_argument("--maps", type=int, default=48, help="feature maps of a layer")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    import torch

    options = parse()
    torch.set_num_threads(1)
    with torch.inference_mode():
        runs = make_runs(options)
        slow, fast = (run() for run, _ in runs.values())
        pixels = min(len(slow), len(fast))
        print(f"maximum difference: {float((slow[:pixels] - fast[:pixels]).abs().max()):.1e}")
        faster = report(measure(runs, options.rounds))
    patch, dense = count_operations(options.maps)
    print(f"speed-up: x{faster:.0f} in time, x{patch / dense:.0f} in multiplications")


if __name__ == "__main__":
    main()
