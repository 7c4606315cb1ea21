"""What this process has moved and taken: bytes of pixels and maps, and its peak memory.

Counted for the process, not for the task: a task may read on another thread than its own, and what
lies between two readings is what was moved between them, whoever did it. Sums are exact.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """What was seen at one moment.

    Attributes
    ----------
    worker : str
        The process, HOST:PID.
    peak_bytes : int
        Most memory that it has held since it began.
    read_bytes : int
        Pixels of images, in the type of their file, and shards of maps, as they lie on disk, that
        were read since the last reading.
    written_bytes : int
        Shards of maps that were written since, as they lie on disk.
    """

    worker: str
    peak_bytes: int
    read_bytes: int
    written_bytes: int


_lock = Lock()
_moved = {"read": 0, "written": 0}


def count_read(size_bytes: int) -> None:
    """Count what was read."""
    with _lock:
        _moved["read"] += size_bytes


def count_written(size_bytes: int) -> None:
    """Count what was written."""
    with _lock:
        _moved["written"] += size_bytes


def measure_usage() -> ResourceUsage:
    """Give a reading, from which the next one begins."""
    with _lock:
        read, written = _moved["read"], _moved["written"]
        _moved.update(read=0, written=0)
    return ResourceUsage(_name_process(os.getpid()), peak_memory_bytes(), read, written)


def peak_memory_bytes() -> int:
    """Give the most memory that this process has held, bytes."""
    try:
        with open("/proc/self/status", "rb") as status:
            _, _, tail = status.read().partition(b"VmHWM:")
        return int(tail.split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return _read_getrusage()


def _read_getrusage() -> int:
    """Ask where there is no /proc; macOS counts in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@lru_cache(maxsize=1)
def _name_process(process: int) -> str:
    return f"{socket.gethostname()}:{process}"
