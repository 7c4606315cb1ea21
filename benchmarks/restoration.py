"""Restoration of blurred, noisy images: network against a Wiener filter that knows the blur.

    python -m benchmarks.restoration [MODEL] [--kinds text,stars] [--images 40] [--seed 800000]

The network knows neither the kernel nor the noise (7/255, the maximum in its training). The Wiener
filter (skimage.restoration.wiener) receives the true kernel, and its balance is tuned on other
images. Prints the mean PSNR of the images against the truth, in dB, without the border.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage.restoration import wiener

from fcnpipe.simulation.blurred_images import KERNEL_SIDE, KINDS, BlurredPair, draw_pair

Floats = NDArray[np.float32]
Restore = Callable[[BlurredPair], Floats]

NOISE = 7 / 255
SIDE = 192
BALANCES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TUNING_SEED = 700_000


def psnr(image: Floats, truth: Floats) -> float:
    """Return the peak signal-to-noise ratio, dB, of an image whose white is 1, without the border."""
    inner = (slice(KERNEL_SIDE, -KERNEL_SIDE),) * 2
    square = float(np.mean((np.clip(image, 0, 1)[inner] - truth[inner]) ** 2))
    return float(-10 * np.log10(square))


def make_wiener(balance: float) -> Restore:
    """Return the filter that knows the kernel; the median is subtracted so that the border does not ring."""

    def restore(pair: BlurredPair) -> Floats:
        level = np.median(pair.observed)
        found = wiener(pair.observed - level, pair.kernel, balance, clip=False)
        return np.asarray(found + level, np.float32)

    return restore


def tune_wiener(kind: str) -> Restore:
    """Return the filter with the best balance on eight images that are not scored."""
    pairs = _draw_pairs(kind, 8, TUNING_SEED)
    tried = {
        balance: np.mean([psnr(make_wiener(balance)(p), p.truth) for p in pairs])
        for balance in BALANCES
    }
    return make_wiener(max(tried, key=lambda balance: tried[balance]))


def make_network_restore(name: str) -> Restore:
    """Return the restoration of a model."""
    from fcnpipe.networks import Bundle, load_model

    bundle = load_model(name)
    assert isinstance(bundle, Bundle)
    module = bundle.module()

    def restore(pair: BlurredPair) -> Floats:
        import torch

        with torch.inference_mode():
            found = module(torch.from_numpy(pair.observed)[None, None])
        return np.asarray(found[0, 0].numpy(), np.float32)

    return restore


def _draw_pairs(kind: str, count: int, seed: int) -> list[BlurredPair]:
    return [draw_pair(kind, (SIDE, SIDE), seed + k, (NOISE, NOISE)) for k in range(count)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--seed", type=int, default=800_000)
    args = parser.parse_args()
    print("PSNR, dB: mean and standard error, and mean gain over the observed image")
    print(f"{'images':8} {'tool':24} {'PSNR':>6} +- error  gain")
    for kind in args.kinds.split(","):
        pairs = _draw_pairs(kind, args.images, args.seed)
        tools: dict[str, Restore] = {"observed": lambda pair: pair.observed}
        tools["wiener, kernel known"] = tune_wiener(kind)
        if args.model:
            tools[args.model] = make_network_restore(args.model)
        scores = {n: np.array([psnr(f(p), p.truth) for p in pairs]) for n, f in tools.items()}
        for name, found in scores.items():
            error, gain = found.std() / np.sqrt(len(found)), (found - scores["observed"]).mean()
            print(f"{kind:8} {name:24} {found.mean():6.2f} +- {error:.2f}  {gain:+.2f}")


if __name__ == "__main__":
    main()
