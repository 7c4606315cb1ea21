"""What happens in a run, as JSON lines: one event each, added to a file.

========  ==========================================================================================
field     what
========  ==========================================================================================
time      UTC, ISO 8601
level     ``info``, ``warning`` (a tile has failed), ``error`` (the run has)
event     ``run started``, ``run finished``, ``stage started``, ``stage finished``, ``tile done``,
          ``tile retried`` (done, after it had failed before), ``tile failed``
run_key   digest of all that decides the result
stage     null for the run itself
task      function of :mod:`fcnpipe.pipeline.tasks`; a stage may have several
tile      tile, node of tiles, or null
worker    HOST:PID of the process; empty for one that was lost
seconds   wall time of what has ended, else null
message   one line for people
========  ==========================================================================================

and what else belongs to the event. Driver and workers need not share the file: it is written by the
driver alone, of the reports that come back anyway.
"""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from typing import IO, Any

from fcnpipe.core.errors import SpecError

FIELDS = ("run_key", "stage", "task", "tile", "worker", "seconds", "message")


class EventLog:
    """Adds lines to a file, each in one piece, so that several runs may share it.

    Parameters
    ----------
    path : str, optional
        The file; nothing is written if not given.

    Raises
    ------
    SpecError
        If it cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self.run_key = ""
        self._path, self._file = path, _open(path) if path is not None else None

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Add a line.

        Notes
        -----
        A run does not end because its log cannot be written any more: that is a warning.
        """
        if self._file is None:
            return
        known = dict.fromkeys(FIELDS) | {"run_key": self.run_key, "message": ""}
        line = {"time": utc_timestamp(), "level": level, "event": event} | known | fields
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            self.close()
            reason = error.strerror or error
            warnings.warn(f"log file {self._path} ends here: {reason}", stacklevel=2)

    def close(self) -> None:
        """Close the file; what comes later is not written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def utc_timestamp() -> str:
    """Give the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise SpecError(
            f"log file {path} cannot be written: {error.strerror or error}; name another --log-file"
        ) from None
