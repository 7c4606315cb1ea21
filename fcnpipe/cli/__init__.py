"""The command line interface."""

from fcnpipe.cli.commands import main

__all__ = ["main"]
