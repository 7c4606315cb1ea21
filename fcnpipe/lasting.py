"""Objects that last as long as the process: nothing is gained by looking through them for garbage.

Imports make a million of them. Python's collector looks through all whenever a quarter has been
added, and once more at the end: a third of the time to import torch after Prefect, and .4 s to leave.
For the first and the last moment of a process alone: garbage that is there would never go.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Collect no garbage meanwhile, nor ever look at what is there at the end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        keep()
        if collects:
            gc.enable()


def keep() -> None:
    """Never look for garbage among what is there."""
    gc.freeze()
