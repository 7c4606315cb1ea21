"""Fault injection in a process that runs fcnpipe, without any change to the package.

Python imports a module of this name at start-up if this folder is on PYTHONPATH, in Dask workers too.
``FCNPIPE_FAULT`` describes the fault of one task on one tile::

    {"task": "predict", "tile": "r001c001", "fault": "wait", "folder": "..."}

The process that starts this task on this tile writes its process id to FOLDER/reached, and then

    wait    waits for FOLDER/go         memory  allocates more memory than exists
    hang    sleeps for an hour          kill    sends itself SIGKILL, as a kernel short of memory does
    full    cannot write any more, as on a full disk

If ``FCNPIPE_CLOCK`` is set, the wall clock jumps back and forth by days at each reading.
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


class TaskPatcher:
    """Import hook that adds the fault to the table of tasks of ``fcnpipe.pipeline.tasks``."""

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
            module.TASKS[self.task] = self.add_fault(module.TASKS[self.task])

        spec.loader.exec_module = exec_module
        return spec

    def add_fault(self, task):
        def task_with_fault(job, name):
            if name == self.tile:
                self.run_fault()
            return task(job, name)

        return task_with_fault

    def run_fault(self):
        mark = os.path.join(self.folder, "reached")
        with open(f"{mark}.new", "w") as file:
            file.write(str(os.getpid()))
        os.replace(f"{mark}.new", mark)
        FAULTS[self.fault](self.folder)


if FAULT in os.environ:
    sys.meta_path.insert(0, TaskPatcher(**json.loads(os.environ[FAULT])))

if "FCNPIPE_CLOCK" in os.environ:
    import itertools
    import time

    _true, _days = time.time, itertools.cycle((0, 3, -400, 30, -1))
    time.time = lambda: _true() + 86400 * next(_days)
    time.time_ns = lambda: int(1e9 * time.time())
