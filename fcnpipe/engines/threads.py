"""The threads engine: a pool of threads in this process; numba, torch and codecs release the interpreter lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from fcnpipe.core.records import TaskReport
from fcnpipe.core.timeouts import THREAD_PREFIX
from fcnpipe.engines.base import Task


class ThreadsEngine:
    """Engine that runs tasks in a pool of threads, with at most two tasks in flight for each thread.

    Parameters
    ----------
    workers : int
        Number of threads, >= 1.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=THREAD_PREFIX)
        self._running: set[Future[TaskReport]] = set()

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Yield one report for each name, in the order in which the tasks finish."""
        waiting = iter(names)
        self._running = {
            self._pool.submit(task, name) for name in islice(waiting, 2 * self.workers)
        }
        while self._running:
            done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
            self._running |= {self._pool.submit(task, name) for name in islice(waiting, len(done))}
            for future in done:
                yield future.result()

    def close(self) -> None:
        """Cancel queued tasks; after an interrupted run, do not wait for running ones."""
        self._pool.shutdown(wait=not self._running, cancel_futures=True)
