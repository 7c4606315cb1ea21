"""Prefect flows: names, retries and artifacts around the stages of :mod:`fcnpipe.pipeline.run`.

Importing it makes Prefect quiet and keeps it off the network, unless the environment says
otherwise; so it has to come before Prefect itself.
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
"""Settings for a run by hand. A worker has read its own before it comes here."""

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

with pause_collection():
    import prefect  # noqa: F401  what is built on it is imported sooner
