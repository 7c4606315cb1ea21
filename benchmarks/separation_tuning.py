"""Tuning of a model's separation options on skies that are not used for scores.

    python -m benchmarks.separation_tuning MODEL [--seeds 11,12] [--side 1024]

Runs the network once on each tuning sky of quality_scenes.py and on pure noise, then tries a grid
of options. Prints the ten options of lowest cost, with the scores of each kind of sky. The cost is
the sum of the mean B errors plus penalties for missed limits: purity below 0.96, more than 1 false
source per Mpix of noise, and fractions of separated pairs below 0.3, 0.75 and 0.9 at 1-1.5, 1.5-2
and 2-3 FWHM.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection_quality import Result, score_labels
from benchmarks.quality_scenes import KINDS, Field, simulate
from fcnpipe.networks import load_model
from fcnpipe.networks.base import Model
from fcnpipe.science.background import estimate_background
from fcnpipe.science.basins import separate_whole
from fcnpipe.science.merge_tree import Criterion
from fcnpipe.science.normalisation import flag_pixels, pad_high, signal_to_noise
from fcnpipe.science.quantisation import (
    ELEVATION_MAX,
    PROBABILITY_MAX,
    quantise_elevation,
    quantise_threshold,
)
from fcnpipe.simulation.scenes import KINDS as SCENES
from fcnpipe.simulation.scenes import draw
from fcnpipe.simulation.skies import SkySpec
from fcnpipe.training.targets import make_truth

FLOORS, HEATS = (0.55,), (0.4, 0.45)
THRESHOLDS = (0.3, 0.35)
DYNAMICS = (0.06, 0.075, 0.09)
PEAKS = (0.18, 0.2, 0.22)
AREAS = (5, 6)
BROAD = (14, 17, 20, 25)
STRUCTURED = "structured"
NOISE = "blank"
PAIRED = ("ground", "hst", "cluster")
"""Kinds in which pairs are scored: in ``crowded`` every fifth source is within 1 FWHM of a brighter
one."""
PURITY, FALSE_PER_MPIX, PAIRS = 0.96, 1.0, (0.3, 0.75, 0.9)


@dataclass(frozen=True)
class Options:
    """Separation options: a point of the grid."""

    floor: float
    heat: float
    thresh: float
    dynamics: float
    minpeak: float
    minarea: int
    broad: int


Trial = tuple[float, Options, float, dict[str, list[Result]]]
"""Cost, options, false sources per Mpix, and the results of each kind."""


@dataclass(frozen=True)
class PredictedSky:
    """A field and the outputs of the network."""

    kind: str
    field: Field
    probability: NDArray[np.float32]
    heat: NDArray[np.float32]
    relief: NDArray[np.float32]

    def separate(self, options: Options) -> NDArray[np.int32]:
        """Return the label image."""
        sure = np.maximum(self.heat - options.floor, 0) / (1 - options.floor)
        elevation = options.heat * sure + (1 - options.heat) * self.relief
        mask = np.rint(self.probability * PROBABILITY_MAX) >= quantise_threshold(
            options.thresh, PROBABILITY_MAX
        )
        criterion = Criterion(quantise_threshold(options.dynamics, ELEVATION_MAX), options.minarea)
        peak = quantise_threshold(options.minpeak, ELEVATION_MAX)
        steps = quantise_elevation(elevation.astype(np.float32))
        return separate_whole(steps, mask, criterion, minpeak=peak, broad=options.broad)[0]


def draw_structured(seed: int, side: int) -> Field:
    """Return a sky with large galaxies full of arms and clumps, from the generator of the training scenes.

    Each galaxy is one source.
    """
    spec = replace(
        SCENES["ground"], large_galaxies=(4.0, 8.0), sky=SkySpec(picture=0, saturated=0, dead=0)
    )
    scene = draw(spec, (side, side), 40_000_000 + seed)
    flat = np.zeros((1, 1), np.float32)
    return Field(scene.image, float(np.median(scene.noise)), flat, scene.fwhm_px, make_truth(scene))


def predict_sky(kind: str, seed: int, side: int, model: Model) -> PredictedSky:
    """Run the network on a sky."""
    import torch

    field = draw_structured(seed, side) if kind == STRUCTURED else simulate(kind, seed, side)
    shape = field.image.shape
    found = estimate_background(field.image, ~np.isfinite(field.image))
    flags = flag_pixels(field.image)
    noise = found.noise(0, 0, shape)
    snr = signal_to_noise(field.image - found.sky(0, 0, shape), noise, flags)
    padded = pad_high(snr, tuple(-(-n // model.stride) * model.stride for n in shape))
    predictor = model.predictor("cpu", "auto")
    with torch.inference_mode():
        logits = predictor.module(predictor._input(padded[None]))[0].float()  # type: ignore[attr-defined]
    maps = torch.sigmoid(logits).numpy()[:, : shape[0], : shape[1]]
    return PredictedSky(kind, field, *(np.ascontiguousarray(m) for m in maps))


def compute_cost(results: dict[str, list[Result]], false_per_mpix: float) -> float:
    """Return the sum over kinds of the mean B error, plus a penalty for each missed limit."""
    cost = max(false_per_mpix - 0.8 * FALSE_PER_MPIX, 0) * 0.05
    for kind, found in results.items():
        purity = np.mean([r.scores.precision for r in found])
        pairs = np.nanmean([r.pairs[1:4] for r in found], axis=0)
        cost += float(np.mean([r.scores.b_error for r in found]))
        cost += 1.0 * max(PURITY + 0.003 - purity, 0)
        if kind in PAIRED:
            cost += 0.1 * float(np.maximum(np.array(PAIRS) - pairs, 0).sum())
    return cost


SKIES: list[PredictedSky] = []
"""Skies on which options are tried; the processes of the pool inherit them."""


def try_options(options: Options) -> Trial:
    """Score a point of the grid on all SKIES."""
    results: dict[str, list[Result]] = {}
    noise, mpix = 0, 0.0
    for sky in SKIES:
        label = sky.separate(options)
        if sky.kind == NOISE:
            noise, mpix = noise + int(label.max()), mpix + label.size / 1e6
        else:
            results.setdefault(sky.kind, []).append(score_labels(label, sky.field))
    return compute_cost(results, noise / mpix), options, noise / mpix, results


def main() -> None:
    """Print the ten best points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seeds", default="11,12")
    parser.add_argument("--side", type=int, default=1024)
    args = parser.parse_args()
    model = load_model(args.model)
    seeds = [int(s) for s in args.seeds.split(",")]
    kinds = (*KINDS, STRUCTURED)
    SKIES.extend(predict_sky(kind, seed, args.side, model) for seed in seeds for kind in kinds)
    SKIES.extend(predict_sky(NOISE, seed, 2 * args.side, model) for seed in seeds)
    grid = itertools.product(FLOORS, HEATS, THRESHOLDS, DYNAMICS, PEAKS, AREAS, BROAD)
    with multiprocessing.get_context("fork").Pool() as pool:  # forked processes share the skies
        tried = list(pool.imap(try_options, (Options(*point) for point in grid)))
    for cost, options, false, results in sorted(tried, key=lambda t: t[0])[:10]:
        print(f"cost {cost:.4f}: {options}, {false:.2f} false sources per Mpix of noise")
        for kind, found in results.items():
            s = [r.scores for r in found]
            numbers = [
                np.mean([getattr(x, n) for x in s]) for n in ("b_error", "f_score", "precision")
            ]
            pairs = np.nanmean([r.pairs for r in found], axis=0)
            named = zip(("B error", "F score", "purity"), numbers, strict=True)
            scores = ", ".join(f"{name} {value:.3f}" for name, value in named)
            print(f"    {kind}: {scores}, pairs {np.round(pairs, 2)}")


if __name__ == "__main__":
    main()
