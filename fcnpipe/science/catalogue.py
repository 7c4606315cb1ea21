"""Rows of many tiles become one table, in order of label, with sky positions.

``COLUMNS`` is the only place where a column gets its name, type, unit and meaning; the store,
parquet and every export read it from here.  Names follow photutils 3 (`SourceCatalog`), 0-based
pixels, degrees.
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
"""Columns that are brought in order together may take this much memory."""
FLUX_UNIT = "image"
"""Stands in ``Column.unit`` for the unit of the image's pixels (``BUNIT``)."""

Rows = Mapping[str, NDArray[Any]]
"""Rows of some sources: arrays of one length by column name, ``label`` among them."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a column of the catalogue is.

    Attributes
    ----------
    name : str
        Its name, as in photutils 3 where that has one.
    dtype : str
        NumPy type it is stored in. Floats use NaN for "not measured".
    unit : str
        Unit as astropy writes it; ``FLUX_UNIT`` for that of the image; empty if none.
    ucd : str
        IVOA Unified Content Descriptor (1.3), or empty.
    description : str
        One line for users.
    """

    name: str
    dtype: str
    unit: str
    ucd: str
    description: str

    def with_unit(self, flux: str) -> Column:
        """Give the column with the image's own unit in place of ``FLUX_UNIT``."""
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
    Column("min_value", "float64", FLUX_UNIT, "phot.count;stat.min", "least value above the sky"),
    Column("max_value", "float64", FLUX_UNIT, "phot.count;stat.max",
           "greatest value above the sky"),
    Column("min_value_xindex", "int32", "pix", "", "column of the least value"),
    Column("min_value_yindex", "int32", "pix", "", "row of the least value"),
    Column("max_value_xindex", "int32", "pix", "", "column of the greatest value"),
    Column("max_value_yindex", "int32", "pix", "", "row of the greatest value"),
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
           "radius of the circle that holds half of kron_flux"),
    Column("probability", "float64", "", "stat.probability",
           "mean probability of being a source, over its pixels"),
    Column("class", "int16", "", "src.class",
           "most probable class: its index in the probability image; -1 if none"),
    Column("elevation", "uint16", "", "", "greatest elevation, 65535 = 1"),
    Column("saturated_pixels", "int64", "", "meta.number", "pixels that are saturated"),
    Column("beside_bad_pixels", "int64", "", "meta.number",
           "pixels with a bad one among their 8 neighbours"),
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
"""Columns that a zero point adds."""


def list_columns(flux_unit: str = "", *, magnitudes: bool = False) -> tuple[Column, ...]:
    """Give the columns of one run's catalogue.

    Parameters
    ----------
    flux_unit : str
        Unit of the image (``BUNIT``); empty if unknown.
    magnitudes : bool
        Whether a zero point is known.

    Examples
    --------
    >>> [c.unit for c in list_columns("adu") if c.name == "kron_flux"]
    ['adu']
    """
    return tuple(c.with_unit(flux_unit) for c in (COLUMNS + MAGNITUDES if magnitudes else COLUMNS))


def complete_rows(
    part: Rows, cards: Sequence[str], width: int, zero_point: float | None = None
) -> dict[str, NDArray[Any]]:
    """Add what needs the header to measured rows: ids, sky positions, magnitudes.

    Parameters
    ----------
    part : mapping
        Columns as ``measure.finish`` and ``measure.measure_apertures`` give them; apertures may be
        missing (NaN).
    cards : sequence of str
        FITS header cards with the WCS; empty if none.
    width : int
        Width of the image in pixels.
    zero_point : float, optional
        Magnitude of one unit of flux.

    Returns
    -------
    dict
        One array for each column of ``list_columns``, in order and of the column's type.
    """
    rows = dict(part)
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
    """Give magnitudes and their errors; NaN where the flux is not positive.

    Examples
    --------
    >>> mag, err = to_magnitudes(np.array([100.0, -1.0]), np.array([1.0, 1.0]), 25.0)
    >>> mag.tolist(), round(err[0].item(), 5)
    ([20.0, nan], 0.01086)
    """
    # In scalars: numpy's vector logarithm may round the last bit by a row's place in the array.
    lit = np.array(
        [zero_point - 2.5 * math.log10(f) if f > 0 else math.nan for f in flux.tolist()], np.float64
    )
    ratio = np.divide(error, flux, out=np.full(len(flux), np.nan), where=flux > 0)
    return lit, ratio * (2.5 / math.log(10))


# --- many parts, one table ---


def assemble(
    read: Callable[[tuple[str, ...]], Iterable[Rows]],
    count: int,
    columns: Sequence[Column] = COLUMNS,
) -> Iterator[tuple[Column, NDArray[Any]]]:
    """Bring the rows of many tiles in order of label, column by column.

    Parameters
    ----------
    read : callable
        Given column names, gives the parts with (at least) these columns, in any order; it is
        called once for each few columns, so that no more than ``GROUP_BYTES`` (or one column)
        and one part are ever held.
    count : int
        Number of sources: labels are 1 to ``count``.
    columns : sequence of Column
        Columns wanted.

    Yields
    ------
    Column, (count,) array
        The column and its values, row k - 1 for label k.

    Raises
    ------
    VerificationError
        If a label is missing, comes twice, or lies outside 1 to ``count``.
    """
    check_labels((part["label"] for part in read(("label",))), count)
    for some in _group(columns, count):
        values = {column.name: np.empty(count, column.dtype) for column in some}
        for part in read(("label", *values)):
            rows = np.asarray(part["label"], np.int64) - 1
            for name, column_values in values.items():
                column_values[rows] = part[name]
        yield from ((column, values[column.name]) for column in some)


def _group(columns: Sequence[Column], count: int) -> Iterator[Sequence[Column]]:
    """Give as many columns at a time as may be in memory together, one at least."""
    step = max(GROUP_BYTES // (8 * max(count, 1)), 1)
    return (columns[i : i + step] for i in range(0, len(columns), step))


def check_labels(parts: Iterable[NDArray[Any]], count: int) -> None:
    """Prove that every label from 1 to ``count`` comes exactly once.

    Raises
    ------
    VerificationError
        Naming the first label that does not.
    """
    times = np.zeros(count, np.uint8)
    for labels in parts:
        rows = np.sort(np.asarray(labels, np.int64) - 1)
        outside = rows[(rows < 0) | (rows >= count)]
        if len(outside):
            raise _catalogue_error(f"a row for label {outside[0] + 1}, beyond the {count} labels")
        again = np.concatenate([rows[times[rows] > 0], rows[1:][np.diff(rows) == 0]])
        if len(again):
            raise _catalogue_error(f"two rows for label {again[0] + 1}")
        times[rows] = 1
    if not times.all():
        raise _catalogue_error(f"no row for label {np.argmin(times) + 1} of {count}")


def _catalogue_error(what: str) -> VerificationError:
    return VerificationError(f"the catalogue has {what}: remove OUT.zarr.partial and run again")
