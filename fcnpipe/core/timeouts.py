"""Calls with a time limit.

Python cannot end a thread, and a thread that hangs in a C library does not react to signals. A call that exceeds
its limit is therefore abandoned: its thread continues in the background. The call stops at its next call of
:func:`raise_if_abandoned`, and the thread does not keep the process alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
THREAD_PREFIX = "fcnpipe"
"""Prefix of the names of threads that may still run when the process ends."""


class _CallThread(threading.Thread, Generic[_T]):
    """A thread that keeps the result or the exception of its call."""

    def __init__(self, call: Callable[[], _T]) -> None:
        super().__init__(name=f"{THREAD_PREFIX}-attempt", daemon=True)
        self.abandoned, self._call = False, call
        self._result: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error

    def result(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._result[0]


def call_with_timeout(seconds: float, call: Callable[[], _T]) -> _T:
    """Return the result of a call that finishes within a time limit.

    Parameters
    ----------
    seconds : float
        Time limit, s.
    call : callable
        Function without arguments; it runs in a thread of its own.

    Raises
    ------
    TimeoutError
        If the limit is exceeded; the call is abandoned.

    Examples
    --------
    >>> call_with_timeout(60, lambda: "done")
    'done'
    """
    thread = _CallThread(call)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        thread.abandoned = True
        raise TimeoutError(
            f"not done after {seconds:g} s, abandoned; if it is only slow, raise the limit"
        )
    return thread.result()


def raise_if_abandoned() -> None:
    """Stop an abandoned call before it has further effects.

    Raises
    ------
    TimeoutError
        If the current thread runs a call that was abandoned.
    """
    if getattr(threading.current_thread(), "abandoned", False):
        raise TimeoutError("abandoned")
