"""Networks at their published width: reach measured with NaNs, and tiles against the whole image in float64.

    OMP_NUM_THREADS=2 python -m benchmarks.full_width_networks fcn [--no-probe]

The tests check narrow networks of the same geometry; FCN-8s has 134 million weights, 1.1 GB in
float64. Weights are random. Prints the figures below and exits with status 1 if one of them is
wrong.

==========  ======================================================================================
parameters  number of weights
reach       computed from the graph, and measured with NaNs at all phases of the stride
tiles       maximum difference from the whole image with the minimum halo: at most 1e-12
short       the same with a halo that is one stride shorter: the difference must be visible
origin      the same for a window that starts one pixel off the stride: it must be visible
==========  ======================================================================================
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fcnpipe.networks.architectures.registry import architecture, list_architectures
from fcnpipe.networks.base import Reach
from fcnpipe.networks.inference.memory_allocator import tune_allocator
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import TOLERANCE, probe, tiling_error

MIN_VISIBLE = 1e-6
"""Minimum visible difference, of logits of order 1."""


def offset_error(module: nn.Module, bands: int, reach: Reach) -> float:
    """Return the difference between a strip and a window of it that starts one pixel off the stride.

    Pixels within the reach of the window's edges are not compared.
    """
    stride, length = reach.stride_x, 2 * reach.halo + 2 * reach.stride_x
    strip = torch.randn(1, bands, stride, length + stride, dtype=torch.float64)
    with torch.no_grad():
        whole, part = module(strip), module(strip[..., 1 : 1 + length])
    inner = slice(reach.furthest, length - reach.furthest)
    shifted = whole[..., 1 : 1 + length]
    scale = max(1.0, float(whole.abs().max()))
    return float((part - shifted)[..., inner].abs().max()) / scale


def check(name: str, with_probe: bool, report: Callable[[str, Any, bool], None]) -> None:
    """Measure an architecture with its published arguments."""
    torch.manual_seed(0)
    module = architecture(name)().eval()
    bands = int(module.arguments["bands"])  # type: ignore[index, call-overload]
    report("parameters", sum(p.numel() for p in module.parameters()), True)
    reach = analyse(module, bands)
    report("reach, graph", reach, True)
    if with_probe:
        seen = probe(module, bands, reach)
        # Unpooling sends values to the positions of the maxima, and a NaN is always the maximum.
        report("reach, NaNs", seen, seen == reach or name.startswith("segnet"))
    precise = architecture(name)().eval().double()
    del module
    error = tiling_error(precise, bands, reach, reach.minimum_halo)
    report("tiles", f"{error:.1e}", error <= TOLERANCE)
    short = tiling_error(precise, bands, reach, reach.minimum_halo - reach.stride)
    report("short", f"{short:.1e}", short > MIN_VISIBLE)
    if reach.stride > 1:
        off = offset_error(precise, bands, reach)
        report("origin", f"{off:.1e}", off > MIN_VISIBLE)


def main() -> int:
    """Print the figures; return 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list_architectures(), nargs="?", default="fcn")
    parser.add_argument("--no-probe", action="store_true")
    args = parser.parse_args()
    tune_allocator()
    started, results = time.perf_counter(), []

    def report(what: str, value: Any, holds: bool) -> None:
        results.append(holds)
        seconds = time.perf_counter() - started
        print(f"{what:13s} {'' if holds else 'WRONG '}{value}  ({seconds:.0f} s)", flush=True)

    check(args.name, not args.no_probe, report)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
