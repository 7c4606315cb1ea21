"""Separators: from elevation and foreground to sources. A new one is one new file here."""

from __future__ import annotations

from fcnpipe.separators.base import Separator
from fcnpipe.separators.watershed import Watershed

__all__ = ["Separator", "Watershed"]
