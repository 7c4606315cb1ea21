"""How good a label image is, against the truth of a simulated scene.

The measures of Haigh et al. 2021 (A&A 645, A107), completeness and purity by signal-to-noise, and
the recall of close pairs by separation. Where it departs from Haigh et al.: a source is looked for
at the brightest pixel of its own light, not of the sum, so that a faint neighbour is not sought on
its bright companion; and pixels that only the sum of several sources lifts above the truth's
threshold, which belong to nobody, are left out of the area errors.
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


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true about an image.

    Parameters
    ----------
    label : (h, w) int
        Owner of each pixel: row + 1 of the arrays below, 0 for the sky.
    unclear : (h, w) bool
        Pixels left out of the area errors.
    peak : (n, 2) int
        Pixel (y, x) where each source is brightest in its own light.
    brightness : (n,) float
        Own light at that pixel.
    centre : (n, 2) float
        True centre (y, x), px.
    snr : (n,) float
        Signal-to-noise of a matched filter.
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
    """The measures of Haigh et al. 2021; all but the first three are better when low."""

    f_score: float
    """2 PR / (P + R); 1 when there is nothing and nothing was found."""
    precision: float
    """Fraction of the segments that are named by a source; 1 when there is none."""
    recall: float
    """Fraction of the sources that name a segment; 1 when there is none."""
    under_merging: float
    """How much of the true sources is missing from the segments."""
    over_merging: float
    """How much of the segments reaches beyond the true sources."""
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
    """How well sources above a signal-to-noise are detected; see :func:`score_detection`."""

    f_score: float
    """2 PR / (P + R); 1 when there is nothing and nothing was found."""
    precision: float
    """Fraction of the counted segments that are named by a source; 1 when there is none."""
    recall: float
    """Fraction of the counted sources that name a segment; 1 when there is none."""
    sources: int
    """Number of true sources at or above the limit."""
    segments: int
    """Number of segments found, without those of fainter sources."""


def match(label: Labels, truth: Truth) -> Indices:
    """The segment that each source names, one to one, brightest source first.

    Parameters
    ----------
    label
        (h, w) int, 0 is background.
    truth
        The truth of the same image.

    Returns
    -------
    ndarray
        (n,) int64, label of the segment at the source's brightest pixel; 0 where that is background
        or the segment is already named by a brighter source.

    Raises
    ------
    SpecError
        When the label image and the truth differ in shape.
    """
    if label.shape != truth.label.shape:
        raise SpecError(
            f"label image of {label.shape} px against a truth of {truth.label.shape} px: "
            "give both of the same image"
        )
    named = label[truth.peak[:, 0], truth.peak[:, 1]].astype(np.int64)
    order = np.lexsort((np.arange(len(truth)), -truth.brightness))
    _, first = np.unique(named[order], return_index=True)
    matched = np.zeros(len(truth), np.int64)
    winners = order[first]
    matched[winners] = named[winners]
    return matched


def score(label: Labels, truth: Truth) -> Scores:
    """The measures of Haigh et al. 2021 of a label image, see :class:`Scores`."""
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
    label
        (h, w) int, 0 is background.
    truth
        The truth of the same image.
    min_snr
        Signal-to-noise from which a true source counts.

    Returns
    -------
    DetectionScores

    Notes
    -----
    The sources at or above the limit are matched as by :func:`match`, as if there were no others. A
    segment that they leave and that holds the brightest pixel of a fainter source counts neither as a hit
    nor as false; any other segment that they leave is false.
    """
    bright = truth.snr >= min_snr
    hits = np.unique(match(label, _select(truth, bright)))
    hits = hits[hits > 0]
    faint = match(label, _select(truth, ~bright))
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


def _select(truth: Truth, rows: Bools) -> Truth:
    names = ("peak", "brightness", "centre", "snr", "flux")
    return replace(truth, **{name: getattr(truth, name)[rows] for name in names})


def measure_merging(found: Labels, true: Labels) -> tuple[float, float]:
    """Under-merging and over-merging error of two label images of the same pixels, each in [0, 1).

    For each segment (the background too) the true label that it overlaps most::

        under = sum (A_true - A_overlap) A_overlap / A_true / N_pixels

    and over-merging with the roles swapped. Of equal overlaps the lower label counts.
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
    under = _spill(segment, overlap, area_true[source])
    over = _spill(source, overlap, area_found[segment])
    return under / found.size, over / found.size


def _spill(group: Indices, overlap: Indices, area: Doubles) -> float:
    order = np.lexsort((np.arange(len(group)), -overlap, group))
    best = order[np.r_[True, np.diff(group[order]) > 0]]
    return float(np.sum((area[best] - overlap[best]) * overlap[best] / area[best]))


def completeness(matched: Indices, truth: Truth, edges: ArrayLike) -> tuple[Doubles, Indices]:
    """Fraction of the sources found and their number, by signal-to-noise bin.

    Parameters
    ----------
    matched
        (n,) as :func:`match` gives it.
    truth
        The truth.
    edges
        (k + 1,) edges of the bins, half-open.

    Returns
    -------
    fraction, number
        (k,) float64, NaN for an empty bin, and (k,) int64.
    """
    return _fractions(matched > 0, truth.snr, edges)


def purity(
    label: Labels, matched: Indices, snr: ArrayLike, edges: ArrayLike
) -> tuple[Doubles, Indices]:
    """Fraction of the segments that are sources and their number, by signal-to-noise bin.

    ``snr`` holds the measured signal-to-noise of each label from 1 on; labels without pixels do not
    count. The rest is as in :func:`completeness`.
    """
    values = np.asarray(snr, np.float64)
    area = np.bincount(label.ravel().astype(np.int64), minlength=len(values) + 1)[1:]
    real = np.zeros(len(values), np.bool_)
    real[matched[matched > 0] - 1] = True
    return _fractions(real[area > 0], values[area > 0], edges)


def measure_snr(image: ArrayLike, noise: ArrayLike, label: Labels) -> Doubles:
    """Signal-to-noise of each label from 1 on, (n,): summed sky-free image over summed noise."""
    flat = label.ravel().astype(np.int64)
    signal = np.bincount(flat, np.nan_to_num(np.asarray(image, np.float64)).ravel())
    variance = np.bincount(flat, np.broadcast_to(np.square(noise), label.shape).ravel())
    return np.asarray(signal[1:] / np.sqrt(np.maximum(variance[1:], 1e-300)), np.float64)


def list_pairs(
    truth: Truth, fwhm_px: float, least_snr: float = 10.0, greatest_ratio: float = 4.0
) -> tuple[Indices, Doubles]:
    """Rows (m, 2) int64 and separations in FWHM (m,) float64 of the true pairs below 3 FWHM."""
    bright = np.flatnonzero(truth.snr >= least_snr)
    if len(bright) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    near = cKDTree(truth.centre[bright]).query_pairs(
        PAIR_EDGES[-1] * fwhm_px, output_type="ndarray"
    )
    pairs = bright[near.reshape(-1, 2)]
    flux = truth.flux[pairs]
    pairs = pairs[flux.max(axis=1) <= greatest_ratio * flux.min(axis=1)]
    apart = np.hypot(*(truth.centre[pairs[:, 0]] - truth.centre[pairs[:, 1]]).T) / fwhm_px
    return pairs.astype(np.int64), np.asarray(apart, np.float64)


def pair_recall(
    matched: Indices, truth: Truth, fwhm_px: float, edges: ArrayLike = PAIR_EDGES
) -> tuple[Doubles, Indices]:
    """Fraction of the close pairs found as two and their number, by separation in FWHM.

    The pairs are those of :func:`list_pairs`; the bins are half-open; NaN for an empty one.
    """
    pairs, apart = list_pairs(truth, fwhm_px)
    both = (matched[pairs[:, 0]] > 0) & (matched[pairs[:, 1]] > 0)
    return _fractions(both, apart, edges)


def _fractions(hit: Bools, value: Doubles, edges: ArrayLike) -> tuple[Doubles, Indices]:
    limits = np.asarray(edges, np.float64)
    place = np.searchsorted(limits, value, side="right") - 1
    inside = (place >= 0) & (place < len(limits) - 1)
    number = np.bincount(place[inside], minlength=len(limits) - 1)
    found = np.bincount(place[inside], hit[inside], minlength=len(limits) - 1)
    with np.errstate(invalid="ignore"):
        return found / np.where(number, number, np.nan), number.astype(np.int64)
