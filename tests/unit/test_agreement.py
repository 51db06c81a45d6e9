"""Agreement of two segmentations and scores against annotated cells, on cases that are counted by hand."""

import math

import numpy as np
import pytest
import shapely
from scipy import sparse

from istseg.qc import agreement, annotated
from istseg.qc.matching import match_polygons


def squares(*corners, side=10):
    return np.array([shapely.box(x, y, x + side, y + side) for x, y in corners], object)


def test_cells_that_are_the_same():
    first = squares((0, 0), (20, 0), (40, 0), (60, 0))
    # Equal; IoU 80/120; IoU 40/160; nothing; one more of its own.
    second = squares((0, 0), (22, 0), (46, 0), (100, 100), (80, 0))
    found, of_first, of_second = agreement.cells(first, second)
    assert (of_first.sum(), of_second.sum()) == (found["n_matched"],) * 2
    assert found == {"n_matched": 2, "matched_first": 0.5, "matched_second": 0.4, "mean_iou": pytest.approx((1 + 80 / 120) / 2)}
    assert agreement.cells(first, second, 0.25)[0]["n_matched"] == 3
    empty = agreement.cells(first, np.empty(0, object))[0]
    assert empty == {"n_matched": 0, "matched_first": 0.0, "matched_second": None, "mean_iou": None}


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
def test_leaving_out_impossible_pairs_changes_no_match(least):
    rng = np.random.default_rng(0)
    first, second = (np.array([shapely.Point(*p).buffer(r) for p, r in zip(rng.uniform(0, 60, (80, 2)), rng.uniform(2, 6, 80), strict=True)]) for _ in "ab")
    whole, pruned = match_polygons(first, second), match_polygons(first, second, least)
    good = whole.iou >= least
    assert set(zip(whole.truth[good], whole.predicted[good], strict=True)) <= set(zip(pruned.truth, pruned.predicted, strict=True))
    assert len(pruned.iou) < len(whole.iou)
    assert (whole.matches(least) >= 0).sum() == (pruned.matches(least) >= 0).sum()


def test_adjusted_rand_index_by_hand():
    # Ten transcripts. First: cells of 4 and 3, three alone. Second: cells of 4 and 4, two alone.
    joint = sparse.csr_matrix(np.array([[3, 0], [1, 2]]))
    found = agreement.transcripts(joint, np.array([4, 3]), np.array([4, 4]), 10)
    expected = 9 * 12 / 45
    assert found["ari"] == pytest.approx((4 - expected) / (10.5 - expected))
    # Over the six that both assign: rows 3 and 3, columns 4 and 2, of 15 pairs.
    assert found["ari_assigned"] == pytest.approx((4 - 6 * 7 / 15) / (6.5 - 6 * 7 / 15))
    assert found["assigned_both"] == 0.6


def test_adjusted_rand_index_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    a, b = rng.integers(-1, 8, 500), rng.integers(-1, 6, 500)
    b = np.where(rng.random(500) < 0.6, np.minimum(a, 5), b)

    def alone(labels):
        return np.where(labels < 0, 1000 + np.arange(len(labels)), labels)

    both = (a >= 0) & (b >= 0)
    joint = sparse.csr_matrix((np.ones(both.sum()), (a[both], b[both])), shape=(8, 6))
    found = agreement.transcripts(joint, np.bincount(a[a >= 0], minlength=8), np.bincount(b[b >= 0], minlength=6), 500)
    assert found["ari"] == pytest.approx(metrics.adjusted_rand_score(alone(a), alone(b)))
    assert found["ari_assigned"] == pytest.approx(metrics.adjusted_rand_score(a[both], b[both]))


def test_nothing_to_agree_on():
    found = agreement.transcripts(sparse.csr_matrix((2, 2)), np.zeros(2), np.zeros(2), 0)
    assert found == {"ari": None, "ari_assigned": None, "assigned_both": None}


def test_best_match_of_pixels_and_of_transcripts():
    truth, cells = squares((0, 0), (20, 0), (40, 0), (60, 0)), squares((2, 0), (0, 5), (25, 0))
    overlap = match_polygons(truth, cells)
    # Annotated 0 shares 6 transcripts with cell 0 (of 12 and 8) and 6 with cell 1 (of 6); 1 shares one with cell 2; 2 has none; 3 has some that lie in no cell.
    joint = sparse.csr_matrix(np.array([[6, 6, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]))
    best = annotated.best_matches(overlap, joint, np.array([12, 5, 0, 3]), np.array([8, 6, 4]), np.array(["a", "b", "c"], object))
    assert best["pixel_iou"].tolist() == pytest.approx([80 / 120, 50 / 150, 0, 0])
    assert best["pixel_match"].tolist() == ["a", "c", None, None]
    assert best["rna_iou"].tolist() == pytest.approx([6 / 12, 1 / 8, math.nan, 0], nan_ok=True)
    assert best["rna_match"].tolist() == ["b", "c", None, None]
    found = annotated.summary(best, overlap)
    assert found == {
        "n_annotated": 4, "found": 0.25, "pixel_iou_mean": pytest.approx(0.25), "pixel_iou_median": pytest.approx(1 / 6),
        "rna_iou_mean": pytest.approx((0.5 + 0.125) / 3), "rna_iou_median": pytest.approx(0.125),
    }  # fmt: skip


def test_scores_where_truth_is_whole():
    truth = squares((0, 0), (20, 0), (40, 0), (92, 0))
    # Perfect; IoU 90/110; a miss with a false cell beside; the partner of a true cell whose centroid lies outside; a false cell outside.
    cells = squares((0, 0), (21, 0), (60, 30), (89, 0), (200, 0))
    region = shapely.box(-5, -5, 95, 50)
    found = annotated.dense(match_polygons(truth, cells), truth, cells, region, (0.5, 0.9))
    assert found["n_truth"] == 3 and found["n_predicted"] == 4
    # IoU of the pair at the border: 70/130; at 0.9 its partner counts as false.
    assert found["ap"] == {"0.5": pytest.approx(2 / 4), "0.9": pytest.approx(1 / (1 + 3 + 2))}
    assert found["mean_ap"] == pytest.approx((1 / 2 + 1 / 6) / 2)
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(2 / 3) and found["f1"] == pytest.approx(2 / 3)
    assert found["panoptic_quality"] == pytest.approx((1 + 90 / 110) / 3) and found["segmentation_quality"] == pytest.approx((1 + 90 / 110) / 2)


def test_no_cells_against_whole_truth():
    truth, none = squares((0, 0)), np.empty(0, object)
    found = annotated.dense(match_polygons(truth, none), truth, none, shapely.box(0, 0, 50, 50))
    assert found["mean_ap"] == 0 and found["recall"] == 0 and found["precision"] is None and found["panoptic_quality"] == 0
