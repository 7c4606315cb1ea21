"""Scores of cases counted by hand, and comparison with slow, simple versions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fcnpipe.core.errors import SpecError
from fcnpipe.science.scores import (
    Truth,
    completeness,
    list_pairs,
    match,
    measure_merging,
    measure_snr,
    pair_recall,
    purity,
    score,
    score_detection,
)

LABELS = arrays(np.int32, (5, 6), elements=st.integers(0, 4))


def make_truth(label, peaks=(), brightness=None, unclear=None, **more):
    n = len(peaks)
    label = np.array(label, np.int32)
    return Truth(
        label=label,
        unclear=np.zeros(label.shape, bool) if unclear is None else np.array(unclear, bool),
        peak=np.array(peaks, np.int64).reshape(n, 2),
        brightness=np.array(range(n, 0, -1) if brightness is None else brightness, float),
        centre=np.array(more.get("centre", peaks), float).reshape(n, 2),
        snr=np.array(more.get("snr", [100.0] * n)),
        flux=np.array(more.get("flux", [1.0] * n)),
    )


ROW = [[1, 1, 0, 2, 2, 2, 0, 0, 0, 0]]


def test_the_truth_itself_is_perfect():
    truth = make_truth(ROW, [(0, 0), (0, 4)])
    scores = score(truth.label, truth)
    assert (scores.f_score, scores.area_error, scores.a_error, scores.b_error) == (1, 0, 0, 0)


def test_a_merged_pair_counted_by_hand():
    # One segment of 5 px over sources of 2 and 3 px.
    truth = make_truth(ROW, [(0, 0), (0, 4)])
    scores = score(np.array([[7, 7, 0, 7, 7, 7, 0, 0, 0, 0]]), truth)
    assert (scores.precision, scores.recall) == (1.0, 0.5)
    assert scores.f_score == pytest.approx(2 / 3)
    # Under: segment 7 overlaps source 2 most, in full: 0. Over: source 1 (5-2)*2/5, 2 (5-3)*3/5.
    assert scores.under_merging == 0
    assert scores.over_merging == pytest.approx((3 * 2 / 5 + 2 * 3 / 5) / 10)
    assert scores.area_error == pytest.approx(0.24)
    assert scores.a_error == pytest.approx(np.hypot(1 / 3, 0.24))
    assert scores.b_error == pytest.approx(1 - (0.76 * 2 / 3) ** (1 / 3))


def test_a_split_source_counted_by_hand():
    truth = make_truth([[1, 1, 1, 1, 0, 0]], [(0, 1)])
    scores = score(np.array([[1, 1, 1, 2, 0, 0]]), truth)
    assert (scores.precision, scores.recall) == (0.5, 1.0)
    # Under: (4-3)*3/4 and (4-1)*1/4; over: source 1 overlaps segment 1 in full.
    assert scores.under_merging == pytest.approx((3 / 4 + 3 / 4) / 6)
    assert scores.over_merging == 0


def test_the_brightest_source_is_matched_first():
    truth = make_truth(ROW, [(0, 0), (0, 4)], brightness=[1, 9])
    assert match(np.array([[7] * 6 + [0] * 4]), truth).tolist() == [0, 7]


def test_background_is_not_matched():
    truth = make_truth(ROW, [(0, 0), (0, 9)])
    assert match(np.array(ROW), truth).tolist() == [1, 0]


def test_no_sources_and_no_segments_are_perfect_and_a_false_segment_is_not():
    truth = make_truth(np.zeros((3, 3)))
    assert score(np.zeros((3, 3), int), truth).f_score == 1
    assert score(np.eye(3, dtype=int), truth).f_score == 0


def test_unclear_pixels_are_ignored():
    unclear = np.zeros((1, 10), bool)
    unclear[0, 6:] = True
    truth = make_truth(ROW, [(0, 0), (0, 4)], unclear=unclear)
    found = np.array([[1, 1, 0, 2, 2, 2, 2, 2, 0, 0]])
    assert score(found, truth).area_error == 0


def test_shapes_must_agree():
    with pytest.raises(SpecError, match="same image"):
        match(np.zeros((2, 2), int), make_truth(ROW))


def _slow_under(found, true):
    total = 0.0
    for segment in np.unique(found):
        overlaps = {t: np.sum((found == segment) & (true == t)) for t in np.unique(true)}
        best = max(overlaps, key=lambda t: (overlaps[t], -t))
        area = np.sum(true == best)
        total += (area - overlaps[best]) * overlaps[best] / area
    return total / found.size


@settings(max_examples=60, deadline=None)
@given(LABELS, LABELS)
def test_merging_equals_the_slow_version_and_exchanges_with_the_images(found, true):
    under, over = measure_merging(found, true)
    assert under == pytest.approx(_slow_under(found, true))
    assert over == pytest.approx(_slow_under(true, found))
    assert measure_merging(true, found) == (over, under)


@settings(max_examples=40, deadline=None)
@given(LABELS, st.permutations([1, 2, 3, 4]))
def test_renaming_segments_changes_nothing(found, order):
    truth = make_truth(np.arange(30).reshape(5, 6) % 3, [(0, 1), (3, 2)])
    renamed = np.r_[0, order].astype(np.int32)[found]
    first, second = score(found, truth), score(renamed, truth)
    assert first.f_score == second.f_score


def test_completeness_by_bin():
    truth = make_truth(ROW, [(0, 0), (0, 3), (0, 8)], snr=[3.0, 10.0, 10.0])
    fraction, number = completeness(np.array([0, 2, 0]), truth, [1, 5, 20, 50])
    assert number.tolist() == [1, 2, 0]
    assert fraction[:2].tolist() == [0.0, 0.5]
    assert np.isnan(fraction[2])


def test_purity_ignores_labels_without_pixels():
    label = np.array([[1, 0, 3, 3]])
    fraction, number = purity(label, np.array([3, 0]), [5.0, 5.0, 5.0], [1, 10])
    assert (fraction.tolist(), number.tolist()) == ([0.5], [2])


def test_snr_of_segments_by_hand():
    snr = measure_snr([[4.0, 4.0, 1.0]], np.array([[2.0, 2.0, 2.0]]), np.array([[1, 1, 0]]))
    assert snr.tolist() == pytest.approx([8 / np.sqrt(8)])


def test_pairs_are_bright_similar_and_close():
    truth = make_truth(
        np.zeros((40, 40)),
        [(0, 0), (0, 4), (0, 8), (30, 30)],
        centre=[(0, 0), (0, 4), (0, 8), (30, 30)],
        snr=[100, 50, 9, 100],
        flux=[10, 5, 9, 10],
    )
    pairs, apart = list_pairs(truth, fwhm_px=3.0)
    assert pairs.tolist() == [[0, 1]]
    assert apart == pytest.approx([4 / 3])
    unlike = make_truth(np.zeros((9, 9)), [(0, 0), (0, 4)], flux=[10.0, 2.0])
    assert len(list_pairs(unlike, 3.0)[0]) == 0


def test_pair_recall_requires_both_sources():
    truth = make_truth(np.zeros((40, 40)), [(0, 0), (0, 4), (20, 0), (20, 4)])
    recall, number = pair_recall(np.array([1, 2, 3, 0]), truth, fwhm_px=3.0)
    assert number.tolist() == [0, 2, 0, 0]
    assert recall[1] == 0.5


# --- detection ------------------------------------------------------------------------------------

FAINT = make_truth([[1, 1, 0, 2, 2, 0, 3, 3, 0, 0]], [(0, 0), (0, 3), (0, 6)], snr=[9.0, 5.0, 4.9])


@pytest.mark.parametrize(
    ("label", "precision", "recall"),
    [
        ([1, 1, 0, 2, 2, 0, 3, 3, 0, 0], 1.0, 1.0),  # a detected faint source is not a hit
        ([1, 1, 0, 2, 2, 0, 0, 0, 0, 0], 1.0, 1.0),  # a missed faint source is not a miss
        (
            [1, 1, 0, 2, 2, 0, 0, 3, 0, 0],
            2 / 3,
            1.0,
        ),  # a segment next to the brightest pixel is false
        ([1, 1, 0, 2, 2, 0, 3, 3, 0, 4], 2 / 3, 1.0),  # a segment without a source is false
        ([1, 1, 0, 0, 0, 0, 3, 3, 0, 0], 1.0, 0.5),
        ([1, 1, 1, 1, 1, 0, 3, 3, 0, 0], 1.0, 0.5),  # a merged pair is one hit
        ([1, 1, 0, 2, 2, 2, 2, 2, 0, 0], 1.0, 1.0),  # a faint neighbour does not change the result
        ([0, 0, 0, 0, 0, 0, 3, 3, 0, 0], 1.0, 0.0),
    ],
)
def test_faint_sources_are_ignored(label, precision, recall):
    scores = score_detection(np.array([label]), FAINT, 5)
    assert (scores.precision, scores.recall) == pytest.approx((precision, recall))
    expected = 2 * precision * recall / (precision + recall)
    assert scores.f_score == pytest.approx(expected)
    assert scores.sources == 2


def test_a_faint_source_with_a_bright_peak_takes_no_segment():
    truth = make_truth([[1, 1, 2, 2]], [(0, 0), (0, 2)], brightness=[2.0, 1.0], snr=[4.0, 9.0])
    assert score_detection(np.array([[7, 7, 7, 7]]), truth, 5).f_score == 1


@given(LABELS, st.data())
@settings(max_examples=60)
def test_without_a_limit_detection_is_that_of_all_sources(found, data):
    peaks = data.draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=5, unique=True)
    )
    truth = make_truth(np.zeros((5, 6)), peaks)
    part, full = score_detection(found, truth, 0), score(found, truth)
    for name in ("f_score", "precision", "recall", "sources", "segments"):
        assert getattr(part, name) == getattr(full, name)
