"""Calls that may take only so long.

Python cannot end a thread, and a thread that hangs in the C library would not listen: a call that is
overdue is abandoned. Its thread goes on beside the run, is told so when it next asks with
:func:`raise_if_abandoned`, and never keeps the process from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
THREAD_PREFIX = "fcnpipe"
"""Threads of this name may be left behind when the process ends."""


class _Attempt(threading.Thread, Generic[_T]):
    """A thread that keeps what its call gave or raised."""

    def __init__(self, call: Callable[[], _T]) -> None:
        super().__init__(name=f"{THREAD_PREFIX}-attempt", daemon=True)
        self.wanted, self._call = True, call
        self._result: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error

    def outcome(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._result[0]


def call_with_timeout(seconds: float, call: Callable[[], _T]) -> _T:
    """Give what a call gives, if it does so in time.

    Raises
    ------
    TimeoutError
        If it does not; the call is abandoned.

    Examples
    --------
    >>> call_with_timeout(60, lambda: "done")
    'done'
    """
    attempt = _Attempt(call)
    attempt.start()
    attempt.join(seconds)
    if attempt.is_alive():
        attempt.wanted = False
        raise TimeoutError(
            f"not done after {seconds:g} s, abandoned; if it is only slow, give more"
        )
    return attempt.outcome()


def raise_if_abandoned() -> None:
    """Stop a call that was abandoned before it does something.

    Raises
    ------
    TimeoutError
        In the thread of such a call, where nobody listens any more.
    """
    if not getattr(threading.current_thread(), "wanted", True):
        raise TimeoutError("abandoned")
