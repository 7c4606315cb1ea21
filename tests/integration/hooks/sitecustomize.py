"""Faults inside a process that runs fcnpipe, from outside the package.

Python imports a module of this name when it starts, Dask's workers too, if this folder is on
PYTHONPATH. ``FCNPIPE_FAULT`` says what befalls one task on one tile::

    {"task": "predict", "tile": "r001c001", "fault": "wait", "folder": "..."}

The process that comes to it leaves FOLDER/reached, with its number, and then

    wait    waits for FOLDER/go         memory  asks for more memory than there is
    hang    sleeps for an hour          kill    gets SIGKILL, as from a kernel short of memory
    full    may write no more, as to a full disk

``FCNPIPE_CLOCK`` set makes the wall clock jump by days, back and forth, whenever it is read.
"""

import json
import os
import sys

FAULT = "FCNPIPE_FAULT"


def wait(folder):
    import time

    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.01)


def hang(folder):
    import time

    time.sleep(3600)


def memory(folder):
    import numpy as np

    np.ones(1 << 50)


def kill(folder):
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def full(folder):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


FAULTS = {"wait": wait, "hang": hang, "memory": memory, "kill": kill, "full": full}


class Injection:
    """Finds ``fcnpipe.pipeline.tasks`` and puts the fault into its table of tasks."""

    def __init__(self, task, tile, fault, folder):
        self.task, self.tile, self.fault, self.folder = task, tile, fault, folder

    def find_spec(self, name, path=None, target=None):
        if name != "fcnpipe.pipeline.tasks":
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.TASKS[self.task] = self.spoil(module.TASKS[self.task])

        spec.loader.exec_module = exec_module
        return spec

    def spoil(self, task):
        def spoilt(job, name):
            if name == self.tile:
                self.befall()
            return task(job, name)

        return spoilt

    def befall(self):
        mark = os.path.join(self.folder, "reached")
        with open(f"{mark}.new", "w") as file:
            file.write(str(os.getpid()))
        os.replace(f"{mark}.new", mark)
        FAULTS[self.fault](self.folder)


if FAULT in os.environ:
    sys.meta_path.insert(0, Injection(**json.loads(os.environ[FAULT])))

if "FCNPIPE_CLOCK" in os.environ:
    import itertools
    import time

    _true, _days = time.time, itertools.cycle((0, 3, -400, 30, -1))
    time.time = lambda: _true() + 86400 * next(_days)
    time.time_ns = lambda: int(1e9 * time.time())
