"""Paths of the files of a run: finished store, partial store, parquet catalogue, run reports."""

from __future__ import annotations

from pathlib import Path


def partial_path(out: str | Path) -> Path:
    """Return OUT.zarr.partial for OUT.zarr."""
    out = Path(out)
    return out.with_name(f"{out.name}.partial")


def final_path(partial: Path) -> Path:
    """Return OUT.zarr for OUT.zarr.partial; the path of a finished store is returned unchanged."""
    return partial.with_name(partial.name.removesuffix(".partial"))


def report_path(out: str | Path, suffix: str) -> Path:
    """Return the path of the run report next to the store; ``suffix`` is ``json`` or ``html``.

    Examples
    --------
    >>> report_path("field.zarr", "html").name
    'field.report.html'
    """
    return parquet_path(out).with_suffix(f".report.{suffix}")


def parquet_path(out: str | Path) -> Path:
    """Return the path of the parquet catalogue next to the store.

    Examples
    --------
    >>> parquet_path("field.zarr").name, parquet_path("field").name
    ('field.parquet', 'field.parquet')
    """
    out = Path(out)
    return out.with_suffix(".parquet") if out.suffix == ".zarr" else Path(f"{out}.parquet")


def partial_parquet_path(out: str | Path) -> Path:
    """Return the path of the parquet catalogue until the store is published."""
    path = parquet_path(out)
    return path.with_name(f"{path.name}.partial")
