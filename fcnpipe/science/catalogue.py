"""Columns of the catalogue, and assembly of the rows of all tiles into one table.

``COLUMNS`` is the only place that defines the name, type, unit and meaning of a column; the store,
parquet and every export read it from here. Names follow photutils 3 (`SourceCatalog`). Positions are
0-based pixels, angles are in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import VerificationError
from fcnpipe.core.records import SourceFlag
from fcnpipe.science.wcs import pixel_to_icrs

GROUP_BYTES = 64 * 2**20
"""Maximum memory of the columns that are assembled together."""
FLUX_UNIT = "image"
"""Placeholder in ``Column.unit`` for the unit of the image's pixels (``BUNIT``)."""

Rows = Mapping[str, NDArray[Any]]
"""Rows of some sources: arrays of equal length by column name, including ``label``."""


@dataclass(frozen=True, slots=True)
class Column:
    """Definition of a column of the catalogue.

    Attributes
    ----------
    name : str
        Name; that of photutils 3 where photutils has the quantity.
    dtype : str
        NumPy type in the store. NaN in a column of floats means "not measured".
    unit : str
        Unit in astropy's notation, or ``FLUX_UNIT`` for that of the image; empty if there is none.
    ucd : str
        IVOA Unified Content Descriptor (1.3), or empty.
    description : str
        One-line description for users.
    """

    name: str
    dtype: str
    unit: str
    ucd: str
    description: str

    def with_unit(self, flux: str) -> Column:
        """Return the column with ``FLUX_UNIT`` replaced by the unit of the image."""
        unit = flux if self.unit == FLUX_UNIT else self.unit
        return Column(self.name, self.dtype, unit, self.ucd, self.description)


COLUMNS = (
    Column("label", "int32", "", "meta.id;meta.main",
           "number of the source in the label image, from 1"),
    Column("source_id", "uint64", "", "meta.id",
           "permanent id: global pixel index y * width + x of its peak"),
    Column("x_centroid", "float64", "pix", "pos.cartesian.x;instr.det", "centroid in x, 0-based"),
    Column("y_centroid", "float64", "pix", "pos.cartesian.y;instr.det", "centroid in y, 0-based"),
    Column("x_winpos", "float64", "pix", "pos.cartesian.x;instr.det",
           "x in a Gaussian window (SExtractor XWIN), 0-based"),
    Column("y_winpos", "float64", "pix", "pos.cartesian.y;instr.det",
           "y in a Gaussian window (SExtractor YWIN), 0-based"),
    Column("ra", "float64", "deg", "pos.eq.ra;meta.main",
           "right ascension of the centroid, ICRS; NaN without a WCS"),
    Column("dec", "float64", "deg", "pos.eq.dec;meta.main",
           "declination of the centroid, ICRS; NaN without a WCS"),
    Column("bbox_xmin", "int32", "pix", "pos.cartesian.x;instr.det;stat.min",
           "first column of the source"),
    Column("bbox_xmax", "int32", "pix", "pos.cartesian.x;instr.det;stat.max",
           "last column of the source"),
    Column("bbox_ymin", "int32", "pix", "pos.cartesian.y;instr.det;stat.min",
           "first row of the source"),
    Column("bbox_ymax", "int32", "pix", "pos.cartesian.y;instr.det;stat.max",
           "last row of the source"),
    Column("x_peak", "int32", "pix", "pos.cartesian.x;instr.det",
           "column of the highest elevation"),
    Column("y_peak", "int32", "pix", "pos.cartesian.y;instr.det", "row of the highest elevation"),
    Column("area", "int64", "pix2", "phys.angArea", "number of pixels"),
    Column("semimajor_axis", "float64", "pix", "phys.angSize.smajAxis",
           "1-sigma length of the major axis"),
    Column("semiminor_axis", "float64", "pix", "phys.angSize.sminAxis",
           "1-sigma length of the minor axis"),
    Column("orientation", "float64", "deg", "pos.posAng",
           "angle of the major axis from x towards y, [0, 360)"),
    Column("eccentricity", "float64", "", "src.morph.param", "eccentricity of the ellipse"),
    Column("elongation", "float64", "", "src.morph.param", "semimajor over semiminor axis"),
    Column("ellipticity", "float64", "", "src.ellipticity", "1 - semiminor over semimajor axis"),
    Column("covariance_xx", "float64", "pix2", "stat.variance", "second moment in x"),
    Column("covariance_xy", "float64", "pix2", "stat.covariance", "mixed second moment"),
    Column("covariance_yy", "float64", "pix2", "stat.variance", "second moment in y"),
    Column("ellipse_cxx", "float64", "pix-2", "src.morph.param", "x^2 coefficient of the ellipse"),
    Column("ellipse_cxy", "float64", "pix-2", "src.morph.param", "x y coefficient of the ellipse"),
    Column("ellipse_cyy", "float64", "pix-2", "src.morph.param", "y^2 coefficient of the ellipse"),
    Column("fwhm", "float64", "pix", "phys.angSize",
           "FWHM of the Gaussian of the same second moments"),
    Column("min_value", "float64", FLUX_UNIT, "phot.count;stat.min", "minimum value above the sky"),
    Column("max_value", "float64", FLUX_UNIT, "phot.count;stat.max",
           "maximum value above the sky"),
    Column("min_value_xindex", "int32", "pix", "", "column of the minimum value"),
    Column("min_value_yindex", "int32", "pix", "", "row of the minimum value"),
    Column("max_value_xindex", "int32", "pix", "", "column of the maximum value"),
    Column("max_value_yindex", "int32", "pix", "", "row of the maximum value"),
    Column("segment_flux", "float64", FLUX_UNIT, "phot.count",
           "flux above the sky in the source's pixels"),
    Column("segment_flux_err", "float64", FLUX_UNIT, "stat.error;phot.count",
           "error of segment_flux"),
    Column("snr", "float64", "", "stat.snr", "segment_flux over segment_flux_err"),
    Column("kron_radius", "float64", "", "phys.angSize",
           "Kron radius in units of the semi-axes; NaN beyond 6"),
    Column("kron_flux", "float64", FLUX_UNIT, "phot.count",
           "flux in the ellipse of 2.5 Kron radii"),
    Column("kron_flux_err", "float64", FLUX_UNIT, "stat.error;phot.count", "error of kron_flux"),
    Column("half_light_radius", "float64", "pix", "phys.angSize",
           "radius of the circle that contains half of kron_flux"),
    Column("probability", "float64", "", "stat.probability",
           "mean probability of being a source, over its pixels"),
    Column("class", "int16", "", "src.class",
           "most probable class: its index in the probability image; -1 if none"),
    Column("elevation", "uint16", "", "", "maximum elevation, 65535 = 1"),
    Column("saturated_pixels", "int64", "", "meta.number", "number of saturated pixels"),
    Column("beside_bad_pixels", "int64", "", "meta.number",
           "number of pixels with a bad pixel among their 8 neighbours"),
    Column("flags", "int32", "", "meta.code.qual",
           "sum of " + ", ".join(f"{int(f)} {f.name}" for f in SourceFlag)),
)  # fmt: skip
"""Columns of every catalogue, in order."""

MAGNITUDES = (
    Column(
        "mag", "float64", "mag", "phot.mag", "magnitude of kron_flux; NaN if that is not positive"
    ),
    Column("mag_err", "float64", "mag", "stat.error;phot.mag", "error of mag"),
)
"""Additional columns of catalogues with a magnitude zero point."""


def list_columns(flux_unit: str = "", *, magnitudes: bool = False) -> tuple[Column, ...]:
    """Return the columns of the catalogue of a run.

    Parameters
    ----------
    flux_unit : str
        Unit of the image (``BUNIT``); empty if unknown.
    magnitudes : bool
        Whether to add the magnitudes, which need a zero point.

    Returns
    -------
    tuple of Column
        With the unit of the image in place of ``FLUX_UNIT``.

    Examples
    --------
    >>> [c.unit for c in list_columns("adu") if c.name == "kron_flux"]
    ['adu']
    """
    return tuple(c.with_unit(flux_unit) for c in (COLUMNS + MAGNITUDES if magnitudes else COLUMNS))


def complete_rows(
    measured: Rows, cards: Sequence[str], width: int, zero_point: float | None = None
) -> dict[str, NDArray[Any]]:
    """Add ids, sky positions and magnitudes to measured rows.

    Parameters
    ----------
    measured : mapping
        Columns of ``measure_isophotes`` and ``measure_apertures``. Missing aperture columns become NaN.
    cards : sequence of str
        FITS header cards with the WCS; empty if none.
    width : int
        Width of the image in pixels.
    zero_point : float, optional
        Magnitude of one unit of flux; without it, there are no magnitudes.

    Returns
    -------
    dict
        One array for each column of ``list_columns``, in its order and of the column's type.
    """
    rows = dict(measured)
    n = len(rows["label"])
    rows["source_id"] = rows["y_peak"].astype(np.uint64) * np.uint64(width) + rows["x_peak"].astype(
        np.uint64
    )
    rows["ra"], rows["dec"] = pixel_to_icrs(rows["x_centroid"], rows["y_centroid"], cards)
    for name in (
        "x_winpos",
        "y_winpos",
        "kron_radius",
        "kron_flux",
        "kron_flux_err",
        "half_light_radius",
    ):
        rows.setdefault(name, np.full(n, np.nan))
    if zero_point is not None:
        rows["mag"], rows["mag_err"] = to_magnitudes(
            rows["kron_flux"], rows["kron_flux_err"], zero_point
        )
    columns = list_columns(magnitudes=zero_point is not None)
    return {column.name: rows[column.name].astype(column.dtype) for column in columns}


def to_magnitudes(
    flux: NDArray[np.float64], error: NDArray[np.float64], zero_point: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute magnitudes and their errors; NaN where the flux is not positive.

    Examples
    --------
    >>> mag, err = to_magnitudes(np.array([100.0, -1.0]), np.array([1.0, 1.0]), 25.0)
    >>> mag.tolist(), round(err[0].item(), 5)
    ([20.0, nan], 0.01086)
    """
    # A loop over scalars: the last bit of NumPy's logarithm may depend on the position in the array.
    mag = np.array(
        [zero_point - 2.5 * math.log10(f) if f > 0 else math.nan for f in flux.tolist()], np.float64
    )
    ratio = np.divide(error, flux, out=np.full(len(flux), np.nan), where=flux > 0)
    return mag, ratio * (2.5 / math.log(10))


# --- assembly ---


def assemble(
    read: Callable[[tuple[str, ...]], Iterable[Rows]],
    count: int,
    columns: Sequence[Column] = COLUMNS,
) -> Iterator[tuple[Column, NDArray[Any]]]:
    """Assemble the rows of all tiles in order of label, column by column.

    Parameters
    ----------
    read : callable
        Function of column names that returns the parts, in any order, with at least these columns.
        It is called once for each group of columns. Memory holds at most one part, and one group of
        ``GROUP_BYTES`` or of a single column.
    count : int
        Number of sources. Labels are 1 to ``count``.
    columns : sequence of Column
        Columns to assemble.

    Yields
    ------
    Column, (count,) array
        The column and its values; row k - 1 is that of label k.

    Raises
    ------
    VerificationError
        If a label is missing, occurs twice, or is outside 1 to ``count``.
    """
    check_labels((part["label"] for part in read(("label",))), count)
    for group in _group_columns(columns, count):
        values = {column.name: np.empty(count, column.dtype) for column in group}
        for part in read(("label", *values)):
            rows = np.asarray(part["label"], np.int64) - 1
            for name, column_values in values.items():
                column_values[rows] = part[name]
        yield from ((column, values[column.name]) for column in group)


def _group_columns(columns: Sequence[Column], count: int) -> Iterator[Sequence[Column]]:
    """Yield groups of columns that fit ``GROUP_BYTES``, of one column at least."""
    step = max(GROUP_BYTES // (8 * max(count, 1)), 1)
    return (columns[i : i + step] for i in range(0, len(columns), step))


def check_labels(parts: Iterable[NDArray[Any]], count: int) -> None:
    """Check that every label from 1 to ``count`` occurs exactly once.

    Parameters
    ----------
    parts : iterable of (n,) int
        Labels of each part, in any order.
    count : int
        Number of sources.

    Raises
    ------
    VerificationError
        If a label is missing, occurs twice, or is outside 1 to ``count``; the message names one.
    """
    times = np.zeros(count, np.uint8)
    for labels in parts:
        rows = np.sort(np.asarray(labels, np.int64) - 1)
        outside = rows[(rows < 0) | (rows >= count)]
        if len(outside):
            raise _catalogue_error(f"a row for label {outside[0] + 1}, outside 1 to {count}")
        again = np.concatenate([rows[times[rows] > 0], rows[1:][np.diff(rows) == 0]])
        if len(again):
            raise _catalogue_error(f"two rows for label {again[0] + 1}")
        times[rows] = 1
    if not times.all():
        raise _catalogue_error(f"no row for label {np.argmin(times) + 1} of {count}")


def _catalogue_error(what: str) -> VerificationError:
    return VerificationError(f"the catalogue has {what}: remove OUT.zarr.partial and run again")
