"""Speed of a forward pass with one thread: several ways to run the same network, interleaved.

    python -m benchmarks.forward_pass --core 1024 --rounds 5 [--bare] [--inductor] [--openvino]

Prints for each way the median seconds for a window, the spread, Mpix/s of core, and the speed-up
over the first way of its group. With ``--bare`` the memory allocator keeps its system settings.
``--openvino`` requires the package openvino.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fcnpipe.networks.inference.memory_allocator import tune_allocator

Run = Callable[[], object]


def make_runs(size: int, options: argparse.Namespace) -> dict[str, Run]:
    """Return ways to run the network in float32, the predictor's own way first."""
    import torch

    from fcnpipe.networks.architectures.unet import UNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = UNet(1, 3, options.base, options.depth).eval()
    image = torch.randn(1, 1, size, size)
    wide = image.to(memory_format=torch.channels_last)
    last: Any = UNet(1, 3, options.base, options.depth).eval()
    last = last.to(memory_format=torch.channels_last)
    runs: dict[str, Run] = {
        "eager, channels last": lambda: last(wide),
        "eager, channels first": lambda: network(image),
    }
    if options.script:
        frozen = torch.jit.freeze(torch.jit.trace(last, wide, check_trace=False))
        fused = torch.jit.optimize_for_inference(frozen)
        runs["TorchScript, fused"] = lambda: fused(wide)
    if options.inductor:
        compiled = torch.compile(last)
        runs["inductor"] = lambda: compiled(wide)
    if options.openvino:
        runs["OpenVINO"] = make_openvino(network, image)
    return runs


def make_openvino(network: Any, image: Any) -> Run:
    """Compile the network with OpenVINO for one thread in float32."""
    import openvino

    model = openvino.convert_model(network, example_input=image, input=list(image.shape))
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    pixels = image.numpy()
    return lambda: request.infer({0: pixels})


def make_other_steps(size: int) -> dict[str, Run]:
    """Return the steps of a predictor other than the network, and the matched filter."""
    import torch

    from fcnpipe.networks.base import Scaling
    from fcnpipe.networks.inference.predictor import scale_input
    from fcnpipe.networks.matched_filter import MatchedFilter

    snr = np.random.default_rng(0).normal(size=(1, size, size)).astype(np.float32)
    logits = torch.from_numpy(np.repeat(snr, 3, axis=0))
    matched = MatchedFilter(3.0).predictor()
    return {
        "asinh": lambda: scale_input(snr, Scaling()),
        "sigmoid of 3": lambda: torch.sigmoid(logits),
        "model none, complete": lambda: matched(snr),
    }


def make_precisions(size: int) -> dict[str, Run]:
    """Return the default model's predictor in each precision that this machine supports."""
    from fcnpipe.core.errors import SpecError
    from fcnpipe.networks import load_model

    model, runs = load_model("default"), {}
    snr = np.random.default_rng(0).normal(size=(1, size, size)).astype(np.float32)
    for precision in ("fp32", "bf16", "int8"):
        try:
            predictor = model.predictor("cpu", precision, threads=1)
        except SpecError:  # the CPU has no int8 instructions
            continue
        runs[f"predictor, {precision}"] = lambda predictor=predictor: predictor(snr)
    return runs


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Time each way once in each round, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def report(seconds: dict[str, list[float]], core: int) -> None:
    """Print a line for each way."""
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        speed = core**2 / 1e6 / median
        print(
            f"{name:26s} {median:8.4f} s  +-{spread / 2:4.0%}  {speed:8.2f} Mpix/s"
            f"  x{first / median:.2f}"
        )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", type=int, default=1024)
    parser.add_argument("--halo", type=int, default=56)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    for flag in ("bare", "script", "inductor", "openvino"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    print("allocator tuned:", False if options.bare else tune_allocator())
    import torch

    size = options.core + 2 * options.halo
    with torch.inference_mode():
        report(measure(make_runs(size, options), options.rounds), options.core)
        report(measure(make_precisions(size), options.rounds), options.core)
        report(measure(make_other_steps(size), options.rounds), options.core)


if __name__ == "__main__":
    main()
