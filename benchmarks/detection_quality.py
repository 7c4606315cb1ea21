"""Quality of detection and separation of sources, compared with SEP at its best settings.

    python -m benchmarks.detection_quality [MODEL] [--side 1536] [--seed 31] [--kinds ground,hst,crowded,cluster]

The skies are those of quality_scenes.py, which differ from those of the training. SEP is tuned for
each kind on another seed over the grid below, once for the B error and once for the F score. The
model runs with the defaults of its header. The scores are those of Haigh et al. (2021), see
fcnpipe/science/scores.py. Pairs: fraction of the pairs with S/N >= 10 and a flux ratio <= 4 of
which both sources are found, at separations of 0.75-1, 1-1.5, 1.5-2 and 2-3 FWHM.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray

from benchmarks.quality_scenes import KINDS, Field, simulate
from fcnpipe.networks import load_model
from fcnpipe.networks.base import Model, threshold_of
from fcnpipe.science.background import estimate_background
from fcnpipe.science.basins import separate_whole
from fcnpipe.science.merge_tree import Criterion
from fcnpipe.science.normalisation import flag_pixels, pad_high, signal_to_noise
from fcnpipe.science.quantisation import (
    ELEVATION_MAX,
    PROBABILITY_MAX,
    quantise_elevation,
    quantise_probability,
    quantise_threshold,
)
from fcnpipe.science.scores import Scores, completeness, match, pair_recall, score

Labels = NDArray[np.int32]

TUNING_SEED, TUNING_SIDE = 11, 768
MESHES, WIDTHS, CONTRASTS = (32, 128), (0.7, 1.0, 1.4), (1e-5, 2e-4)
THRESHOLDS = (0.5, 0.65, 0.8, 1.0, 1.3)  # 1 and above suit undersampled PSFs
SNR_EDGES = (3, 5, 10, 30, 1e6)


@dataclass(frozen=True)
class Setting:
    """SEP settings: mesh in px, kernel width in FWHM, threshold in raw noises, deblending contrast."""

    mesh: int
    width: float
    threshold: float
    contrast: float


@dataclass(frozen=True)
class Result:
    """Scores of a tool on a field."""

    scores: Scores
    pairs: NDArray[np.float64]
    complete: NDArray[np.float64]


def run_sep(field: Field, setting: Setting) -> Labels:
    """Return the segmentation map of SEP."""
    sep.set_extract_pixstack(5_000_000)
    sep.set_sub_object_limit(1_000_000)
    image = np.ascontiguousarray(field.image, np.float32)
    sky = sep.Background(image, bw=setting.mesh, bh=setting.mesh)
    _, label = sep.extract(
        image - sky,
        setting.threshold * sky.globalrms,
        filter_kernel=_kernel(setting.width * field.fwhm_px),
        filter_type="conv",
        minarea=5,
        deblend_nthresh=64,
        deblend_cont=setting.contrast,
        segmentation_map=True,
    )
    return np.asarray(label, np.int32)


def run_model(field: Field, model: Model) -> Labels:
    """Return the label image of a model with the defaults of its header, as the pipeline computes it."""
    shape = field.image.shape
    found = estimate_background(field.image, ~np.isfinite(field.image))
    flags = flag_pixels(field.image)
    residual = field.image - found.sky(0, 0, shape)
    snr = signal_to_noise(residual, found.noise(0, 0, shape), flags)
    padded = pad_high(snr, tuple(-(-n // model.stride) * model.stride for n in shape))
    maps = model.predictor("cpu", "auto")(padded[None])
    box = np.s_[: shape[0], : shape[1]]
    probability = quantise_probability(maps.probability[0][box])
    elevation = quantise_elevation(maps.elevation[box])
    defaults = model.header.defaults
    height = quantise_threshold(defaults.dynamics, ELEVATION_MAX)
    label, _ = separate_whole(
        elevation,
        probability >= quantise_threshold(threshold_of(model.header), PROBABILITY_MAX),
        Criterion(dynamics=height, minarea=defaults.minarea),
        minpeak=quantise_threshold(defaults.minpeak, ELEVATION_MAX),
        broad=defaults.broad,
    )
    return label


def score_labels(label: Labels, field: Field) -> Result:
    """Score a label image."""
    matched = match(label, field.truth)
    pairs, _ = pair_recall(matched, field.truth, field.fwhm_px)
    complete, _ = completeness(matched, field.truth, SNR_EDGES)
    return Result(score(label, field.truth), pairs, complete)


def tune_sep(kind: str) -> tuple[Setting, Setting]:
    """Return SEP's best settings for a kind, by B error and by F score, on a seed that is not scored."""
    field = simulate(kind, TUNING_SEED, TUNING_SIDE)
    grid = [Setting(*g) for g in itertools.product(MESHES, WIDTHS, THRESHOLDS, CONTRASTS)]
    scores = [score(run_sep(field, setting), field.truth) for setting in grid]
    by_b = min(range(len(grid)), key=lambda i: scores[i].b_error)
    by_f = max(range(len(grid)), key=lambda i: scores[i].f_score)
    return grid[by_b], grid[by_f]


def compare(kind: str, model: Model, seed: int, side: int) -> Iterator[tuple[str, Result]]:
    """Yield the name and the result of each tool on a field of a kind."""
    field = simulate(kind, seed, side)
    for name, setting in zip(("SEP, best B", "SEP, best F"), tune_sep(kind), strict=True):
        yield name, score_labels(run_sep(field, setting), field)
    yield model.header.name, score_labels(run_model(field, model), field)


def measure_false_sources(model: Model, seed: int, side: int = 2048, skies: int = 4) -> float:
    """Return the number of sources found per Mpix of pure noise."""
    found = [run_model(simulate("blank", seed + k, side), model).max() for k in range(skies)]
    return float(sum(found) / (skies * side**2 / 1e6))


def print_row(kind: str, name: str, result: Result) -> None:
    """Print one row of the table: the result of a tool on a kind of sky."""
    s = result.scores
    numbers = (s.f_score, s.precision, s.recall, s.under_merging, s.over_merging, s.b_error)
    lists = (" ".join(f"{v:.2f}" for v in part) for part in (result.pairs, result.complete))
    print(
        f"| {kind} | {name} |", " | ".join(f"{v:.3f}" for v in numbers), "|", " | ".join(lists), "|"
    )


def _kernel(fwhm_px: float) -> NDArray[np.float32]:
    half = int(np.ceil(1.5 * fwhm_px))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.exp(-4 * np.log(2) * (x * x + y * y) / fwhm_px**2)
    return (kernel / kernel.sum()).astype(np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--side", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    model = load_model(args.model)
    print(
        "| sky | tool | F score | precision | recall | under-merging | over-merging | B error | pairs "
        "at 0.75-1, 1-1.5, 1.5-2, 2-3 FWHM | completeness at S/N 3-5, 5-10, 10-30, >= 30 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in args.kinds.split(","):
        for name, result in compare(kind, model, args.seed, args.side):
            print_row(kind, name, result)
    print(f"false sources per Mpix of noise: {measure_false_sources(model, args.seed):.2f}")


if __name__ == "__main__":
    main()
