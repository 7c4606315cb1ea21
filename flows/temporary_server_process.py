"""The process of a temporary server: Prefect's application, run by its path and not imported.

::

    python -P flows/temporary_server_process.py PORT

It starts without the garbage collector, which would look through all that is imported, and made of
the tables of a new database, again and again: a fifth of the time.
"""

import gc
import sys
from socket import socket

import uvicorn

APPLICATION = "prefect.server.api.server:create_app"


class Server(uvicorn.Server):
    """A server that collects garbage once it has started, and leaves out what it began with."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start the application, which makes its database if there is none."""
        await super().startup(sockets)
        gc.freeze()
        gc.enable()


def main(port: int) -> None:
    """Serve on the loopback interface until a signal comes."""
    gc.disable()
    config = uvicorn.Config(
        APPLICATION, factory=True, lifespan="on", host="127.0.0.1", port=port, log_level="error"
    )
    Server(config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
