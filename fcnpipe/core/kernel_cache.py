"""Folder of the compiled kernels, for an installation where numba finds none.

numba stores compiled kernels in NUMBA_CACHE_DIR, next to the module, or in the user's cache folder. A service user
may be able to write none of them: the package belongs to somebody else, and there is no home. numba then refuses to
define the kernels. They are stored in a private folder of the temporary directory instead.

numba reads its cache with pickle, so whoever writes to the folder can run code. A temporary directory is shared with
other users; a folder there is used only if it is the user's own, closed to others, and cannot be replaced by them.

The module runs at each ``import fcnpipe``, before any kernel is defined, and imports the standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator

VARIABLE = "NUMBA_CACHE_DIR"
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KERNEL_FOLDERS = (
    *("images", "networks", "networks/inference", "science"),
    *("simulation", "stores", "training"),
)
"""Folders of the package whose modules define kernels."""
_SHARED = stat.S_IWGRP | stat.S_IWOTH
_PRIVATE = 0o700


def ensure_cache_folder() -> None:
    """Set NUMBA_CACHE_DIR to a private temporary folder if numba could not store compiled kernels anywhere.

    Nothing changes where numba finds a folder. If there is no suitable temporary directory either, numba
    raises an error when a kernel is defined; see `explain`.
    """
    if _has_cache_folder():
        return
    folder = next(_find_private_folders(), None)
    if folder is None:
        return
    os.environ[VARIABLE] = folder
    if numba := sys.modules.get("numba"):  # imported before fcnpipe, so it has read the environment
        numba.config.CACHE_DIR = folder


def explain(error: RuntimeError) -> str:
    """Return one line for the error that numba raises if it finds no folder; empty for another error."""
    if "no locator available" not in str(error):
        return ""
    return (
        f"compiled kernels cannot be stored: neither {PACKAGE} nor the home nor a temporary directory is "
        f"writable and private: set {VARIABLE} to a folder that only you can write"
    )


def _has_cache_folder() -> bool:
    """Return whether numba finds a folder; it tries them in this order."""
    chosen = os.environ.get(VARIABLE)
    if chosen and _can_write(chosen):
        return True
    in_tree = (os.path.join(PACKAGE, folder, "__pycache__") for folder in KERNEL_FOLDERS)
    if all(map(_can_write, in_tree)):
        return True
    # Without a home, the folder is relative to the current one, which others may be able to write.
    folder = _user_cache_folder()
    return os.path.isabs(folder) and _can_write(folder)


def _user_cache_folder() -> str:
    """Return the folder in the user's home that numba uses."""
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Caches/numba")
    return os.path.join(os.getenv("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "numba")


def _can_write(folder: str) -> bool:
    """Return whether a file can be created in a folder, which is made if it is missing, as numba does."""
    try:
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f".fcnpipe-{os.getpid()}-{os.urandom(4).hex()}")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(path)
    except OSError:
        return False
    return True


# --- private folders ------------------------------------------------------------------------------


def _find_private_folders() -> Iterator[str]:
    """Yield private folders in the temporary directories; if a name is taken by others, one with another number."""
    given = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    for parent in filter(None, (*given, "/tmp", "/var/tmp", "/dev/shm")):
        root = os.path.realpath(parent)
        if _is_safe_parent(root):
            names = (f"fcnpipe-kernels-{os.geteuid()}{end}" for end in ("", "-2", "-3", "-4"))
            yield from filter(_make_private, (os.path.join(root, name) for name in names))


def _is_safe_parent(folder: str) -> bool:
    """Return whether no other user, except root, can replace an entry of a folder or of a folder above it."""
    try:
        trusted = {os.geteuid(), os.stat("/").st_uid}
        while True:
            found = os.stat(folder)
            is_open = found.st_mode & _SHARED and not found.st_mode & stat.S_ISVTX
            if not stat.S_ISDIR(found.st_mode) or is_open or found.st_uid not in trusted:
                return False
            if folder == os.path.dirname(folder):
                return True
            folder = os.path.dirname(folder)
    except OSError:
        return False


def _make_private(folder: str) -> bool:
    """Make a folder, unless it exists; return whether it is the user's own, closed to others and writable."""
    try:
        os.mkdir(folder, _PRIVATE)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = os.lstat(folder)  # not followed: a link of another user is not a folder
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return is_own and stat.S_IMODE(found.st_mode) & 0o077 == 0 and _can_write(folder)
