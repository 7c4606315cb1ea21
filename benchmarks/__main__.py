"""Run every benchmark once at a small size, so that none breaks unnoticed: ``make bench``.

The figures of such small runs have no meaning. Each module describes how to take real measurements.
"""

import subprocess
import sys

SMALL = (
    ["benchmarks.forward_pass", "--rounds", "1"],
    [
        "benchmarks.patchwise_inference",
        "--patches",
        "2",
        "--edge",
        "16",
        "--maps",
        "4",
        "--rounds",
        "1",
    ],
    ["benchmarks.full_width_networks", "pang"],
    ["benchmarks.loss_comparison", "--steps", "5", "--tests", "5"],
    ["benchmarks.fault_injection", "--only", "clock", "--moments", "middle"],
    ["benchmarks.scheduling_overhead", "--tiles", "200"],
    ["benchmarks.memory", "--few"],
    ["benchmarks.strong_scaling", "--edge", "1024", "--tile", "512", "--rounds", "1", "--bar", "0"],
    ["benchmarks.restoration", "--images", "2"],
    ["benchmarks.bulge_disk", "--stamps", "4"],
    ["benchmarks.detection_quality", "--side", "512", "--kinds", "ground"],
    [
        "benchmarks.end_to_end",
        "--edge",
        "2048",
        "--rounds",
        "1",
        "--bare-part",
        "1",
        "--monai-edge",
        "0",
    ],
)

if __name__ == "__main__":
    # Each benchmark runs in a process of its own, because its child processes import the main module.
    for command in SMALL:
        print(f"== {command[0]}", flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)
