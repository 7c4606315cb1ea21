"""A call that hangs is abandoned, learns of it, and keeps nobody waiting."""

import threading
import time

import pytest

from fcnpipe.core.timeouts import call_with_timeout, raise_if_abandoned


def test_what_is_in_time_is_as_without_a_limit() -> None:
    assert call_with_timeout(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(60, lambda: 1 // 0)


def test_an_abandoned_call_learns_of_it_and_stops() -> None:
    go, found = threading.Event(), []

    def hang() -> None:
        raise_if_abandoned()
        go.wait(60)
        try:
            raise_if_abandoned()
        except TimeoutError as error:
            found.append(error)

    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done after 0\.1 s"):
        call_with_timeout(0.1, hang)
    assert time.monotonic() - begun < 30
    go.set()
    for thread in threading.enumerate():
        if thread.name == "fcnpipe-attempt":
            thread.join(60)
    assert found
    raise_if_abandoned()  # here nobody has given up
