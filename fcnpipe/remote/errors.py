"""What can go wrong with an object behind a URL, one line each; and what may pass if one waits."""

from __future__ import annotations

import asyncio
import errno

from fcnpipe.core.errors import FcnpipeError

TRANSIENT_STATUS = (408, 425, 429)
"""HTTP answers below 500 that may be another one soon."""
TRANSIENT_S3_CODE = "NoSuchUpload"
"""S3's answer where one that said an upload in parts is complete was lost: it is over, and begun anew."""
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError)
_LASTING_NUMBERS = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOENT, errno.ENAMETOOLONG)
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "urllib3")
_LASTING_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "InvalidURL")


class RemoteError(FcnpipeError, OSError):
    """An object cannot be read or written; the message is one line with the mend."""


class Missing(RemoteError, FileNotFoundError):
    """There is no such object, or bucket."""


class Forbidden(RemoteError, PermissionError):
    """The server does not let us."""


class Changed(RemoteError):
    """The object is another one than was opened."""


class Unreachable(RemoteError, ConnectionError):
    """The server has not answered well, however often it was asked."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later.

    Examples
    --------
    >>> is_transient(ConnectionResetError("lost")), is_transient(FileNotFoundError("s3://a/b"))
    (True, False)
    """
    if _code(error) == TRANSIENT_S3_CODE:
        return True
    if isinstance(error, (RemoteError, *_LASTING)) or type(error).__name__ in _LASTING_NAMES:
        return False
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in TRANSIENT_STATUS
    if isinstance(error, OSError) and error.errno in _LASTING_NUMBERS:
        return False
    known = isinstance(error, OSError | EOFError | TimeoutError | asyncio.TimeoutError)
    return known or type(error).__module__.partition(".")[0] in _CLIENTS


def _code(error: BaseException) -> str:
    """Give the name that S3 has for an error."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def to_remote_error(url: str, error: BaseException, tries: int = 1) -> RemoteError:
    """Give the error that says it in one line, whatever library it came from."""
    if isinstance(error, RemoteError):
        return error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, FileNotFoundError):
        return Missing(f"{url} does not exist: check bucket, path and endpoint")
    if isinstance(error, PermissionError) or type(error).__name__ in _LASTING_NAMES:
        return Forbidden(
            f"{url} is not open to us ({reason}): check the credentials in the environment "
            "or in config files"
        )
    if is_transient(error):
        return Unreachable(f"{url} did not answer in {tries} tries ({reason}): try again later")
    return RemoteError(f"{url} cannot be had: {reason}")
