"""What every export reads, and how a file is written whole."""

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
"""x, y in px, 0-based -> ra, dec in ICRS degrees; NaN where there is no sky."""

ScienceReader = Callable[[Box], NDArray[np.float32]]
"""Box of the full-size image -> (band, h, w) float32; NaN is no data."""


class Shapes(Protocol):
    """What an export asks of a layout."""

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
        """Outputs of a network that are stored as they are; empty if sources were found."""
        ...


class Finished(Protocol):
    """A finished store, as far as exports look at it."""

    @property
    def layout(self) -> Shapes:
        """Shapes and names."""
        ...

    @property
    def cards(self) -> tuple[str, ...]:
        """FITS header cards of the WCS; empty if none."""
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
        """Give ``units``, ``long_name``, ``ucd`` of a column, where it has them."""
        ...

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Give columns for a run of rows."""
        ...

    def source_blocks(
        self, names: Iterable[str] | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Give the catalogue in blocks of rows, at least one."""
        ...

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Give a box of a map."""
        ...

    def has(self, name: str) -> bool:
        """Whether an array such as ``image/0/science`` is there."""
        ...


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` at the end, or vanishes on an error.

    Raises
    ------
    StoreError
        If the file system refuses: disk full, no permission, no such folder.
    """
    path = Path(path)
    # The suffix stays: writers look at it.
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
