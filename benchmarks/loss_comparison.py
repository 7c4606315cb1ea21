"""Loss comparison on one task: discs under noise, learnt from contours that were drawn carelessly.

    OMP_NUM_THREADS=1 python -m benchmarks.loss_comparison --steps 400 --seeds 3 --out FOLDER

The same small U-Net, from the same weights, on the same images, with each loss. Labels have each
contour moved by a smooth random offset of up to 4 px; scores are against the true discs: IoU, Dice
and pixel error of the prediction cut at one half, its area over the true one, and the threshold at
which its IoU would be the best, with that IoU: means and standard deviations over the seeds. The first
format_row scores the labels themselves. FOLDER gets losses.csv, a format_row for each loss and seed, and
losses.png, the IoU against the threshold.
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
    """Give noisy images, careless labels and the truth, (count, 1, side, side) each."""
    rng = np.random.default_rng(seed)
    pairs = np.stack([draw_discs(rng) for _ in range(count)])
    truth, label = pairs[:, 0, None], pairs[:, 1, None]
    image = truth + NOISE * rng.standard_normal(truth.shape)
    return image.astype(np.float32), label, truth


def draw_discs(rng: np.random.Generator) -> Images:
    """Give the true discs and the careless ones, one or two of them."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pair = np.zeros((2, SIDE, SIDE), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        cy, cx = rng.uniform(0, SIDE, 2)
        radius, away = rng.uniform(8, 25), np.hypot(y - cy, x - cx)
        offset = draw_contour_offset(rng, np.arctan2(y - cy, x - cx))
        pair = np.maximum(pair, [away < radius, away < radius + offset])
    return pair


def draw_contour_offset(rng: np.random.Generator, angle: NDArray[Any]) -> NDArray[Any]:
    """Give a smooth offset at each angle, of mean 0, at most JITTER_PX either way."""
    orders = np.arange(4)
    heights, phases = rng.normal(size=4) / (1 + orders), rng.uniform(0, 2 * np.pi, 4)

    def wave(at: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(
            sum(a * np.cos(k * at + p) for k, a, p in zip(orders, heights, phases, strict=True))
        )

    # Of the greatest offset of this contour, anything from 0 to 4 px.
    greatest = np.abs(wave(np.linspace(0, 2 * np.pi, 181))).max()
    return rng.uniform(0, JITTER_PX) * wave(angle) / greatest


def train(terms: dict[str, float], seed: int, options: argparse.Namespace) -> UNet:
    """Give the network after the steps."""
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
    """Give the probability."""
    with torch.inference_mode():
        parts = [network(torch.from_numpy(i[None])).sigmoid().numpy() for i in image]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Score:
    """How a network does on clean contours."""

    loss: str
    seed: int
    iou: float
    """Cut at one half, as the three that follow."""
    dice: float
    pixel_error: float
    area: float
    """Over the true one."""
    level: float
    """Threshold of the best IoU."""
    best: float
    """That IoU."""


def compute_iou_curve(probability: Images, truth: Images) -> NDArray[np.float64]:
    """Give the IoU at each of the LEVELS."""
    there = truth > 0.5
    found = (probability > level for level in LEVELS)
    return np.array([(f & there).sum() / (f | there).sum() for f in found])


def score_prediction(name: str, seed: int, probability: Images, truth: Images) -> Score:
    """Score the probability of a network."""
    found, there = probability > 0.5, truth > 0.5
    iou = float((found & there).sum() / (found | there).sum())
    error, area = float((found != there).mean()), float(found.sum() / there.sum())
    curve = compute_iou_curve(probability, truth)
    level = float(LEVELS[curve == curve.max()].mean())
    return Score(name, seed, iou, 2 * iou / (1 + iou), error, area, level, float(curve.max()))


def format_row(name: str, scores: list[Score], seconds: float) -> str:
    """Give one format_row of the table: mean and standard deviation over the seeds."""
    numbers = np.array([astuple(s)[2:] for s in scores])
    means, spreads = numbers.mean(axis=0), numbers.std(axis=0, ddof=len(scores) > 1)
    cells = (f"{mean:.4f} ±{spread:.4f}" for mean, spread in zip(means, spreads, strict=True))
    return "  ".join([f"{name:8s}", *cells, f"{seconds:5.0f}"])


def compare(
    options: argparse.Namespace, report: Callable[[str], None]
) -> tuple[list[Score], dict[str, NDArray[np.float64]]]:
    """Train with each loss, report a format_row each; give the scores, and the mean IoU at each level."""
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
    """Write table and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "losses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Score)])
        writer.writerows(astuple(s) for s in scores)
    lines = {name: list(zip(LEVELS, curve, strict=True)) for name, curve in curves.items()}
    title, y_label = "Discs learned from careless contours", "IoU with clean contours"
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
