"""Version number of fcnpipe."""

__version__ = "0.1.0"
