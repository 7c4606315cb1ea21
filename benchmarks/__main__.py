"""``make bench``: each benchmark once, small, so that none rots; see the modules for real measurements."""

import runpy
import sys

SMALL = (
    ["benchmarks.forward", "--rounds", "1"],
    [
        "benchmarks.whole_job",
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
    for name, *arguments in SMALL:
        print(f"== {name}")
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__")
