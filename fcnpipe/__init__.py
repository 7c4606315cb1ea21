"""Finds, separates and catalogues the sources in images too large for one machine's memory."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open", "predict", "reach", "segment"]

if TYPE_CHECKING:
    from fcnpipe.access import open
    from fcnpipe.api import predict, segment
    from fcnpipe.networks.tiling import reach

_PLACES = {
    "segment": "fcnpipe.api",
    "predict": "fcnpipe.api",
    "open": "fcnpipe.access",
    "reach": "fcnpipe.networks.tiling",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that ``import fcnpipe`` is quick."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'fcnpipe' has no attribute {name!r}")


class _Root(ModuleType):
    """Keeps ``fcnpipe.segment`` the function where the science core's module has the same name.

    The import system sets each submodule as an attribute of its package; that one is left out.
    Inside the package: ``from fcnpipe.segment import separate``, never from the root.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root
