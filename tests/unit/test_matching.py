"""Matching of two sets of cells, against counts made by hand and by brute force."""

import numpy as np
import pytest
import shapely

from istseg.qc.matching import boundary_iou, match_labels, match_polygons, scores


def boxes(*rows, shape=(40, 60)):
    """Label image of (label, y0, x0, y1, x1)."""
    image = np.zeros(shape, np.int32)
    for label, y0, x0, y1, x1 in rows:
        image[y0:y1, x0:x1] = label
    return image


def test_counts_made_by_hand():
    truth = boxes((5, 0, 0, 10, 10), (7, 0, 20, 10, 30), (9, 20, 0, 30, 10))
    predicted = boxes((1, 0, 0, 10, 9), (2, 0, 26, 10, 36), (30, 20, 40, 30, 50))
    overlap = match_labels(truth, predicted)
    assert overlap.truth_ids.tolist() == [5, 7, 9] and overlap.predicted_ids.tolist() == [1, 2, 30]
    assert overlap.best_iou() == pytest.approx([0.9, 40 / 160, 0])
    assert overlap.matches(0.5).tolist() == [0, -1, -1]
    result = scores(overlap, (0.2, 0.5, 0.95))
    assert result["tp@0.5"] == 1 and result["ap@0.5"] == pytest.approx(1 / 5) and result["f1@0.5"] == pytest.approx(2 / 6)
    assert result["found@0.5"] == pytest.approx(1 / 3) and result["ap@0.2"] == pytest.approx(2 / 4) and result["ap@0.95"] == 0
    assert result["mean_best_iou"] == pytest.approx((0.9 + 0.25) / 3)


def test_a_split_cell_is_matched_once():
    truth = boxes((1, 0, 0, 10, 10))
    predicted = boxes((1, 0, 0, 10, 5), (2, 0, 5, 10, 10))
    result = scores(match_labels(truth, predicted), (0.5,))
    assert result["tp@0.5"] == 1 and result["ap@0.5"] == pytest.approx(0.5)


def test_as_many_pairs_as_possible_below_one_half():
    # Predicted 1 fits both, predicted 2 only the first: greedy by the best IoU would lose one pair.
    truth = boxes((1, 0, 0, 1, 10), (2, 0, 10, 1, 20))
    predicted = boxes((2, 0, 0, 1, 4), (1, 0, 4, 1, 16))
    assert (match_labels(truth, predicted).matches(0.3) >= 0).sum() == 2


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_brute_force_and_polygons(seed):
    rng = np.random.default_rng(seed)

    def draw(n, start):
        return boxes(*[(start + i, y, x, y + rng.integers(4, 9), x + rng.integers(4, 9)) for i, (y, x) in enumerate(rng.integers(0, 30, (n, 2)))])

    truth, predicted = draw(12, 3), draw(12, 100)
    overlap = match_labels(truth, predicted)
    table = {(int(overlap.truth_ids[i]), int(overlap.predicted_ids[j])): v for i, j, v in zip(overlap.truth, overlap.predicted, overlap.iou, strict=True)}
    for a in set(truth.ravel()) - {0}:
        for b in set(predicted.ravel()) - {0}:
            joint, union = ((truth == a) & (predicted == b)).sum(), ((truth == a) | (predicted == b)).sum()
            assert table.get((a, b), 0) == pytest.approx(joint / union)

    def pixels(image, label):
        return shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in zip(*np.nonzero(image == label), strict=True)])

    by_shape = match_polygons([pixels(truth, a) for a in overlap.truth_ids], [pixels(predicted, b) for b in overlap.predicted_ids])
    assert scores(by_shape) == pytest.approx(scores(overlap))


def test_nothing_to_find_and_nothing_found():
    empty, one = boxes(), boxes((1, 0, 0, 5, 5))
    assert scores(match_labels(empty, empty))["ap@0.5"] is None and scores(match_polygons([], []))["mean_best_iou"] is None
    assert scores(match_labels(one, empty))["ap@0.5"] == 0 and scores(match_labels(empty, one))["ap@0.5"] == 0
    assert scores(match_labels(np.ones((4, 4), int), np.ones((4, 4), int)))["ap@0.5"] == 1, "no background at all"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        match_labels(np.zeros((3, 3), int), np.zeros((3, 4), int))


def test_boundary_iou_sees_what_iou_does_not():
    yy, xx = np.indices((120, 120))
    disc = np.hypot(yy - 60, xx - 60) < 45
    shifted = np.hypot(yy - 60, xx - 63) < 45
    iou = (disc & shifted).sum() / (disc | shifted).sum()
    assert iou > 0.9 and boundary_iou(disc, shifted) < 0.5
    assert boundary_iou(disc, disc) == 1 and boundary_iou(disc, ~disc) == 0
    assert boundary_iou(np.zeros((5, 5), bool), np.zeros((5, 5), bool)) == 0


def test_boundary_iou_by_hand():
    square = boxes((1, 5, 5, 15, 15)) > 0
    larger = boxes((1, 4, 4, 16, 16)) > 0
    # Rims of one pixel: 36 and 44 pixels that do not touch.
    assert boundary_iou(square, larger, width=1) == 0
    # Rims of two: 64 and 80 pixels, which share the ring of 36.
    assert boundary_iou(square, larger, width=2) == pytest.approx(36 / (64 + 80 - 36))
