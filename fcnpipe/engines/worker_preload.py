"""Dask preload module of the workers that a run starts: they ignore Ctrl-C and exit at once when closed.

A terminal sends Ctrl-C to all processes of a command. The process that drives the run handles it and stops its
workers; a worker that handled it too would only print a traceback. A worker that is closed while it runs a tile
is not needed any more, or has lost its run; Dask would wait 4 s for the tile and then kill the process. None of
this applies to a worker without a nanny, which is a thread of the driver's process.

The imported objects of a worker are excluded from garbage collection, so that it starts and exits sooner; see
`fcnpipe.core.garbage_collection`.
"""

from __future__ import annotations

import atexit
import os
import signal
from typing import Any

from fcnpipe.core.garbage_collection import freeze_objects


def dask_setup(worker: Any) -> None:
    """Let a worker ignore Ctrl-C; called by Dask when the worker starts."""
    if worker.nanny:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        freeze_objects()


def dask_teardown(worker: Any) -> None:
    """Exit at once if a tile is running, which a resumed run repeats; called by Dask when the worker closes."""
    if not worker.nanny:
        return
    freeze_objects()
    if worker.active_threads:
        atexit._run_exitfuncs()
        os._exit(0)
