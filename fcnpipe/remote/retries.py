"""Retries after transient errors: lost connections, busy or failing servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fcnpipe.remote.errors import is_transient, to_remote_error

_T = TypeVar("_T")

PAUSES_SECONDS = (0.3, 1.0, 3.0, 9.0)
"""Pauses between tries; each varies at random by 50 %, so that workers do not retry in step."""


async def retry(url: str, call: Callable[[], Awaitable[_T]]) -> _T:
    """Return the result of a call, retried after transient errors.

    Raises
    ------
    RemoteError
        If the error is permanent, or if all tries fail.
    """
    for pause in PAUSES_SECONDS:
        try:
            return await call()
        except Exception as error:
            if not is_transient(error):
                raise to_remote_error(url, error) from error
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
    try:
        return await call()
    except Exception as error:
        raise to_remote_error(url, error, 1 + len(PAUSES_SECONDS)) from error
