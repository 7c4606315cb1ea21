"""Accuracy and speed of bulge-disk decomposition: network against least-squares fit of two profiles.

    python -m benchmarks.bulge_disk [MODEL] [--stamps 500] [--seed 900000]

Both measure the same stamps (fcnpipe.simulation.galaxies). The fit knows the PSF, the two Sersic
indices and the noise; the network knows none of them. Prints bias and scatter (1.48 MAD) of the
bulge-to-total flux ratio by signal-to-noise ratio, and the time for a stamp.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from fcnpipe.simulation.galaxies import SIDE, Galaxy, Stamp, draw_galaxy
from fcnpipe.simulation.profiles import SersicComponent

Doubles = NDArray[np.float64]
Measure = Callable[[Stamp], float]

STARTS = (0.1, 0.5, 0.9)
"""Initial values of the bulge-to-total ratio in the fits."""
STEP = 1e-3
"""Relative step of the numerical derivatives, because stamps are float32."""
SNR_EDGES = (15, 40, 100, 300)


def fit(stamp: Stamp) -> float:
    """Return the bulge-to-total ratio of the best of three least-squares fits that start at the stamp's moments."""
    fits = [
        optimize.least_squares(
            lambda values: _residuals(values, stamp),
            _initial_values(stamp.image, part),
            diff_step=STEP,
            max_nfev=100,
        )
        for part in STARTS
    ]
    best = min(fits, key=lambda found: float(found.cost))
    bulge, disk = _make_galaxy(best.x).draw(stamp.psf)
    return float(bulge.sum() / max(float(bulge.sum() + disk.sum()), 1e-9))


def _residuals(values: Doubles, stamp: Stamp) -> Doubles:
    bulge, disk = _make_galaxy(values).draw(stamp.psf)
    return np.asarray((bulge + disk - stamp.image).ravel(), np.float64)


def _make_galaxy(values: Doubles) -> Galaxy:
    """Return the galaxy of ten unbounded numbers.

    They are the centre, then twice log flux, log radius, logit of the axis ratio, and angle.
    """
    y, x = np.clip(values[:2], -SIDE / 4, SIDE / 4)
    parts = [
        SersicComponent(
            float(np.exp(np.clip(flux, -10, 20))),
            index,
            float(np.exp(np.clip(radius, np.log(0.2), np.log(SIDE / 2)))),
            float(0.1 + 0.9 * special.expit(ratio)),
            float(angle),
        )
        for index, (flux, radius, ratio, angle) in zip(
            (4.0, 1.0), values[2:].reshape(2, 4), strict=True
        )
    ]
    return Galaxy(*parts, (float(y), float(x)))


def _initial_values(image: NDArray[np.float32], part: float) -> Doubles:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    light = np.where(np.hypot(y, x) < SIDE / 4, np.maximum(image, 0), 0).astype(float)
    total = max(float(light.sum()), 1.0)
    yy, xx, xy = ((light * a).sum() / total for a in (y * y, x * x, x * y))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    radius = np.log(max(np.sqrt(xx + yy) * 0.8, 1.0))
    bulge, disk = np.log(part * total), np.log((1 - part) * total)
    return np.array([0.1, 0.1, bulge, radius - 1, 1.0, angle, disk, radius, 0.5, angle])


def measure_errors(measure: Measure, stamps: list[Stamp]) -> tuple[Doubles, float]:
    """Return the error of the bulge-to-total ratio of each stamp, and the seconds for a stamp."""
    started = time.perf_counter()
    found = np.array([measure(stamp) for stamp in stamps])
    seconds = (time.perf_counter() - started) / len(stamps)
    return found - np.array([stamp.bulge_to_total for stamp in stamps]), seconds


def make_network_measure(name: str) -> Measure:
    """Return the measurement of a model: the flux of its bulge over that of both components."""
    from fcnpipe.networks import Bundle, load_model

    bundle = load_model(name)
    assert isinstance(bundle, Bundle)
    module = bundle.module()
    order = [output.name for output in bundle.header.outputs]

    def measure(stamp: Stamp) -> float:
        import torch

        with torch.inference_mode():
            x = torch.asinh(torch.from_numpy(stamp.image))[None, None]
            maps = dict(zip(order, module(x)[0].numpy(), strict=True))
        total = float(maps["bulge"].sum() + maps["disk"].sum())
        return float(maps["bulge"].sum()) / max(total, 1e-9)

    return measure


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--stamps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=900_000)
    args = parser.parse_args()
    stamps = [draw_galaxy(args.seed + k) for k in range(args.stamps)]
    tools = {"least squares": fit}
    if args.model:
        tools = {args.model: make_network_measure(args.model), **tools}
    print("bias and scatter of the bulge-to-total ratio by S/N, and time for a stamp")
    heads = [f"S/N {low}-{high}" for low, high in itertools.pairwise(SNR_EDGES)]
    print("tool".ljust(20), *(f"{head:12} |" for head in (*heads, "all")), "ms/stamp")
    snr = np.array([stamp.snr for stamp in stamps])
    for tool, measure in tools.items():
        error, seconds = measure_errors(measure, stamps)
        line = [_describe(error[(snr >= a) & (snr < b)]) for a, b in itertools.pairwise(SNR_EDGES)]
        print(tool.ljust(20), *line, _describe(error), f"{1e3 * seconds:8.1f}")


def _describe(error: Doubles) -> str:
    middle = float(np.median(error)) if len(error) else np.nan
    scatter = 1.4826 * float(np.median(np.abs(error - middle))) if len(error) else np.nan
    return f"{middle:+.3f} {scatter:.3f} |"


if __name__ == "__main__":
    main()
