"""How little data will do, and how wrong its contours may be, shown on membranes.

    python -m benchmarks.small_data slices FOLDER OUT [--steps 400]
    python -m benchmarks.small_data contours FOLDER OUT [--steps 400]

FOLDER is that of benchmarks/membranes.py. Each point is a U-Net of its own (base 8, depth 3), trained
for the same number of steps and scored on slices 16-19. ``slices``: trained on 1, 2, 4, 8 and 16
slices, with and without augmentation. ``contours``: trained on 16 slices whose contours were
displaced at random, and scored on clean ones, beside the labels it was trained on. Both write a CSV
and a PNG of that name into OUT.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.membranes import Options, Slice, pixel_error, score
from fcnpipe.networks.allocator import tune_allocator
from fcnpipe.training import loop
from fcnpipe.training.augment import NONE, Augment, take
from fcnpipe.training.curve import Chart, draw
from fcnpipe.training.pairs import Pair, Pairs, measure_scaling, read_pairs
from fcnpipe.training.recipe import Recipe
from fcnpipe.training.sources import PairSource

COUNTS = (1, 2, 4, 8, 16)
JITTERS_PX = (0.0, 1.0, 2.0, 3.0, 4.0)
WAVE_PX = 4.0
"""Displaced contours wave on this scale."""
OPTIONS = Options(share=1.0, thresh=0.05, dynamics=0.25, minarea=40)
CHANGED = Augment(elastic_px=8.0, brightness=0.3, contrast=0.2, noise=0.2, blur_px=0.7)

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Data to train on and to score on."""

    recipe: Recipe
    trained: list[Pair]
    chosen: list[Pair]


def make_trial(folder: Path, steps: int) -> Trial:
    """Read all slices."""
    spec = Pairs(str(folder / "image"), str(folder / "label"), train="0-15", choose="16-19")
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


def fit(recipe: Recipe, pairs: list[Pair]) -> torch.nn.Module:
    """Train a network on pairs."""
    assert recipe.pairs is not None
    source = PairSource(recipe, recipe.pairs)
    source.pairs = pairs
    state = loop.start(recipe)
    for _ in range(recipe.steps):
        loop.advance(recipe, state, source)
    state.network.load_state_dict(state.averaged)
    return state.network.eval()


@torch.inference_mode()
def look(network: torch.nn.Module, pairs: list[Pair]) -> list[Slice]:
    """Run a network on slices."""
    outputs = [torch.sigmoid(network(torch.from_numpy(p.x[None])))[0].numpy() for p in pairs]
    return [Slice(p, *o) for p, o in zip(pairs, outputs, strict=True)]


def learn_from_few(trial: Trial) -> Iterator[Row]:
    """Give the errors for each number of slices, with and without augmentation."""
    for count in COUNTS:
        for name, augment in (("none", NONE), ("all", CHANGED)):
            network = fit(replace(trial.recipe, augment=augment), trial.trained[:count])
            slices = look(network, trial.chosen)
            yield {
                "slices": count,
                "augmentation": name,
                "pixel_error": pixel_error(slices),
                "rand_error": score(slices, OPTIONS),
            }


def learn_from_wrong(trial: Trial) -> Iterator[Row]:
    """Give the agreement with clean contours of the labels, and of what was learned from them."""
    for jitter in JITTERS_PX:
        rng = np.random.default_rng(round(100 * jitter))
        wrong = [displace(pair, jitter, rng) for pair in trial.trained]
        slices = look(fit(replace(trial.recipe, augment=CHANGED), wrong), trial.chosen)
        labels = [(w.answer, t.answer) for w, t in zip(wrong, trial.trained, strict=True)]
        yield {
            "jitter_px": jitter,
            "label_iou": float(np.mean([membrane_iou(*pair) for pair in labels])),
            "network_iou": float(
                np.mean([membrane_iou(s.source >= 0.5, s.pair.answer) for s in slices])
            ),
        }


def displace(pair: Pair, sigma_px: float, rng: np.random.Generator) -> Pair:
    """Give the pair with contours that are wrong by this much."""
    side = pair.answer.shape[0]
    move = np.stack([gaussian_filter(rng.normal(size=(side, side)), WAVE_PX) for _ in range(2)])
    move *= sigma_px / move.std()
    return replace(pair, answer=take(pair.answer, (0, 0), side, move.astype(np.float32)))


def membrane_iou(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Give intersection over union of the membranes."""
    one, other = np.asarray(found) <= 0, np.asarray(truth) <= 0
    return float((one & other).sum() / (one | other).sum())


def write(rows: Iterator[Row], path: Path) -> list[Row]:
    """Write rows as they come, and give them."""
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


def chart_slices(rows: list[Row]) -> Chart:
    """Give the errors against the number of slices."""
    lines = {
        f"{what.replace('_', ' ')}, augmentation: {name}": [
            (r["slices"], r[what]) for r in rows if r["augmentation"] == name
        ]
        for what in ("rand_error", "pixel_error")
        for name in ("none", "all")
    }
    title = "Membranes learned from few slices"
    return Chart(title, "training slices", "error on slices 16-19", lines, True, True, True)


def chart_contours(rows: list[Row]) -> Chart:
    """Give the agreement against the displacement."""
    names = {"labels trained on": "label_iou", "network": "network_iou"}
    lines = {name: [(r["jitter_px"], r[key]) for r in rows] for name, key in names.items()}
    title = "Membranes learned from wrong contours"
    y_label = "IoU of membranes with clean contours"
    return Chart(title, "displacement of the contours, px", y_label, lines, marks=True)


BENCHMARKS = {
    "slices": (learn_from_few, chart_slices),
    "contours": (learn_from_wrong, chart_contours),
}


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    tune_allocator()
    learn, chart = BENCHMARKS[given.what]
    rows = write(learn(make_trial(given.folder, given.steps)), given.out / f"{given.what}.csv")
    print(draw(chart(rows), given.out / f"{given.what}.png"))


if __name__ == "__main__":
    main()
