"""A call that exceeds its time limit is abandoned and stops later; its caller continues at once."""

import threading
import time

import pytest

from fcnpipe.core.timeouts import call_with_timeout, raise_if_abandoned


def test_a_call_within_the_limit_returns_or_raises_as_without_it() -> None:
    assert call_with_timeout(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(60, lambda: 1 // 0)


def test_an_abandoned_call_stops_at_its_next_check() -> None:
    go, found = threading.Event(), []

    def hang() -> None:
        raise_if_abandoned()
        go.wait(60)
        try:
            raise_if_abandoned()
        except TimeoutError as error:
            found.append(error)

    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done after 0\.1 s"):
        call_with_timeout(0.1, hang)
    assert time.monotonic() - started < 30
    go.set()
    for thread in threading.enumerate():
        if thread.name == "fcnpipe-attempt":
            thread.join(60)
    assert found
    raise_if_abandoned()  # nothing is abandoned in this thread
