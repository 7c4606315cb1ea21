"""Finds, separates and catalogues the sources in images too large for one machine's memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open", "segment"]

if TYPE_CHECKING:
    from fcnpipe.access import open
    from fcnpipe.api import segment

_PLACES = {"segment": "fcnpipe.api", "open": "fcnpipe.access"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that ``import fcnpipe`` is quick."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'fcnpipe' has no attribute {name!r}")
