"""Interface of the stores that exports read, and atomic writing of files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Box
from fcnpipe.core.records import OutputMap

Floats = NDArray[np.float64]

ToSky = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""x, y in px (0-based) -> ra, dec in ICRS degrees; NaN for points that are not on the sky."""

ScienceReader = Callable[[Box], NDArray[np.float32]]
"""Box of the full-size image -> (band, h, w) float32; NaN where there is no data."""


class StoreLayout(Protocol):
    """Shapes and names of a store that exports need."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        ...

    @property
    def edge(self) -> tuple[int, int]:
        """Height and width of a tile core, px."""
        ...

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        ...

    @property
    def maps(self) -> tuple[OutputMap, ...]:
        """Outputs of a network in the store of a prediction; empty in a store of sources."""
        ...


class FinishedStore(Protocol):
    """The part of the interface of a finished store that exports need."""

    @property
    def layout(self) -> StoreLayout:
        """Shapes and names."""
        ...

    @property
    def cards(self) -> tuple[str, ...]:
        """FITS header cards of the WCS; empty if there is none."""
        ...

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the run."""
        ...

    @property
    def columns(self) -> list[str]:
        """Names of the catalogue's columns."""
        ...

    def column_attrs(self, name: str) -> dict[str, Any]:
        """Return ``units``, ``long_name`` and ``ucd`` of a column, without those that are unknown."""
        ...

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Return columns for a range of rows."""
        ...

    def source_blocks(
        self, names: Iterable[str] | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the catalogue in blocks of rows, at least one."""
        ...

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Read a box of a map."""
        ...

    def has(self, name: str) -> bool:
        """Return whether an array such as ``image/0/science`` exists."""
        ...


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` at the end, or deleted on an error.

    Raises
    ------
    StoreError
        If the file cannot be written: the disk is full, permission is denied or the folder is missing.
    """
    path = Path(path)
    # Writers choose the format by the suffix, so the temporary name keeps it.
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write {path}: {reason}; choose another file") from None
    finally:
        temporary.unlink(missing_ok=True)
