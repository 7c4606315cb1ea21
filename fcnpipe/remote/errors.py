"""Errors of access to objects behind URLs, and their classification as transient or permanent."""

from __future__ import annotations

import asyncio
import errno

from fcnpipe.core.errors import FcnpipeError

TRANSIENT_STATUS = (408, 425, 429)
"""HTTP status codes below 500 after which a retry may succeed."""
TRANSIENT_S3_CODE = "NoSuchUpload"
"""Error code of S3 if the completion of a multipart upload is repeated because the first answer was lost.

The whole upload is then retried.
"""
_PERMANENT_TYPES = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError)
_PERMANENT_NUMBERS = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOENT, errno.ENAMETOOLONG)
_PERMANENT_NAMES = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "InvalidURL",
)
_CLIENT_PACKAGES = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "urllib3")


class RemoteError(FcnpipeError, OSError):
    """An object cannot be read or written; the message is one line with the fix."""


class Missing(RemoteError, FileNotFoundError):
    """The object, or its bucket, does not exist."""


class Forbidden(RemoteError, PermissionError):
    """The server denies access."""


class Changed(RemoteError):
    """The object has another version than when it was opened."""


class Unreachable(RemoteError, ConnectionError):
    """All retries of a request have failed."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later.

    Examples
    --------
    >>> is_transient(ConnectionResetError("lost")), is_transient(FileNotFoundError("s3://a/b"))
    (True, False)
    """
    if _s3_code(error) == TRANSIENT_S3_CODE:
        return True
    if isinstance(error, (RemoteError, *_PERMANENT_TYPES)):
        return False
    if type(error).__name__ in _PERMANENT_NAMES:
        return False
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in TRANSIENT_STATUS
    if isinstance(error, OSError) and error.errno in _PERMANENT_NUMBERS:
        return False
    known = isinstance(error, OSError | EOFError | TimeoutError | asyncio.TimeoutError)
    return known or type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES


def _s3_code(error: BaseException) -> str:
    """Return the error code of S3; empty if the error is not from S3."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def to_remote_error(url: str, error: BaseException, tries: int = 1) -> RemoteError:
    """Return the RemoteError, with a message of one line, for an error that a library raised for a URL."""
    if isinstance(error, RemoteError):
        return error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, FileNotFoundError):
        return Missing(f"{url} does not exist: check bucket, path and endpoint")
    if isinstance(error, PermissionError) or type(error).__name__ in _PERMANENT_NAMES:
        return Forbidden(
            f"access to {url} is denied ({reason}): check the credentials in the environment "
            "or in config files"
        )
    if is_transient(error):
        return Unreachable(f"{url} did not answer in {tries} tries ({reason}): try again later")
    return RemoteError(f"{url} cannot be accessed: {reason}")
