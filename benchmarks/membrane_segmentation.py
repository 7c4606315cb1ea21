"""Segmentation of cells in electron micrographs: a model and fcnpipe's separation against blur and threshold.

    python -m benchmarks.membrane_segmentation MODEL FOLDER [--choose 16-19] [--train 12-15]

FOLDER contains image/N.png and label/N.png of the ISBI 2012 challenge. The separation options are
tuned on training slices and, for comparison, on the held-out slices themselves. Prints the pixel
error and the adapted Rand error of the held-out slices. The truth is the 4-connected components of
the cells; pixels on its membranes are not counted. The baseline is a blur and a threshold, tuned in
the same way.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import label as label_components
from skimage.metrics import adapted_rand_error

from fcnpipe.networks import load_model
from fcnpipe.networks.base import Model
from fcnpipe.science.basins import separate_whole
from fcnpipe.science.merge_tree import Criterion
from fcnpipe.science.normalisation import pad_high
from fcnpipe.science.quantisation import (
    ELEVATION_MAX,
    PROBABILITY_MAX,
    quantise_elevation,
    quantise_probability,
    quantise_threshold,
)
from fcnpipe.training.labelled_images import (
    LabelledImage,
    PairsSpec,
    compress_input,
    measure_scaling,
    read_pairs,
)

Labels = NDArray[np.int32]
SHARES = (0.5, 0.7, 0.85, 1.0)
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
DYNAMICS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
AREAS = (10, 40, 120)
BLURS, GREYS = (1.0, 1.5, 2.0, 3.0), (-0.6, -0.4, -0.2, 0.0, 0.2)


@dataclass(frozen=True)
class Options:
    """Separation options: a point of the grid."""

    share: float
    """Share of the source probability in the elevation; the rest is that of the relief."""
    thresh: float
    dynamics: float
    minarea: int


@dataclass(frozen=True)
class Slice:
    """A slice and the outputs of the network."""

    pair: LabelledImage
    source: NDArray[np.float32]
    relief: NDArray[np.float32]

    @property
    def truth(self) -> Labels:
        """Number of each cell; 0 on membranes."""
        return label_cells(self.pair.truth)

    def separate(self, options: Options) -> Labels:
        """Return the label image of the cells."""
        elevation = options.share * self.source + (1 - options.share) * self.relief
        mask = quantise_probability(self.source) >= quantise_threshold(
            options.thresh, PROBABILITY_MAX
        )
        criterion = Criterion(quantise_threshold(options.dynamics, ELEVATION_MAX), options.minarea)
        steps = quantise_elevation(np.clip(elevation, 0, 1).astype(np.float32))
        return separate_whole(steps, mask, criterion)[0]


def label_cells(cells: NDArray[np.int32]) -> Labels:
    """Return the 4-connected components of the cells, numbered from 1."""
    return label_components(cells > 0, connectivity=1)


def predict_slices(model: Model, pairs: list[LabelledImage]) -> list[Slice]:
    """Run the network on slices."""
    predictor = model.predictor("cpu", "auto")
    found = []
    for pair in pairs:
        x = compress_input(pair.x, model.header.scaling)
        shape = x.shape[1:]
        padded = pad_high(x, tuple(-(-n // model.stride) * model.stride for n in shape))
        outputs = predictor.outputs(padded)[:, : shape[0], : shape[1]]
        found.append(Slice(pair, *(np.ascontiguousarray(o) for o in outputs)))
    return found


def rand_error(truth: Labels, found: Labels) -> float:
    """Return the adapted Rand error, 1 - F of pairs of pixels, without the truth's membranes."""
    return float(adapted_rand_error(truth, found, ignore_labels=(0,))[0])


def pixel_error(slices: Iterable[Slice]) -> float:
    """Return the fraction of pixels on the wrong side of 0.5."""
    return float(np.mean([((s.source >= 0.5) != (s.pair.truth > 0)).mean() for s in slices]))


def mean_rand_error(slices: list[Slice], options: Options) -> float:
    """Return the mean adapted Rand error of slices that are separated with these options."""
    return float(np.mean([rand_error(s.truth, s.separate(options)) for s in slices]))


def list_options() -> list[Options]:
    """Return all points of the grid."""
    return [Options(*p) for p in itertools.product(SHARES, THRESHOLDS, DYNAMICS, AREAS)]


def tune(slices: list[Slice]) -> Options:
    """Return the options of minimum mean adapted Rand error.

    The errors are smoothed over the grid, so that a point that is good by chance is not selected.
    """
    grid = list_options()
    truths = [s.truth for s in slices]
    errors = {
        o: float(
            np.mean([rand_error(t, s.separate(o)) for t, s in zip(truths, slices, strict=True)])
        )
        for o in grid
    }
    table = np.array(list(errors.values())).reshape(
        len(SHARES), len(THRESHOLDS), len(DYNAMICS), len(AREAS)
    )
    smooth = gaussian_filter(table, (0.5, 0.7, 0.7, 0.5), mode="nearest")
    return grid[int(np.argmin(smooth))]


def blur_and_threshold(pairs: list[LabelledImage], sigma: float, grey: float) -> list[Labels]:
    """Return the cells of the baseline: pixels that are brighter than a threshold after a blur."""
    return [label_cells((gaussian_filter(p.x[0], sigma) > grey).astype(np.int32)) for p in pairs]


def score_baseline(pairs: list[LabelledImage], sigma: float, grey: float) -> tuple[float, float]:
    """Return pixel error and mean adapted Rand error of the baseline."""
    found = blur_and_threshold(pairs, sigma, grey)
    pixels = [((f > 0) != (p.truth > 0)).mean() for f, p in zip(found, pairs, strict=True)]
    rands = [rand_error(label_cells(p.truth), f) for f, p in zip(found, pairs, strict=True)]
    return float(np.mean(pixels)), float(np.mean(rands))


def tune_baseline(pairs: list[LabelledImage]) -> tuple[float, float]:
    """Return blur and threshold of minimum mean adapted Rand error."""
    key: Callable[[tuple[float, float]], float] = lambda p: score_baseline(pairs, *p)[1]  # noqa: E731
    return min(itertools.product(BLURS, GREYS), key=key)


def read_slices(folder: Path, numbers: str, model: Model) -> list[LabelledImage]:
    """Read slices with the scaling of the model."""
    spec = PairsSpec(str(folder / "image"), str(folder / "label"), train=numbers, choose="100000")
    return read_pairs(spec, numbers, model.header.scaling if model else measure_scaling(spec))


def main() -> None:
    """Print the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", default="16-19")
    parser.add_argument("--train", default="12-15")
    args = parser.parse_args()
    model = load_model(args.model)
    chosen, trained = (
        predict_slices(model, read_slices(args.folder, numbers, model))
        for numbers in (args.choose, args.train)
    )
    print(
        f"pixel error: {pixel_error(chosen):.4f} on {args.choose}, {pixel_error(trained):.4f} on {args.train}"
    )
    for name, tuning in ((args.train, trained), (args.choose, chosen)):
        options = tune(tuning)
        each = [rand_error(s.truth, s.separate(options)) for s in chosen]
        print(
            f"adapted Rand error on {args.choose}, tuned on {name}: {np.mean(each):.4f} "
            f"({', '.join(f'{e:.3f}' for e in each)}) with {options}"
        )
        pairs = [s.pair for s in chosen]
        blur, grey = tune_baseline([s.pair for s in tuning])
        pixels, rand = score_baseline(pairs, blur, grey)
        print(
            f"  blur {blur} px + threshold {grey}: pixel error {pixels:.4f}, adapted Rand error {rand:.4f}"
        )


if __name__ == "__main__":
    main()
