"""Tuning of the C allocator, so that the memory of activations is kept from one layer to the next.

glibc maps and unmaps every array above 32 MB, so each layer of a large window pays for new pages. A
U-Net of base 16 then runs at about half the speed: at 2.8 instead of 4.8 Mpix/s in bfloat16 (on
hardware that has it) on one thread, and at 2.2 Mpix/s on a Dask worker, whose nanny sets
MALLOC_TRIM_THRESHOLD_. ``benchmarks/forward_pass.py`` measures it.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt, from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_TOP_PAD_BYTES = 256 * 2**20
_NEVER = 2**31 - 1


def tune_allocator() -> bool:
    """Make the C allocator keep freed memory in the process, in one arena.

    Call it early, if possible before torch is imported and threads start, because arenas that exist
    already remain.

    Returns
    -------
    bool
        Whether the allocator was tuned. False if the C library is not glibc, which is harmless.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_TRIM_THRESHOLD: _NEVER, _TOP_PAD: _TOP_PAD_BYTES, _MMAP_MAX: 0, _ARENA_MAX: 1}
    return all([mallopt(name, ctypes.c_int(value)) == 1 for name, value in options.items()])


def worker_environment() -> dict[str, str]:
    """Return the environment variables that tune the allocator of a worker process from its start.

    Dask's nanny sets MALLOC_TRIM_THRESHOLD_ itself; this value must take precedence over it.

    Examples
    --------
    >>> worker_environment()["MALLOC_ARENA_MAX"]
    '1'
    """
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
        "MALLOC_TOP_PAD_": str(_TOP_PAD_BYTES),
        "MALLOC_ARENA_MAX": "1",
    }
