"""The process of the temporary Prefect server, started by the path of this file.

::

    python -P flows/temporary_server_process.py PORT

The garbage collector is off during the start: repeated collections over the imported modules and the
models of the new database would take a fifth of the time.
"""

import gc
import sys
from socket import socket

import uvicorn

APPLICATION = "prefect.server.api.server:create_app"


class Server(uvicorn.Server):
    """A server that enables the garbage collector after its own start, and excludes the objects made until then."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start the application, which creates its database if there is none."""
        await super().startup(sockets)
        gc.freeze()
        gc.enable()


def main(port: int) -> None:
    """Serve on the loopback interface until a signal arrives."""
    gc.disable()
    config = uvicorn.Config(
        APPLICATION, factory=True, lifespan="on", host="127.0.0.1", port=port, log_level="error"
    )
    Server(config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
