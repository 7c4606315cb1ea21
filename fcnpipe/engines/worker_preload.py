"""What Dask workers of our own load when they start: Ctrl-C is not for them, and they leave at once.

A terminal sends it to every process of a command. The one that runs the stages heeds it, and ends its
workers; a worker that heeded it too would only leave a traceback. One that is ended with a tile in hand
is not wanted any more, or has lost its run: Dask would wait four seconds for the tile, then kill it.
A worker that has no nanny is a thread of the process of the run: nothing of this is for it.

What a worker has imported is not looked through for garbage: see `fcnpipe.core.garbage_collection`.
It starts and leaves sooner.
"""

from __future__ import annotations

import atexit
import os
import signal
from typing import Any

from fcnpipe.core.garbage_collection import freeze_objects


def dask_setup(worker: Any) -> None:
    """Let a worker be deaf to Ctrl-C; called by Dask."""
    if worker.nanny:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        freeze_objects()


def dask_teardown(worker: Any) -> None:
    """Leave a tile half-done, which a resume does again; called by Dask."""
    if not worker.nanny:
        return
    freeze_objects()
    if worker.active_threads:
        atexit._run_exitfuncs()
        os._exit(0)
