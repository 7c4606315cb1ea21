"""Objects that last as long as the process: nothing is gained by looking through them for garbage.

Imports make a million of them. Python's collector looks through all whenever a quarter has been
added, and once more at the end: a third of the time to import torch after Prefect, and .4 s to leave.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_collection() -> Iterator[None]:
    """Collect no garbage meanwhile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def freeze_objects() -> None:
    """Never again look for garbage among what is there, when a process of ours begins and when it ends.

    Notes
    -----
    What is garbage by then, or becomes it, never goes: nothing for the process of somebody else, nor for
    one that has worked.
    """
    gc.freeze()
