"""Matching two sets of cells by intersection over union: truth against prediction, model against model.

Scores are those of the field: AP@t = TP / (TP + FP + FN) [Cellpose, Stringer et al. 2021; StarDist, Schmidt et al. 2018], F1@t, mean best IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PAIRS = 10_000


@dataclass(frozen=True)
class Overlap:
    """Pairs of a true and a predicted cell that overlap, as a sparse table.

    Attributes
    ----------
    truth, predicted
        int64 (pairs,): positions in the lists of cells.
    iou
        float64 (pairs,), above 0.
    truth_ids, predicted_ids
        Label (of label images) or position (of polygons) of every cell.
    """

    truth: np.ndarray
    predicted: np.ndarray
    iou: np.ndarray
    truth_ids: np.ndarray
    predicted_ids: np.ndarray

    def best_iou(self) -> np.ndarray:
        """(true cells,) largest IoU of each true cell with any predicted one; 0 without overlap."""
        best = np.zeros(len(self.truth_ids))
        np.maximum.at(best, self.truth, self.iou)
        return best

    def best(self) -> np.ndarray:
        """(true cells,) position of the predicted cell with the largest IoU, the first of several; −1 without overlap."""
        found = np.full(len(self.truth_ids), -1, np.int64)
        order = np.lexsort((-self.predicted, self.iou))
        # Of several values for one place numpy keeps the last.
        found[self.truth[order]] = self.predicted[order]
        return found

    def matches(self, threshold: float) -> np.ndarray:
        """(true cells,) position of the predicted cell matched to each true cell, −1 for none.

        One to one, as many pairs as possible of those with IoU ≥ `threshold` (above 0.5 there is no choice).
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

        good = self.iou >= threshold
        shape = len(self.truth_ids), len(self.predicted_ids)
        if not good.any():
            return np.full(shape[0], -1)
        graph = csr_array((np.ones(good.sum(), np.int8), (self.truth[good], self.predicted[good])), shape=shape)
        return maximum_bipartite_matching(graph, perm_type="column").astype(np.int64)


def match_labels(truth: np.ndarray, predicted: np.ndarray) -> Overlap:
    """Overlaps of two label images of one shape; 0 is background, numbers need not be consecutive."""
    if truth.shape != predicted.shape:
        raise ValueError(f"label images differ in shape: {truth.shape} and {predicted.shape}")
    truth_ids, a, area_a = np.unique(truth, return_inverse=True, return_counts=True)
    predicted_ids, b, area_b = np.unique(predicted, return_inverse=True, return_counts=True)
    pairs, joint = np.unique(a.ravel() * len(predicted_ids) + b.ravel(), return_counts=True)
    i, j = np.divmod(pairs, len(predicted_ids))
    iou = joint / (area_a[i] + area_b[j] - joint)
    cells = (truth_ids[i] != 0) & (predicted_ids[j] != 0)
    first_a, first_b = int(truth_ids[0] == 0), int(predicted_ids[0] == 0)
    return Overlap(i[cells] - first_a, j[cells] - first_b, iou[cells], truth_ids[first_a:], predicted_ids[first_b:])


def match_polygons(truth: Sequence, predicted: Sequence, least: float = 0.0) -> Overlap:
    """Overlaps of two lists of valid polygons of one frame.

    Parameters
    ----------
    least
        Pairs whose boxes and areas rule out an IoU this large are left out: slivers between neighbours, most of the pairs of two segmentations.
    """
    import shapely

    a, b = np.asarray(truth, object), np.asarray(predicted, object)
    i, j = shapely.STRtree(b).query(a, predicate=None if least else "intersects") if len(a) and len(b) else np.zeros((2, 0), np.int64)
    if least:
        box_a, box_b, areas = shapely.bounds(a)[i], shapely.bounds(b)[j], (shapely.area(a)[i], shapely.area(b)[j])
        shared = np.clip(np.minimum(box_a[:, 2:], box_b[:, 2:]) - np.maximum(box_a[:, :2], box_b[:, :2]), 0, None).prod(axis=1)
        possible = np.minimum(np.minimum(*areas), shared) >= least * np.maximum(*areas)
        i, j = i[possible], j[possible]
    # A block of pairs at a time: what cells share is a polygon of its own for each.
    starts = range(0, len(i), _PAIRS)
    joint = np.concatenate([shapely.area(shapely.intersection(a[i[at : at + _PAIRS]], b[j[at : at + _PAIRS]])) for at in starts] or [np.zeros(0)])
    overlapping = joint > 0
    i, j, joint = i[overlapping], j[overlapping], joint[overlapping]
    iou = joint / (shapely.area(a[i]) + shapely.area(b[j]) - joint) if len(i) else joint
    return Overlap(i.astype(np.int64), j.astype(np.int64), iou, np.arange(len(a)), np.arange(len(b)))


def precision(tp: int, fp: int, fn: int) -> float | None:
    """AP = TP / (TP + FP + FN); None where there is nothing to find and nothing was found."""
    return tp / (tp + fp + fn) if tp + fp + fn else None


def scores(overlap: Overlap, thresholds: Sequence[float] = (0.5, 0.75)) -> dict[str, float | int | None]:
    """Figures of a prediction against complete truth.

    Returns
    -------
    `n_truth`, `n_predicted`, `mean_best_iou` (None without true cells), and for each threshold t `tp@t`, `ap@t`, `f1@t`, `found@t` (share of the true cells
    that are matched; None where undefined).
    """
    n_truth, n_predicted = len(overlap.truth_ids), len(overlap.predicted_ids)
    result: dict[str, float | int | None] = {
        "n_truth": n_truth,
        "n_predicted": n_predicted,
        "mean_best_iou": float(overlap.best_iou().mean()) if n_truth else None,
    }
    for t in thresholds:
        tp = int((overlap.matches(t) >= 0).sum())
        result |= {
            f"tp@{t:g}": tp,
            f"ap@{t:g}": precision(tp, n_predicted - tp, n_truth - tp),
            f"f1@{t:g}": 2 * tp / (n_truth + n_predicted) if n_truth + n_predicted else None,
            f"found@{t:g}": tp / n_truth if n_truth else None,
        }
    return result


def boundary_iou(a: np.ndarray, b: np.ndarray, width: int = 2) -> float:
    """Boundary IoU of two masks [Cheng et al., CVPR 2021]: IoU of their inner rims; sensitive to the outline where the IoU of a large cell is not.

    Parameters
    ----------
    a, b
        (y, x) bool.
    width
        Of the rims, pixels.
    """
    rim_a, rim_b = _rim(a, width), _rim(b, width)
    union = (rim_a | rim_b).sum()
    return float((rim_a & rim_b).sum() / union) if union else 0.0


def boundary_ious(truth: np.ndarray, predicted: np.ndarray, overlap: Overlap, wanted: np.ndarray) -> list[float]:
    """Boundary IoU of true cells with the predicted cell that overlaps each best; 0 without any.

    Parameters
    ----------
    truth, predicted
        (y, x) int label images.
    overlap
        Of `match_labels` of the two.
    wanted
        Positions in `overlap.truth_ids`.
    """
    from scipy.ndimage import find_objects

    best: dict[int, tuple[float, int]] = {}
    for i, j, iou in zip(overlap.truth.tolist(), overlap.predicted.tolist(), overlap.iou.tolist(), strict=True):
        best[i] = max(best.get(i, (0.0, -1)), (iou, j))
    truth_boxes, predicted_boxes = find_objects(truth), find_objects(predicted)
    result = []
    for i in wanted.tolist():
        if i not in best:
            result.append(0.0)
            continue
        a, b = int(overlap.truth_ids[i]), int(overlap.predicted_ids[best[i][1]])
        box = tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(truth_boxes[a - 1], predicted_boxes[b - 1], strict=True))
        result.append(boundary_iou(truth[box] == a, predicted[box] == b))
    return result


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    import cv2

    padded = np.pad(mask.astype(np.uint8), 1)  # the picture's edge counts as the cell's
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner[1:-1, 1:-1] == 0)
