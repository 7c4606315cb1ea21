"""What Dask workers of our own load when they start: Ctrl-C is not for them.

A terminal sends it to every process of a command. The one that runs the stages heeds it, and ends its
workers; a worker that heeded it too would only leave a traceback.
"""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Let a worker be deaf to Ctrl-C; called by Dask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
