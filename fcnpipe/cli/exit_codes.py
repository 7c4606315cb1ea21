"""How a command runs and ends: signals, one line for an error, exit codes."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from fcnpipe.core.errors import FcnpipeError
from fcnpipe.core.garbage_collection import freeze_objects
from fcnpipe.core.timeouts import THREAD_PREFIX

INTERRUPTED = 130
USAGE = 2
_INTERRUPTION = "interrupted; the same command takes the run up again"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, cleanly; the second signal does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [s for s in _STOPPING if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOPPING = (signal.SIGINT, signal.SIGTERM)


def _stop(number: int, frame: object) -> NoReturn:
    for heeded in _STOPPING:
        signal.signal(heeded, _stop_at_once)
    raise KeyboardInterrupt


def _stop_at_once(number: int, frame: object) -> NoReturn:
    os._exit(_complain(_INTERRUPTION, INTERRUPTED))


def leave(code: int) -> NoReturn:
    """Leave, without waiting for tiles of which nobody wants to know any more.

    Notes
    -----
    Their threads cannot be stopped, and the interpreter would wait for them, or tear them down in
    the middle of a C library. What they leave half-done is done again by a resume.
    """
    freeze_objects()
    if any(t.name.startswith(THREAD_PREFIX) for t in threading.enumerate()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command(command: Callable[[], Any]) -> int:
    """Run a command, say in one line what went wrong, and give the exit code.

    Notes
    -----
    Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        code = command()
    except FcnpipeError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:
        return _complain_usage(error)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except typer.Exit as leave:
        return leave.exit_code
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code, other ways out come as Abort
        return _complain(_INTERRUPTION, INTERRUPTED)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    typer.echo(f"fcnpipe: {message}", err=True)
    return code


def _complain_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context else ""
    return _complain(" ".join(error.format_message().split()).rstrip(".") + hint, USAGE)
