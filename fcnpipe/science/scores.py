"""Scores of a label image against the truth of a simulated scene.

The scores are those of Haigh et al. 2021 (A&A 645, A107), completeness and purity by signal-to-noise,
and the recall of close pairs by separation. There are two differences from Haigh et al. The position
of a source is the brightest pixel of its own light instead of the summed light, so that a faint
source is not searched for on a bright neighbour. Pixels that only the sum of several sources lifts
above the threshold of the truth have no owner and do not enter the area errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from fcnpipe.core.errors import SpecError

Labels = NDArray[np.integer]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]
Doubles = NDArray[np.float64]

PAIR_EDGES = (0.75, 1.0, 1.5, 2.0, 3.0)
"""Edges of the bins of a pair's separation, in FWHM."""


@dataclass(frozen=True, slots=True)
class Truth:
    """True sources of an image.

    Parameters
    ----------
    label : (h, w) int
        Owner of each pixel: row + 1 of the arrays below, 0 for the sky.
    unclear : (h, w) bool
        Pixels without a clear owner, which do not enter the area errors.
    peak : (n, 2) int
        Pixel (y, x) at which the light of each source alone is brightest.
    brightness : (n,) float
        Light of the source alone at that pixel.
    centre : (n, 2) float
        True centre (y, x), px.
    snr : (n,) float
        Signal-to-noise in a matched filter.
    flux : (n,) float
        Total flux.
    """

    label: Labels
    unclear: Bools
    peak: Indices
    brightness: Doubles
    centre: Doubles
    snr: Doubles
    flux: Doubles

    def __len__(self) -> int:
        return len(self.brightness)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of Haigh et al. 2021: the first three are best at 1, the errors at 0."""

    f_score: float
    """2 PR / (P + R); 1 if there are neither sources nor segments."""
    precision: float
    """Fraction of the segments that are matched to a source; 1 if there are no segments."""
    recall: float
    """Fraction of the sources that are matched to a segment; 1 if there are no sources."""
    under_merging: float
    """Area of the true sources that their segments miss; see :func:`measure_merging`."""
    over_merging: float
    """Area of the segments beyond their true sources; see :func:`measure_merging`."""
    area_error: float
    """sqrt(over_merging**2 + under_merging**2)."""
    a_error: float
    """sqrt((1 - f_score)**2 + area_error**2)."""
    b_error: float
    """1 - cbrt((1 - over_merging) (1 - under_merging) f_score)."""
    sources: int
    """Number of true sources."""
    segments: int
    """Number of segments found."""


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """Scores of the detection of sources above a signal-to-noise; see :func:`score_detection`."""

    f_score: float
    """2 PR / (P + R); 1 if there are neither sources nor segments."""
    precision: float
    """Fraction of the counted segments that are matched to a source; 1 if there are no segments."""
    recall: float
    """Fraction of the counted sources that are matched to a segment; 1 if there are no sources."""
    sources: int
    """Number of true sources at or above the limit."""
    segments: int
    """Number of segments found, without those of fainter sources."""


def match(label: Labels, truth: Truth) -> Indices:
    """Match sources to segments one to one, the brightest source first.

    Parameters
    ----------
    label : (h, w) int
        Label image; 0 is background.
    truth : Truth
        The truth of the same image.

    Returns
    -------
    (n,) int64
        Label of the segment at the source's brightest pixel; 0 where that pixel is background, or
        where the segment is matched to a brighter source.

    Raises
    ------
    SpecError
        If the label image and the truth differ in shape.
    """
    if label.shape != truth.label.shape:
        raise SpecError(
            f"the label image has {label.shape} px, but the truth has {truth.label.shape} px: "
            "choose two files of the same image"
        )
    at_peak = label[truth.peak[:, 0], truth.peak[:, 1]].astype(np.int64)
    order = np.lexsort((np.arange(len(truth)), -truth.brightness))
    _, first = np.unique(at_peak[order], return_index=True)
    matched = np.zeros(len(truth), np.int64)
    brightest = order[first]
    matched[brightest] = at_peak[brightest]
    return matched


def score(label: Labels, truth: Truth) -> Scores:
    """Compute the scores of Haigh et al. 2021 of a label image.

    Parameters
    ----------
    label : (h, w) int
        Label image; 0 is background.
    truth : Truth
        The truth of the same image.

    Returns
    -------
    Scores

    Raises
    ------
    SpecError
        If the label image and the truth differ in shape.
    """
    hits = int(np.count_nonzero(match(label, truth)))
    segments = int(np.count_nonzero(np.bincount(label.ravel().astype(np.int64))[1:]))
    precision = hits / segments if segments else 1.0
    recall = hits / len(truth) if len(truth) else 1.0
    f_score = (
        2 * precision * recall / (precision + recall) if hits else float(precision == recall == 1)
    )
    clear = ~truth.unclear
    under, over = measure_merging(label[clear], truth.label[clear])
    area = float(np.hypot(under, over))
    return Scores(
        f_score=f_score,
        precision=precision,
        recall=recall,
        under_merging=under,
        over_merging=over,
        area_error=area,
        a_error=float(np.hypot(1 - f_score, area)),
        b_error=float(1 - np.cbrt((1 - over) * (1 - under) * f_score)),
        sources=len(truth),
        segments=segments,
    )


def score_detection(label: Labels, truth: Truth, min_snr: float) -> DetectionScores:
    """Score the detection of sources with a minimum signal-to-noise; ignore the fainter ones.

    Parameters
    ----------
    label : (h, w) int
        Label image; 0 is background.
    truth : Truth
        The truth of the same image.
    min_snr : float
        Minimum signal-to-noise of a true source that counts.

    Returns
    -------
    DetectionScores

    Raises
    ------
    SpecError
        If the label image and the truth differ in shape.

    Notes
    -----
    The sources at or above the limit are matched by :func:`match`, as if there were no others. Of the
    segments without a match, those that contain the brightest pixel of a fainter source are ignored, and
    all others are false detections.
    """
    bright = truth.snr >= min_snr
    hits = np.unique(match(label, select_sources(truth, bright)))
    hits = hits[hits > 0]
    faint = match(label, select_sources(truth, ~bright))
    ignored = np.setdiff1d(faint[faint > 0], hits)
    segments = np.count_nonzero(np.bincount(label.ravel().astype(np.int64))[1:]) - len(ignored)
    sources = int(np.count_nonzero(bright))
    precision = len(hits) / segments if segments else 1.0
    recall = len(hits) / sources if sources else 1.0
    f_score = (
        2 * precision * recall / (precision + recall)
        if len(hits)
        else float(precision == recall == 1)
    )
    return DetectionScores(f_score, precision, recall, sources, int(segments))


def select_sources(truth: Truth, rows: Bools) -> Truth:
    """Return the truth with the sources that an (n,) mask selects; the label image is not changed."""
    names = ("peak", "brightness", "centre", "snr", "flux")
    return replace(truth, **{name: getattr(truth, name)[rows] for name in names})


def measure_merging(found: Labels, true: Labels) -> tuple[float, float]:
    """Compute the under-merging and over-merging errors of two label images of the same pixels.

    Parameters
    ----------
    found, true : array of int
        Labels of the same pixels; 0 is background.

    Returns
    -------
    under, over : float
        Errors in [0, 1).

    Notes
    -----
    For each segment, the background included, let A_true be the area of the true label that it
    overlaps most, and A_overlap the area of the overlap::

        under = sum (A_true - A_overlap) A_overlap / A_true / N_pixels

    Over-merging is the same with the roles of the two images exchanged. Of equal overlaps, that with
    the lower label counts.
    """
    if found.size == 0:
        return 0.0, 0.0
    rows, segments = np.unique(found, return_inverse=True)
    columns, sources = np.unique(true, return_inverse=True)
    code = segments.ravel().astype(np.int64) * len(columns) + sources.ravel()
    codes, overlap = np.unique(code, return_counts=True)
    segment, source = codes // len(columns), codes % len(columns)
    area_found = np.bincount(segment, overlap, len(rows))
    area_true = np.bincount(source, overlap, len(columns))
    under = _sum_area_errors(segment, overlap, area_true[source])
    over = _sum_area_errors(source, overlap, area_found[segment])
    return under / found.size, over / found.size


def _sum_area_errors(group: Indices, overlap: Indices, area: Doubles) -> float:
    """Sum the weighted area errors over the largest overlap of each group."""
    order = np.lexsort((np.arange(len(group)), -overlap, group))
    best = order[np.r_[True, np.diff(group[order]) > 0]]
    return float(np.sum((area[best] - overlap[best]) * overlap[best] / area[best]))


def completeness(matched: Indices, truth: Truth, edges: ArrayLike) -> tuple[Doubles, Indices]:
    """Compute the fraction of the sources that are found, and their number, by signal-to-noise.

    Parameters
    ----------
    matched : (n,) int64
        Result of :func:`match`.
    truth : Truth
        The truth of the same image.
    edges : (k + 1,) array_like
        Edges of the half-open bins of signal-to-noise.

    Returns
    -------
    fraction : (k,) float64
        Fraction of the sources that are matched; NaN for an empty bin.
    number : (k,) int64
        Number of sources.
    """
    return _fraction_by_bin(matched > 0, truth.snr, edges)


def purity(
    label: Labels, matched: Indices, snr: ArrayLike, edges: ArrayLike
) -> tuple[Doubles, Indices]:
    """Compute the fraction of the segments that are sources, and their number, by signal-to-noise.

    Parameters
    ----------
    label : (h, w) int
        Label image; 0 is background.
    matched : (n,) int64
        Result of :func:`match`.
    snr : (m,) array_like
        Measured signal-to-noise of the labels 1 to m. Labels without pixels do not count.
    edges : (k + 1,) array_like
        Edges of the half-open bins of signal-to-noise.

    Returns
    -------
    fraction : (k,) float64
        Fraction of the segments that are matched; NaN for an empty bin.
    number : (k,) int64
        Number of segments.
    """
    values = np.asarray(snr, np.float64)
    area = np.bincount(label.ravel().astype(np.int64), minlength=len(values) + 1)[1:]
    is_source = np.zeros(len(values), np.bool_)
    is_source[matched[matched > 0] - 1] = True
    return _fraction_by_bin(is_source[area > 0], values[area > 0], edges)


def measure_snr(image: ArrayLike, noise: ArrayLike, label: Labels) -> Doubles:
    """Compute the signal-to-noise of each label: its summed flux over the noise of the sum.

    Parameters
    ----------
    image : (h, w) array_like
        Flux above the sky; NaN counts as 0.
    noise : (h, w) array_like or float
        Standard deviation of each pixel.
    label : (h, w) int
        Label image; 0 is background.

    Returns
    -------
    (n,) float64
        Signal-to-noise of the labels 1 to n.
    """
    flat = label.ravel().astype(np.int64)
    signal = np.bincount(flat, np.nan_to_num(np.asarray(image, np.float64)).ravel())
    variance = np.bincount(flat, np.broadcast_to(np.square(noise), label.shape).ravel())
    return np.asarray(signal[1:] / np.sqrt(np.maximum(variance[1:], 1e-300)), np.float64)


def list_pairs(
    truth: Truth, fwhm_px: float, min_snr: float = 10.0, max_flux_ratio: float = 4.0
) -> tuple[Indices, Doubles]:
    """List the close pairs of true sources, with a separation below 3 FWHM.

    Parameters
    ----------
    truth : Truth
        The truth.
    fwhm_px : float
        FWHM of the point spread function, px.
    min_snr : float
        Minimum signal-to-noise of both sources.
    max_flux_ratio : float
        Maximum ratio of the brighter to the fainter flux.

    Returns
    -------
    pairs : (m, 2) int64
        Rows of the two sources of each pair.
    separation : (m,) float64
        Distance of the centres, in FWHM.
    """
    bright = np.flatnonzero(truth.snr >= min_snr)
    if len(bright) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    near = cKDTree(truth.centre[bright]).query_pairs(
        PAIR_EDGES[-1] * fwhm_px, output_type="ndarray"
    )
    pairs = bright[near.reshape(-1, 2)]
    flux = truth.flux[pairs]
    pairs = pairs[flux.max(axis=1) <= max_flux_ratio * flux.min(axis=1)]
    separation = np.hypot(*(truth.centre[pairs[:, 0]] - truth.centre[pairs[:, 1]]).T) / fwhm_px
    return pairs.astype(np.int64), np.asarray(separation, np.float64)


def pair_recall(
    matched: Indices, truth: Truth, fwhm_px: float, edges: ArrayLike = PAIR_EDGES
) -> tuple[Doubles, Indices]:
    """Compute the fraction of the close pairs that are found as two sources, by separation.

    Parameters
    ----------
    matched : (n,) int64
        Result of :func:`match`.
    truth : Truth
        The truth of the same image.
    fwhm_px : float
        FWHM of the point spread function, px.
    edges : (k + 1,) array_like
        Edges of the half-open bins of separation, in FWHM.

    Returns
    -------
    fraction : (k,) float64
        Fraction of the pairs of :func:`list_pairs` of which both sources are matched; NaN for an
        empty bin.
    number : (k,) int64
        Number of pairs.
    """
    pairs, separation = list_pairs(truth, fwhm_px)
    both = (matched[pairs[:, 0]] > 0) & (matched[pairs[:, 1]] > 0)
    return _fraction_by_bin(both, separation, edges)


def _fraction_by_bin(hit: Bools, value: Doubles, edges: ArrayLike) -> tuple[Doubles, Indices]:
    limits = np.asarray(edges, np.float64)
    place = np.searchsorted(limits, value, side="right") - 1
    inside = (place >= 0) & (place < len(limits) - 1)
    number = np.bincount(place[inside], minlength=len(limits) - 1)
    found = np.bincount(place[inside], hit[inside], minlength=len(limits) - 1)
    with np.errstate(invalid="ignore"):
        return found / np.where(number, number, np.nan), number.astype(np.int64)
