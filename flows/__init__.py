"""Prefect flows around :mod:`fcnpipe.pipeline.run`: one task for each stage, retries, artifacts.

Importing this package before Prefect makes Prefect quiet and disables its telemetry, unless the
environment sets these options otherwise.
"""

import os

from fcnpipe.core.garbage_collection import pause_collection

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLI_PROMPT": "false",
}
"""Settings for flows that are started as a command. A worker reads its own settings before this import."""

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

with pause_collection():
    import prefect  # noqa: F401  imported here, so that the pause of the garbage collector covers it
