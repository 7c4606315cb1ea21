"""Exceptions that fcnpipe raises deliberately.

::

    FcnpipeError
    ├── SpecError        (ValueError)    an invalid option, or options that contradict each other
    ├── InputError       (OSError)       an image, weight or mask that cannot be read or does not fit
    │   ├── InputChanged                 an input that was replaced while it was being read
    │   └── InputUnreachable             an input behind a URL that its server does not deliver
    ├── RemoteError      (OSError)       an object behind a URL; see fcnpipe.remote.errors
    ├── ModelError       (ValueError)    a model file, or a network that cannot be tiled exactly
    ├── PlanError        (ValueError)    a run that does not fit the machine or the store
    ├── EngineError      (RuntimeError)  workers that are missing, cannot run the tasks, or have left
    ├── StoreError       (OSError)       an output that exists, differs or cannot be written
    │   └── ShardDamaged                 a file of a store whose content is damaged
    ├── TrainingError    (RuntimeError)  a training whose loss has diverged
    ├── VerificationError (ValueError)   a store whose contents contradict each other
    ├── TilesFailed      (RuntimeError)  some tiles failed; all others are complete
    └── ImagesFailed     (RuntimeError)  some images of a survey failed; all others are complete

A message is one line that states the value, the limit and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def escape_controls(text: str) -> str:
    r"""Return a text in which characters that do not print are escaped as in Python source.

    File names and headers may contain control characters, which would act on a terminal, line breaks, and bytes that
    cannot be encoded.

    Examples
    --------
    >>> print(escape_controls("a\x1b[2J\nb"))
    a\x1b[2J\nb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class FcnpipeError(Exception):
    """Base class of errors caused by the user's input or the environment, not by a bug in fcnpipe."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the message in one line, with control characters escaped."""
        return escape_controls(super().__str__())


class SpecError(FcnpipeError, ValueError):
    """An option has an invalid value or contradicts another option."""


class InputError(FcnpipeError, OSError):
    """An input image, weight, mask or header cannot be read or does not fit."""


class InputChanged(InputError):
    """An input file was replaced while a run was reading it."""


class InputUnreachable(InputError):
    """An input behind a URL cannot be fetched; its pixels may be intact."""


class ModelError(FcnpipeError, ValueError):
    """A model file is broken or of an unknown kind, or its network cannot be tiled exactly."""


class PlanError(FcnpipeError, ValueError):
    """A run does not fit the memory or the disk, or its tile, window, stride and chunk are not multiples."""


class EngineError(FcnpipeError, RuntimeError):
    """No worker can run the tasks, or all workers have left; completed tasks are kept."""


class StoreError(FcnpipeError, OSError):
    """The output exists, belongs to another run, or cannot be written."""


class ShardDamaged(StoreError):
    """A file of a store cannot be decoded.

    Parameters
    ----------
    message : str
        The file and the fix.
    path : Path, optional
        The file.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        self.path = path
        super().__init__(message)


class TrainingError(FcnpipeError, RuntimeError):
    """A training cannot continue because its loss is not finite."""


class VerificationError(FcnpipeError, ValueError):
    """The labels, the catalogue and the ledger of a store contradict each other."""


class TilesFailed(FcnpipeError, RuntimeError):
    """Some tiles failed; all others are complete, and a resumed run repeats only the failed ones.

    Parameters
    ----------
    names : sequence of str
        One entry for each failed tile: its name, the stage and the reason.
    """

    exit_code = 3

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        shown = "; ".join(self.names[:5]) + (" ..." if len(self.names) > 5 else "")
        super().__init__(
            f"{len(self.names)} tile(s) failed: {shown}; run the same command again to repeat only "
            "these, with --overwrite if the image had to be repaired"
        )


class ImagesFailed(FcnpipeError, RuntimeError):
    """Some images of a survey failed; all others are complete, and a second run repeats only the failed ones.

    Parameters
    ----------
    names : sequence of str
        One entry for each failed image: its name and the reason.
    count : int
        Number of images in the survey.
    """

    exit_code = 3

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names = tuple(names)
        shown = "; ".join(self.names[:5]) + (" ..." if len(self.names) > 5 else "")
        super().__init__(
            f"{len(self.names)} of {count} image(s) failed: {shown}; all others are complete, "
            "run the same command again to repeat only these"
        )


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has no message.

    Examples
    --------
    >>> first_line(ValueError("no space left\nTraceback")), first_line(KeyboardInterrupt())
    ('no space left', 'KeyboardInterrupt')
    """
    return escape_controls((str(error).splitlines() or [type(error).__name__])[0])
