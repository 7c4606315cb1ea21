"""Every error that fcnpipe raises on purpose.

::

    FcnpipeError
    ├── SpecError        (ValueError)    an option, or options that do not go together
    ├── InputError       (OSError)       an image, weight or mask that cannot be read or does not fit
    │   ├── InputChanged                 one that became another while it was read
    │   └── InputUnreachable             one behind a URL that its server does not give
    ├── RemoteError      (OSError)       an object behind a URL; see fcnpipe.remote.errors
    ├── ModelError       (ValueError)    a model file, or a network that cannot be tiled exactly
    ├── PlanError        (ValueError)    a run that cannot fit the machine or the store
    ├── EngineError      (RuntimeError)  workers that do not come, cannot do the tasks, or have left
    ├── StoreError       (OSError)       an output that exists, differs or cannot be written
    │   └── ShardDamaged                 a file of it that is not what was written
    ├── TrainingError    (RuntimeError)  a training that has run away
    ├── VerificationError (ValueError)   a store whose contents contradict each other
    ├── TilesFailed      (RuntimeError)  some tiles failed; the rest has landed
    └── ImagesFailed     (RuntimeError)  some images of many failed; the rest has landed

A message is one line with the value, the limit and the mend.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class FcnpipeError(Exception):
    """Base of all errors that are about what the user gave, not about a bug of ours."""

    exit_code = 2


class SpecError(FcnpipeError, ValueError):
    """An option has a value that cannot be, or contradicts another."""


class InputError(FcnpipeError, OSError):
    """An input image, weight, mask or header cannot be read or does not fit."""


class InputChanged(InputError):
    """An input became another file while a run was reading it."""


class InputUnreachable(InputError):
    """An input behind a URL is not given to us: nothing is known of its pixels."""


class ModelError(FcnpipeError, ValueError):
    """A model file is broken or unknown, or its network cannot be tiled exactly."""


class PlanError(FcnpipeError, ValueError):
    """A run cannot fit: memory, disk, or a tile that is no whole number of shards."""


class EngineError(FcnpipeError, RuntimeError):
    """There is no worker for the tasks, or none any more; what is done stays done."""


class StoreError(FcnpipeError, OSError):
    """The output exists, belongs to another run, or cannot be written."""


class ShardDamaged(StoreError):
    """A file of a store cannot be decoded.

    Parameters
    ----------
    message : str
        Which, and the mend.
    path : Path, optional
        The file.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        self.path = path
        super().__init__(message)


class TrainingError(FcnpipeError, RuntimeError):
    """A training cannot go on: its loss is no number any more."""


class VerificationError(FcnpipeError, ValueError):
    """A store's labels, catalogue and ledger contradict each other."""


class TilesFailed(FcnpipeError, RuntimeError):
    """Some tiles failed; all others have landed and a resume re-does only these.

    Parameters
    ----------
    names : sequence of str
        Names of the failed tiles with the stage and the reason, one each.
    """

    exit_code = 3

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        shown = "; ".join(self.names[:5]) + (" ..." if len(self.names) > 5 else "")
        super().__init__(
            f"{len(self.names)} tile(s) failed: {shown}; run the same command again to re-do "
            "them, with --overwrite if the image had to be mended"
        )


class ImagesFailed(FcnpipeError, RuntimeError):
    """Some images of a survey failed; all others have landed and a second run re-does only these.

    Parameters
    ----------
    names : sequence of str
        The images that failed with the reason, one each.
    count : int
        Images in all.
    """

    exit_code = 3

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names = tuple(names)
        shown = "; ".join(self.names[:5]) + (" ..." if len(self.names) > 5 else "")
        super().__init__(
            f"{len(self.names)} of {count} image(s) failed: {shown}; the rest has landed, "
            "run the same command again to re-do only these"
        )


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has no message.

    Examples
    --------
    >>> first_line(ValueError("no space left\nTraceback")), first_line(KeyboardInterrupt())
    ('no space left', 'KeyboardInterrupt')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]
