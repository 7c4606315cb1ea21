"""Execution of a command: signals, one-line error messages, exit codes."""

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
from fcnpipe.core.kernel_cache import explain
from fcnpipe.core.timeouts import THREAD_PREFIX

INTERRUPTED = 130
USAGE = 2
_INTERRUPTION = "interrupted: run the same command again to resume"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Stop a command cleanly on SIGTERM as on Ctrl-C; a second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [s for s in _STOP_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in handled}
    hook, sys.unraisablehook = sys.unraisablehook, _repeat_ignored_interrupt
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    for handled in _STOP_SIGNALS:
        signal.signal(handled, _exit_at_once)
    raise KeyboardInterrupt


def _repeat_ignored_interrupt(ignored: Any) -> None:
    """Interrupt again if Python ignored it: it does so in weakref callbacks and finalisers."""
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    for handled in _STOP_SIGNALS:
        signal.signal(handled, _interrupt)
    # Later, and from another thread: here the exception would be ignored as well.
    repeat = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    repeat.daemon = True
    repeat.start()


def _exit_at_once(number: int, frame: object) -> NoReturn:
    os._exit(_print_error(_INTERRUPTION, INTERRUPTED))


def leave(code: int) -> NoReturn:
    """Exit without waiting for the threads of abandoned tasks.

    Notes
    -----
    These threads cannot be stopped. The interpreter would wait for them, or end them in the middle of a
    C library. A resumed run repeats the tasks that they leave incomplete.
    """
    freeze_objects()
    if any(t.name.startswith(THREAD_PREFIX) for t in threading.enumerate()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command(command: Callable[[], Any]) -> int:
    """Run a command, print an error in one line, and return the exit code.

    Notes
    -----
    An exception that is not a `FcnpipeError` is a bug of fcnpipe and keeps its traceback.
    """
    try:
        code = command()
    except FcnpipeError as error:
        return _print_error(str(error), error.exit_code)
    except typer.TyperException as error:
        return _print_usage_error(error)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except typer.Exit as request:
        return request.exit_code
    except RuntimeError as error:
        if not (message := explain(error)):
            raise
        return _print_error(message, USAGE)
    if code == INTERRUPTED:  # typer returns this code for Ctrl-C, and raises Abort otherwise
        return _print_error(_INTERRUPTION, INTERRUPTED)
    return code if isinstance(code, int) else 0


def _print_error(message: str, code: int) -> int:
    typer.echo(f"fcnpipe: {message}", err=True)
    return code


def _print_usage_error(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context else ""
    return _print_error(" ".join(error.format_message().split()).rstrip(".") + hint, USAGE)
