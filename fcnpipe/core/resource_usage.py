"""Resource usage of a process: bytes of pixels and maps read and written, and peak memory.

Bytes are counted per process, not per task, because a task may read in a thread other than its own. All
bytes moved between two measurements belong to the later one, whichever thread moved them. Sums over measurements
are therefore exact.
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
    """Resource usage of a process at one moment.

    Attributes
    ----------
    worker : str
        The process, HOST:PID.
    peak_bytes : int
        Maximum resident memory since the process started.
    read_bytes : int
        Bytes read since the previous measurement: pixels of images, in the data type of their file, and
        shards of maps, as compressed on disk.
    written_bytes : int
        Bytes of shards of maps written since the previous measurement, as compressed on disk.
    """

    worker: str
    peak_bytes: int
    read_bytes: int
    written_bytes: int


_lock = Lock()
_moved = {"read": 0, "written": 0}


def count_read(size_bytes: int) -> None:
    """Add ``size_bytes`` to the count of bytes read."""
    with _lock:
        _moved["read"] += size_bytes


def count_written(size_bytes: int) -> None:
    """Add ``size_bytes`` to the count of bytes written."""
    with _lock:
        _moved["written"] += size_bytes


def measure_usage() -> ResourceUsage:
    """Return the usage since the previous call, and reset the counts of bytes."""
    with _lock:
        read, written = _moved["read"], _moved["written"]
        _moved.update(read=0, written=0)
    return ResourceUsage(_name_process(os.getpid()), peak_memory_bytes(), read, written)


def peak_memory_bytes() -> int:
    """Return the maximum resident memory of this process so far, bytes."""
    try:
        with open("/proc/self/status", "rb") as status:
            _, _, tail = status.read().partition(b"VmHWM:")
        return int(tail.split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return _read_getrusage()


def _read_getrusage() -> int:
    """Return the peak memory on systems without /proc; macOS reports bytes, others KiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@lru_cache(maxsize=1)
def _name_process(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}"
