"""Find, separate and catalogue the sources in images too large for one machine's memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcnpipe.core.kernel_cache import ensure_cache_folder
from fcnpipe.core.version import __version__

__all__ = ["__version__", "open", "predict", "reach", "segment"]

if TYPE_CHECKING:
    from fcnpipe.api import predict, segment
    from fcnpipe.networks.tiling_report import reach
    from fcnpipe.reading.results import open

ensure_cache_folder()

_MODULES = {
    "segment": "fcnpipe.api",
    "predict": "fcnpipe.api",
    "open": "fcnpipe.reading.results",
    "reach": "fcnpipe.networks.tiling_report",
}


def __getattr__(name: str) -> Any:
    """Import a function at its first use, so that ``import fcnpipe`` is fast."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fcnpipe' has no attribute {name!r}")
