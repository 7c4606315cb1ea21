"""The command line."""

from fcnpipe.cli.commands import main

__all__ = ["main"]
