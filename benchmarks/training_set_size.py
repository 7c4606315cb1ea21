"""Effect of few training images and of inaccurate contours, measured on cell membranes.

    python -m benchmarks.training_set_size slices FOLDER OUT [--steps 400] [--seeds 3]
    python -m benchmarks.training_set_size contours FOLDER OUT [--steps 400] [--seeds 3]

FOLDER is that of benchmarks/membrane_segmentation.py. For each point and seed a U-Net (base 8,
depth 3) is trained for the same number of steps and scored on slices 16-19. ``slices``: trained on
1, 2, 4, 8 and 16 slices, with and without augmentation; the seed determines weights, crops and the
selection of slices. ``contours``: trained on 16 slices whose contours are displaced at random, and
scored on clean ones, together with the labels it was trained on. Both write a CSV with a line for
each network and a PNG with means and standard deviations over the seeds into OUT, and print these.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.membrane_segmentation import Options, Slice, mean_rand_error, pixel_error
from fcnpipe.networks.inference.memory_allocator import tune_allocator
from fcnpipe.training import loop
from fcnpipe.training.augmentation import NO_AUGMENTATION, Augmentation, sample_square
from fcnpipe.training.batches import LabelledImageSource
from fcnpipe.training.labelled_images import LabelledImage, PairsSpec, measure_scaling, read_pairs
from fcnpipe.training.learning_curve import Chart, Points, draw_chart
from fcnpipe.training.recipe import Recipe

COUNTS = (1, 2, 4, 8, 16)
JITTERS_PX = (0.0, 1.0, 2.0, 3.0, 4.0)
WAVE_PX = 4.0
"""Correlation length of the displacements of contours, px."""
OPTIONS = Options(share=1.0, thresh=0.05, dynamics=0.25, minarea=40)
AUGMENTED = Augmentation(elastic_px=8.0, brightness=0.3, contrast=0.2, noise=0.2, blur_px=0.7)

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Recipe, training data and test data."""

    recipe: Recipe
    trained: list[LabelledImage]
    chosen: list[LabelledImage]


def make_trial(folder: Path, steps: int) -> Trial:
    """Read all slices."""
    spec = PairsSpec(str(folder / "image"), str(folder / "label"), train="0-15", choose="16-19")
    scaling = measure_scaling(spec)
    recipe = Recipe(
        pairs=replace(spec, offset=scaling.offset, scale=scaling.scale),
        network={"bands": 1, "outputs": 2, "base": 8, "depth": 3},
        precision="bf16",
        batch=4,
        crop=128,
        steps=steps,
        cooldown=max(steps // 3, 1),
        warmup=max(steps // 20, 1),
        average=0.98,
        rate=3e-3,
    )
    return Trial(recipe, *(read_pairs(spec, part, scaling) for part in (spec.train, spec.choose)))


def train_network(recipe: Recipe, pairs: list[LabelledImage]) -> torch.nn.Module:
    """Train a network on labelled images."""
    assert recipe.pairs is not None
    source = LabelledImageSource(recipe, recipe.pairs)
    source.images = pairs
    state = loop.initialise(recipe)
    for _ in range(recipe.steps):
        loop.train_step(recipe, state, source)
    state.network.load_state_dict(state.averaged)
    return state.network.eval()


@torch.inference_mode()
def predict_slices(network: torch.nn.Module, pairs: list[LabelledImage]) -> list[Slice]:
    """Run a network on slices."""
    outputs = [torch.sigmoid(network(torch.from_numpy(p.x[None])))[0].numpy() for p in pairs]
    return [Slice(p, *o) for p, o in zip(pairs, outputs, strict=True)]


def train_on_few_slices(trial: Trial, seed: int) -> Iterator[Row]:
    """Yield the errors for each number of slices, with and without augmentation."""
    order = np.random.default_rng(seed).permutation(len(trial.trained))
    for count in COUNTS:
        trained = [trial.trained[number] for number in order[:count]]
        for name, augment in (("none", NO_AUGMENTATION), ("all", AUGMENTED)):
            network = train_network(replace(trial.recipe, augment=augment, seed=seed), trained)
            slices = predict_slices(network, trial.chosen)
            yield {
                "slices": count,
                "augmentation": name,
                "seed": seed,
                "pixel_error": pixel_error(slices),
                "rand_error": mean_rand_error(slices, OPTIONS),
            }


def train_on_wrong_contours(trial: Trial, seed: int) -> Iterator[Row]:
    """Yield the agreement with clean contours of the labels and of the network trained on them."""
    for jitter in JITTERS_PX:
        rng = np.random.default_rng([seed, round(100 * jitter)])
        wrong = [displace(pair, jitter, rng) for pair in trial.trained]
        network = train_network(replace(trial.recipe, augment=AUGMENTED, seed=seed), wrong)
        slices = predict_slices(network, trial.chosen)
        labels = [(w.truth, t.truth) for w, t in zip(wrong, trial.trained, strict=True)]
        yield {
            "jitter_px": jitter,
            "seed": seed,
            "label_iou": float(np.mean([membrane_iou(*pair) for pair in labels])),
            "network_iou": float(
                np.mean([membrane_iou(s.source >= 0.5, s.pair.truth) for s in slices])
            ),
        }


def displace(pair: LabelledImage, sigma_px: float, rng: np.random.Generator) -> LabelledImage:
    """Return a labelled image whose contours are displaced by this standard deviation."""
    side = pair.truth.shape[0]
    displacement = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), WAVE_PX) for _ in range(2)]
    )
    displacement *= sigma_px / displacement.std()
    return replace(
        pair, truth=sample_square(pair.truth, (0, 0), side, displacement.astype(np.float32))
    )


def membrane_iou(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the intersection over union of the membranes of two label images."""
    one, other = np.asarray(found) <= 0, np.asarray(truth) <= 0
    return float((one & other).sum() / (one | other).sum())


def write(rows: Iterator[Row], path: Path) -> list[Row]:
    """Write rows to a CSV file as they are computed, and return them."""
    found = []
    with path.open("w", newline="") as file:
        writer: Any = None
        for row in rows:
            writer = writer or csv.DictWriter(file, list(row))
            if not found:
                writer.writeheader()
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
            file.flush()
            print(row, flush=True)
            found.append(row)
    return found


def summarise(rows: list[Row], key: str, what: str) -> tuple[Points, list[float]]:
    """Return (key, mean) of each point, and the standard deviations over the seeds."""
    places = sorted({row[key] for row in rows})
    found = [[row[what] for row in rows if row[key] == place] for place in places]
    means = [(place, float(np.mean(values))) for place, values in zip(places, found, strict=True)]
    return means, [float(np.std(values, ddof=len(values) > 1)) for values in found]


def chart_slices(rows: list[Row]) -> Chart:
    """Return the chart of errors against the number of slices."""
    found = {
        f"{what.replace('_', ' ')}, augmentation: {name}": summarise(
            [r for r in rows if r["augmentation"] == name], "slices", what
        )
        for what in ("rand_error", "pixel_error")
        for name in ("none", "all")
    }
    title = "Membranes learned from few slices"
    return make_chart(title, "training slices", "error on slices 16-19", found, log=True)


def chart_contours(rows: list[Row]) -> Chart:
    """Return the chart of agreement against displacement."""
    names = {"labels trained on": "label_iou", "network": "network_iou"}
    found = {name: summarise(rows, "jitter_px", key) for name, key in names.items()}
    title = "Membranes learned from inaccurate contours"
    y_label = "IoU of membranes with clean contours"
    return make_chart(title, "displacement of the contours, px", y_label, found, log=False)


def make_chart(
    title: str,
    x_label: str,
    y_label: str,
    found: dict[str, tuple[Points, list[float]]],
    log: bool,
) -> Chart:
    """Return a chart of means as lines and standard deviations as bars, and print them."""
    for name, (means, spreads) in found.items():
        points = zip(means, spreads, strict=True)
        print(name, *(f"{x:g}: {y:.4f} +- {spread:.4f}" for (x, y), spread in points), sep="  ")
    lines, bars = ({name: pair[part] for name, pair in found.items()} for part in (0, 1))
    return Chart(title, x_label, y_label, lines, log, log, marks=True, bars=bars)  # type: ignore[arg-type]


BENCHMARKS: dict[
    str, tuple[Callable[[Trial, int], Iterator[Row]], Callable[[list[Row]], Chart]]
] = {
    "slices": (train_on_few_slices, chart_slices),
    "contours": (train_on_wrong_contours, chart_contours),
}


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tune_allocator()
    learn, chart = BENCHMARKS[args.what]
    trial = make_trial(args.folder, args.steps)
    found = (row for seed in range(args.seeds) for row in learn(trial, seed))
    rows = write(found, args.out / f"{args.what}.csv")
    print(draw_chart(chart(rows), args.out / f"{args.what}.png"))


if __name__ == "__main__":
    main()
