"""The event log of a run: one JSON line for each event, appended to a file.

========  ==========================================================================================
field     meaning
========  ==========================================================================================
time      UTC, ISO 8601
level     ``info``; ``warning`` for a failed tile; ``error`` for a failed run
event     ``run started``, ``run finished``, ``stage started``, ``stage finished``, ``tile done``,
          ``tile retried`` (done after an earlier failure), ``tile failed``
run_key   digest of everything that determines the result
stage     name of the stage; null for events of the run
task      function of :mod:`fcnpipe.pipeline.tasks`; a stage may have several
tile      name of the tile or of the node of tiles, or null
worker    HOST:PID of the process; empty for a lost worker
seconds   wall time of the run, stage or task that ended, else null
message   human-readable text of one line
========  ==========================================================================================

Events may have further fields. The driver alone writes the file, from the reports of the tasks, so it does not need
to be visible to workers.
"""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from typing import IO, Any

from fcnpipe.core.errors import SpecError

FIELDS = ("run_key", "stage", "task", "tile", "worker", "seconds", "message")


class EventLog:
    """Appends events to a file, each with a single write, so that several runs may share the file.

    Parameters
    ----------
    path : str, optional
        The file. The default writes nothing.

    Raises
    ------
    SpecError
        If the file cannot be opened for writing.
    """

    def __init__(self, path: str | None) -> None:
        self.run_key = ""
        self._path, self._file = path, _open(path) if path is not None else None

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Append an event.

        Notes
        -----
        If the file cannot be written any more, the method warns, closes it, and the run continues.
        """
        if self._file is None:
            return
        defaults = dict.fromkeys(FIELDS) | {"run_key": self.run_key, "message": ""}
        line = {"time": utc_timestamp(), "level": level, "event": event} | defaults | fields
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            self.close()
            reason = error.strerror or error
            warnings.warn(f"log file {self._path} ends here: {reason}", stacklevel=2)

    def close(self) -> None:
        """Close the file; later events are ignored."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def utc_timestamp() -> str:
    """Return the current time in UTC, ISO 8601, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise SpecError(
            f"log file {path} cannot be written: {error.strerror or error}; choose another --log-file"
        ) from None
