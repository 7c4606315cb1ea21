"""Tuning of the C allocator: page faults of large arrays with and without it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from fcnpipe.networks.inference.memory_allocator import tune_allocator, worker_environment

GROW = """
import resource, numpy
{tune}
def touch():
    for _ in range(8):
        a = numpy.empty(2**26, numpy.uint8); a[::4096] = 1; del a
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(tune: str, **environment: str) -> int:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    result = subprocess.run(
        [sys.executable, "-c", GROW.format(tune=tune)],
        check=True,
        capture_output=True,
        env=clean | environment,
    )
    return int(result.stdout)


needs_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="not glibc",
)
TUNE = "from fcnpipe.networks.inference.memory_allocator import tune_allocator; assert tune_allocator()"


@needs_glibc
def test_memory_of_large_arrays_is_reused() -> None:
    # Eight arrays of 64 MiB touch 131,072 new pages unless the process keeps the memory.
    plain = page_faults("", MALLOC_MMAP_THRESHOLD_="1048576")
    assert plain > 100  # a page may be 4 KiB or 2 MiB
    assert page_faults(TUNE) < plain / 10
    assert page_faults("", **worker_environment()) < plain / 10


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tune_allocator() is False
