"""Export of finished stores: catalogue tables, FITS images, DS9 regions and PNG previews."""

from __future__ import annotations

from pathlib import Path

from fcnpipe.core.errors import SpecError
from fcnpipe.core.paths import is_remote
from fcnpipe.export.base import FinishedStore, ScienceReader, ToSky
from fcnpipe.export.catalogue_tables import TABLES, read_table
from fcnpipe.export.ds9_regions import export_regions
from fcnpipe.export.fits_images import export_labels, export_map, export_outputs
from fcnpipe.export.preview import PreviewStyle, export_preview

MAPS = ("labels", "flags", "probability")
"""Kinds of export that are maps."""
KINDS = (*TABLES, *MAPS, "ds9", "png")
"""All kinds of export."""

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
"""Suffix of the file -> default kind of export."""
_KINDS_OF_SUFFIX = {".fits": ("fits", *MAPS), ".fz": MAPS}
"""Suffix of the file -> possible kinds of export, if there are several."""


def export(
    store: FinishedStore,
    path: str | Path,
    kind: str | None = None,
    *,
    science: ScienceReader | None = None,
    to_sky: ToSky | None = None,
) -> None:
    """Write one export of a finished store.

    Parameters
    ----------
    store : FinishedStore
        The store.
    path : path
        The file; an existing one is replaced.
    kind : str, optional
        One of `KINDS`; by default the kind of the file's suffix in `SUFFIXES` (``.fits`` is the catalogue).
        For a prediction: comma-separated names of outputs, or ``flags``; all its images by default.
    science : callable, optional
        Function that reads the image, for previews of a store that does not contain it.
    to_sky : callable, optional
        Function that converts pixel to sky coordinates, for DS9 regions on the sky.

    Raises
    ------
    SpecError
        If the kind or the suffix is unknown, if they do not match, if the store does not contain the kind, or
        if the file is a URL.
    StoreError
        If the file cannot be written.
    """
    if is_remote(str(path)):
        raise SpecError(f"{path} is a URL, but exports are written to disk: name a local file")
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
    """Return the requested kind, or the default kind of the suffix."""
    suffix = Path(path).suffix
    own = SUFFIXES.get(suffix.lower())
    if kind is not None and kind not in KINDS:
        raise SpecError(f"export kind={kind!r} for {path}: choose one of {', '.join(KINDS)}")
    if kind is None and own is None:
        raise SpecError(
            f"export to {str(path)!r}: the suffix {suffix!r} is not one of {', '.join(SUFFIXES)}: "
            "use one of them, or add --what"
        )
    chosen = str(kind or own)
    possible = _KINDS_OF_SUFFIX.get(suffix.lower(), (own or chosen,))
    if chosen not in possible:
        raise SpecError(
            f"export kind={kind!r} for {path}: {suffix} files have the kinds {', '.join(possible)}: "
            "choose another kind or suffix"
        )
    return chosen


def _export_prediction(store: FinishedStore, path: str | Path, kind: str | None) -> None:
    """Write outputs of a network, from a store without sources."""
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
    "PreviewStyle",
    "export",
    "export_labels",
    "export_map",
    "export_outputs",
    "export_preview",
    "export_regions",
    "read_table",
]
