"""Exports: the catalogue, the maps and a picture in formats that other programs read."""

from __future__ import annotations

from pathlib import Path

from fcnpipe.core.errors import SpecError
from fcnpipe.core.paths import is_remote
from fcnpipe.export.base import Finished, ScienceReader, ToSky
from fcnpipe.export.catalogue_tables import TABLES, read_table
from fcnpipe.export.ds9_regions import export_regions
from fcnpipe.export.fits_images import export_labels, export_map, export_outputs
from fcnpipe.export.preview import Style, export_preview

MAPS = ("labels", "flags", "probability")
"""Maps that can be exported."""
KINDS = (*TABLES, *MAPS, "ds9", "png")
"""What can be exported."""

SUFFIXES = {
    ".csv": "csv",
    ".ecsv": "ecsv",
    ".xml": "votable",
    ".vot": "votable",
    ".parquet": "parquet",
    ".reg": "ds9",
    ".png": "png",
    ".fz": "labels",
    ".fits": "fits",
}
"""What a file name asks for where nothing else is said."""
_HOLDS = {".fits": ("fits", *MAPS), ".fz": MAPS}
"""What files of a suffix may hold, where it is more than one thing."""


def export(
    store: Finished,
    path: str | Path,
    kind: str | None = None,
    *,
    science: ScienceReader | None = None,
    to_sky: ToSky | None = None,
) -> None:
    """Write one export of a finished store.

    Parameters
    ----------
    store : Finished
        The store.
    path : path
        The file; replaced if it exists.
    kind : str, optional
        One of `KINDS`; by the file's suffix if not given (``.fits`` is the catalogue). Of a
        prediction: names of outputs with commas between them, or ``flags``; its images if not given.
    science : callable, optional
        Reads the image, for pictures of a store that does not keep it.
    to_sky : callable, optional
        Pixel to sky, for DS9 regions on the sky.

    Raises
    ------
    SpecError
        If the kind is unknown, the suffix says nothing, or the file is a URL.
    StoreError
        If the file cannot be written.
    """
    if is_remote(str(path)):
        raise SpecError(f"{path} is a URL, and exports go to a disk: name a local file")
    if store.layout.maps:
        _export_prediction(store, path, kind)
        return
    kind = _choose_kind(path, kind)
    if kind in TABLES:
        TABLES[kind](store, path)
    elif kind in MAPS:
        export_map(store, path, "label" if kind == "labels" else kind)
    elif kind == "ds9":
        export_regions(store, path, to_sky)
    else:
        export_preview(store, path, science)


def _choose_kind(path: str | Path, kind: str | None) -> str:
    """Give the kind that is wanted, or that the suffix asks for."""
    suffix = Path(path).suffix
    own = SUFFIXES.get(suffix.lower())
    if kind is not None and kind not in KINDS:
        raise SpecError(f"export kind={kind!r} for {path}: choose one of {', '.join(KINDS)}")
    if kind is None and own is None:
        raise SpecError(
            f"export to {str(path)!r}: the suffix {suffix!r} is none of {', '.join(SUFFIXES)}: "
            "give the file one of them, or say --what"
        )
    chosen = str(kind or own)
    if own is not None and chosen not in _HOLDS.get(suffix.lower(), (own,)):
        raise SpecError(f"export kind={kind!r} for {path}: a file of {suffix} holds none of these")
    return chosen


def _export_prediction(store: Finished, path: str | Path, kind: str | None) -> None:
    """Write outputs of a network; a store of them has no sources."""
    if SUFFIXES.get(Path(path).suffix.lower()) not in ("fits", "labels"):
        raise SpecError(
            f"{path}: a prediction has images and no sources: export it as .fits or .fits.fz"
        )
    if kind == "flags":
        export_map(store, path, kind)
    else:
        export_outputs(store, path, kind.split(",") if kind else ())


__all__ = [
    "KINDS",
    "TABLES",
    "Style",
    "export",
    "export_labels",
    "export_map",
    "export_outputs",
    "export_preview",
    "export_regions",
    "read_table",
]
