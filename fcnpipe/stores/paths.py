"""Where the files of a run lie: the store, partial and finished, the catalogue, the reports."""

from __future__ import annotations

from pathlib import Path


def partial_path(out: str | Path) -> Path:
    """Give OUT.zarr.partial of OUT.zarr."""
    out = Path(out)
    return out.with_name(f"{out.name}.partial")


def final_path(partial: Path) -> Path:
    """Give OUT.zarr of OUT.zarr.partial; a finished store's own path is given back."""
    return partial.with_name(partial.name.removesuffix(".partial"))


def report_path(out: str | Path, suffix: str) -> Path:
    """Give where the account of a run lies beside the store, as ``json`` or ``html``.

    Examples
    --------
    >>> report_path("field.zarr", "html").name
    'field.report.html'
    """
    return parquet_path(out).with_suffix(f".report.{suffix}")


def parquet_path(out: str | Path) -> Path:
    """Give where the catalogue lies beside the store.

    Examples
    --------
    >>> parquet_path("field.zarr").name, parquet_path("field").name
    ('field.parquet', 'field.parquet')
    """
    out = Path(out)
    return out.with_suffix(".parquet") if out.suffix == ".zarr" else Path(f"{out}.parquet")
