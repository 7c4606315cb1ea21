"""Networks at their published width: the reach that NaNs show, and tiles against the whole in float64.

    OMP_NUM_THREADS=2 python -m benchmarks.full_width_networks fcn [--no-probe]

The tests do this for narrow networks of the same geometry; FCN-8s has 134 million weights, 1.1 GB in
float64. Weights are random. Prints the figures below and leaves with 1 if one of them is not as it
must be.

==========  ======================================================================================
parameters  number of weights
reach       read off the graph, and what NaNs show, all phases of the stride
tiles       largest difference from the whole with the least halo: at most 1e-12
short       the same with a halo one stride shorter: must be seen
origin      the same for a window that begins one pixel off the stride: must be seen
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
"""Least difference, of logits of order 1, that counts as seen."""


def offset_error(module: nn.Module, bands: int, reach: Reach) -> float:
    """Compare a window that begins one pixel off with the whole, beyond the reach of its edges."""
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
        # Values that are sent where the maxima were: a NaN is always the greatest.
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
    """Print, and tell whether all is well."""
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
