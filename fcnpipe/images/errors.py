"""Errors and warnings of the libraries that read image files."""

from __future__ import annotations

import struct
import threading
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from astropy.io import fits

from fcnpipe import remote
from fcnpipe.core.errors import InputChanged, InputError, InputUnreachable

DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError, RuntimeError,
    SyntaxError, zlib.error, struct.error, tokenize.TokenError, fits.VerifyError,
)  # fmt: skip
"""What libraries raise when they meet a broken file."""
_FILTERS = threading.RLock()


def damaged(error: BaseException, message: str) -> InputError:
    """Give the error of a file that cannot be read; what a server said is told as it is."""
    if isinstance(error, remote.Changed):
        return InputChanged(str(error))
    return (
        InputUnreachable(str(error))
        if isinstance(error, remote.RemoteError)
        else InputError(message)
    )


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message, or its name; of a KeyError what it misses."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of a library inside a block, one thread at a time.

    Notes
    -----
    Python keeps its warning filters for the process, not for the thread: the lock keeps two
    blocks from restoring each other's.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
