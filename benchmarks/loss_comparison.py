"""Comparison of losses on one task: noisy images of discs, learned from inaccurate contours.

    OMP_NUM_THREADS=1 python -m benchmarks.loss_comparison --steps 400 --seeds 3 --out FOLDER

The same small U-Net is trained with each loss, from the same weights and on the same images. The
contour of each label is displaced by a smooth random offset of up to 4 px. Scores are computed
against the true discs: IoU, Dice and pixel error of the prediction thresholded at 0.5, its area
relative to the true one, and the threshold of maximum IoU with that IoU. The table lists means and
standard deviations over the seeds; its first line scores the labels themselves. FOLDER receives
losses.csv, with a line for each loss and seed, and losses.png, the IoU as a function of the
threshold.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.training.learning_curve import Chart, draw_chart
from fcnpipe.training.losses import make_loss

SIDE, JITTER_PX, NOISE = 80, 4.0, 1.0
LOSSES: dict[str, dict[str, float]] = {
    "MSE": {"mse": 1.0},
    "CE": {"cross_entropy": 1.0},
    "Dice": {"dice": 1.0},
    "Jaccard": {"jaccard": 1.0},
    "Dice+CE": {"dice": 1.0, "cross_entropy": 1.0},
}
LEVELS = np.arange(0.02, 1.0, 0.02)
Images = NDArray[np.float32]


def draw_images(count: int, seed: list[int]) -> tuple[Images, Images, Images]:
    """Draw noisy images, inaccurate labels and the truth, (count, 1, side, side) each."""
    rng = np.random.default_rng(seed)
    pairs = np.stack([draw_discs(rng) for _ in range(count)])
    truth, label = pairs[:, 0, None], pairs[:, 1, None]
    image = truth + NOISE * rng.standard_normal(truth.shape)
    return image.astype(np.float32), label, truth


def draw_discs(rng: np.random.Generator) -> Images:
    """Draw one or two discs, true and with displaced contours, (2, side, side)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pair = np.zeros((2, SIDE, SIDE), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        cy, cx = rng.uniform(0, SIDE, 2)
        radius, away = rng.uniform(8, 25), np.hypot(y - cy, x - cx)
        offset = draw_contour_offset(rng, np.arctan2(y - cy, x - cx))
        pair = np.maximum(pair, [away < radius, away < radius + offset])
    return pair


def draw_contour_offset(rng: np.random.Generator, angle: NDArray[Any]) -> NDArray[Any]:
    """Draw a smooth offset for each angle, of mean 0 and at most JITTER_PX in either direction."""
    orders = np.arange(4)
    heights, phases = rng.normal(size=4) / (1 + orders), rng.uniform(0, 2 * np.pi, 4)

    def wave(at: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(
            sum(a * np.cos(k * at + p) for k, a, p in zip(orders, heights, phases, strict=True))
        )

    # The maximum offset of a contour is uniform between 0 and 4 px.
    greatest = np.abs(wave(np.linspace(0, 2 * np.pi, 181))).max()
    return rng.uniform(0, JITTER_PX) * wave(angle) / greatest


def train(terms: dict[str, float], seed: int, options: argparse.Namespace) -> UNet:
    """Train a network and return it."""
    torch.manual_seed(seed)
    network, loss = UNet(1, 1, base=8, depth=2), make_loss(terms)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.steps)
    for step in range(options.steps):
        image, label, _ = (torch.from_numpy(a) for a in draw_images(options.batch, [seed, step]))
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()
        schedule.step()
    return network


def predict(network: UNet, image: Images) -> Images:
    """Return the predicted probability."""
    with torch.inference_mode():
        parts = [network(torch.from_numpy(i[None])).sigmoid().numpy() for i in image]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Score:
    """Scores of a network on clean contours."""

    loss: str
    seed: int
    iou: float
    """IoU at threshold 0.5, which also applies to dice, pixel_error and area."""
    dice: float
    pixel_error: float
    area: float
    """Relative to the true area."""
    level: float
    """Threshold of maximum IoU."""
    best: float
    """Maximum IoU."""


def compute_iou_curve(probability: Images, truth: Images) -> NDArray[np.float64]:
    """Compute the IoU at each of the LEVELS."""
    there = truth > 0.5
    found = (probability > level for level in LEVELS)
    return np.array([(f & there).sum() / (f | there).sum() for f in found])


def score_prediction(name: str, seed: int, probability: Images, truth: Images) -> Score:
    """Score the predicted probability of a network."""
    found, there = probability > 0.5, truth > 0.5
    iou = float((found & there).sum() / (found | there).sum())
    error, area = float((found != there).mean()), float(found.sum() / there.sum())
    curve = compute_iou_curve(probability, truth)
    level = float(LEVELS[curve == curve.max()].mean())
    return Score(name, seed, iou, 2 * iou / (1 + iou), error, area, level, float(curve.max()))


def format_row(name: str, scores: list[Score], seconds: float) -> str:
    """Format a line of the table: means and standard deviations over the seeds."""
    numbers = np.array([astuple(s)[2:] for s in scores])
    means, spreads = numbers.mean(axis=0), numbers.std(axis=0, ddof=len(scores) > 1)
    cells = (f"{mean:.4f} ±{spread:.4f}" for mean, spread in zip(means, spreads, strict=True))
    return "  ".join([f"{name:8s}", *cells, f"{seconds:5.0f}"])


def compare(
    options: argparse.Namespace, report: Callable[[str], None]
) -> tuple[list[Score], dict[str, NDArray[np.float64]]]:
    """Train with each loss and report a line for each; return the scores, and the mean IoU at each level."""
    image, label, truth = draw_images(options.tests, [977])
    names = ("IoU", "Dice", "pixel error", "area", "best level", "its IoU")
    report("  ".join(["loss    ", *(f"{name:14s}" for name in names), "    s"]))
    report(format_row("(labels)", [score_prediction("labels", 0, label, truth)], 0))
    scores, curves = [], {}
    for name, terms in LOSSES.items():
        started = time.perf_counter()
        networks = [train(terms, seed, options) for seed in range(options.seeds)]
        found = [predict(network, image) for network in networks]
        scores += [score_prediction(name, seed, f, truth) for seed, f in enumerate(found)]
        report(format_row(name, scores[-options.seeds :], time.perf_counter() - started))
        curves[name] = np.mean([compute_iou_curve(f, truth) for f in found], axis=0)
    return scores, curves


def write(scores: list[Score], curves: dict[str, NDArray[np.float64]], folder: Path) -> Path:
    """Write the scores as CSV and the IoU curves as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "losses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Score)])
        writer.writerows(astuple(s) for s in scores)
    lines = {name: list(zip(LEVELS, curve, strict=True)) for name, curve in curves.items()}
    title, y_label = "Discs learned from inaccurate contours", "IoU with clean contours"
    return draw_chart(
        Chart(title, "threshold of the probability", y_label, lines), folder / "losses.png"
    )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = compare(args, lambda text: print(text, flush=True))
    if args.out:
        print(write(*found, args.out))


if __name__ == "__main__":
    main()
