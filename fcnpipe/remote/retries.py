"""Trying again what may pass: lost connections, servers that are busy or fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fcnpipe.remote.errors import is_transient, to_remote_error

_T = TypeVar("_T")

PAUSES_SECONDS = (0.3, 1.0, 3.0, 9.0)
"""Time between tries, a half more or less, so that many workers do not come back as one."""


async def retry(url: str, call: Callable[[], Awaitable[_T]]) -> _T:
    """Give what a call gives, in one of its tries.

    Raises
    ------
    RemoteError
        If it fails for good, or every time.
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
