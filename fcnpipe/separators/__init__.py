"""Separators: divide the foreground of a tile into segments of sources. A new separator is one new file here."""

from __future__ import annotations

from fcnpipe.separators.base import Separator
from fcnpipe.separators.watershed import Watershed

__all__ = ["Separator", "Watershed"]
