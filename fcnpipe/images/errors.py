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
from astropy.io.fits.hdu.compressed import _compression

from fcnpipe import remote
from fcnpipe.core.errors import InputChanged, InputError, InputUnreachable, escape_controls
from fcnpipe.core.errors import first_line as core_first_line

LIBRARY_ERRORS = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError, RuntimeError,
    SyntaxError, zlib.error, struct.error, tokenize.TokenError, fits.VerifyError, _compression.CfitsioException,
)  # fmt: skip
"""Errors that libraries raise when they read a damaged file."""
_FILTER_LOCK = threading.RLock()


def reading_error(error: BaseException, message: str) -> InputError:
    """Return the error for a file that could not be read.

    Parameters
    ----------
    error : BaseException
        Error raised by a library or for a server. The message of a server's error is kept.
    message : str
        Message for all other errors.
    """
    if isinstance(error, remote.Changed):
        return InputChanged(str(error))
    return (
        InputUnreachable(str(error))
        if isinstance(error, remote.RemoteError)
        else InputError(message)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message.

    For a KeyError it states that the key is missing, since its message is the key alone.
    """
    if isinstance(error, KeyError) and error.args:
        return escape_controls(f"{error.args[0]} is missing")
    return core_first_line(error)


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Silence all warnings inside a block, one thread at a time.

    Notes
    -----
    Python keeps its warning filters per process, not per thread. The lock keeps one thread from restoring
    the filters that another has set.
    """
    with _FILTER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
