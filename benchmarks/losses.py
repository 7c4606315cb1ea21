"""Loss comparison on one task: discs under noise, learnt from contours that were drawn carelessly.

    OMP_NUM_THREADS=1 python -m benchmarks.losses --steps 400 --seeds 1

The same small U-Net, from the same weights, on the same images, with each loss. Labels have each
contour moved by a smooth random offset of up to 4 px; scores are against the true discs: IoU, Dice
and pixel error of the prediction cut at one half, its area over the true one, and the threshold at
which its IoU would be the best, with that IoU. The first line scores the labels themselves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcnpipe.networks.unet import UNet
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


def draw(count: int, seed: list[int]) -> tuple[Images, Images, Images]:
    """Give noisy images, careless labels and the truth, (count, 1, side, side) each."""
    rng = np.random.default_rng(seed)
    pairs = np.stack([draw_one(rng) for _ in range(count)])
    truth, label = pairs[:, 0, None], pairs[:, 1, None]
    image = truth + NOISE * rng.standard_normal(truth.shape)
    return image.astype(np.float32), label, truth


def draw_one(rng: np.random.Generator) -> Images:
    """Give the true discs and the careless ones, one or two of them."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pair = np.zeros((2, SIDE, SIDE), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        cy, cx = rng.uniform(0, SIDE, 2)
        radius, away = rng.uniform(8, 25), np.hypot(y - cy, x - cx)
        offset = wobble(rng, np.arctan2(y - cy, x - cx))
        pair = np.maximum(pair, [away < radius, away < radius + offset])
    return pair


def wobble(rng: np.random.Generator, angle: NDArray[Any]) -> NDArray[Any]:
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
        image, label, _ = (torch.from_numpy(a) for a in draw(options.batch, [seed, step]))
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


def score(probability: Images, truth: Images) -> list[float]:
    """Give IoU, Dice, pixel error and area ratio at one half, the best threshold and its IoU."""
    there = truth > 0.5

    def overlap(level: float) -> float:
        found = probability > level
        return float((found & there).sum() / (found | there).sum())

    found = probability > 0.5
    iou, overlaps = overlap(0.5), np.array([overlap(level) for level in LEVELS])
    best = LEVELS[overlaps == overlaps.max()].mean()
    dice = 2 * iou / (1 + iou)
    error, area = float((found != there).mean()), float(found.sum() / there.sum())
    return [iou, dice, error, area, float(best), float(overlaps.max())]


def line(name: str, scores: list[list[float]], seconds: float) -> str:
    """Give one line of the table: means over the seeds, and the spread of the IoU."""
    iou, dice, error, area, level, best = np.mean(scores, axis=0)
    spread = np.std([s[0] for s in scores])
    return (
        f"{name:8s} {iou:.4f} ±{spread:.4f}  {dice:.4f}  {error:7.4f}  {area:6.3f}"
        f"  {level:5.2f}  {best:.4f}  {seconds:5.0f}"
    )


def compare(options: argparse.Namespace, report: Callable[[str], None]) -> None:
    """Train with each loss and report a line each."""
    image, label, truth = draw(options.tests, [977])
    report("loss     IoU     spread   Dice    pix.err    area  level  its IoU      s")
    report(line("(labels)", [score(label, truth)], 0))
    for name, terms in LOSSES.items():
        begun = time.perf_counter()
        networks = [train(terms, seed, options) for seed in range(options.seeds)]
        scores = [score(predict(network, image), truth) for network in networks]
        report(line(name, scores, time.perf_counter() - begun))


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tests", type=int, default=200)
    torch.set_num_threads(1)
    compare(parser.parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
