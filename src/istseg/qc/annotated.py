"""A segmentation against annotated cells [paper: Validation and metrics; Kirillov et al. 2019 for panoptic quality]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from scipy import sparse

from istseg.qc.matching import Overlap, precision

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def best_matches(overlap: Overlap, joint: sparse.csr_matrix, in_annotated: np.ndarray, in_cells: np.ndarray, cell_ids: np.ndarray) -> pd.DataFrame:
    """Of each annotated cell the segmented cell with the largest IoU, of pixels and of transcripts, each for itself [paper].

    Parameters
    ----------
    overlap
        Annotated (truth) against segmented cells.
    joint
        (annotated, segmented) gene transcripts that lie in the annotated cell and belong to the segmented one.
    in_annotated, in_cells
        Gene transcripts of each annotated and of each segmented cell.
    cell_ids
        Of the segmented cells.

    Returns
    -------
    DataFrame (annotated cells): `pixel_iou`, `pixel_match`, `rna_iou`, `rna_match`. IoUs are 0 and matches None without overlap; `rna_iou` is NaN for annotated
    cells without a transcript.
    """
    table = joint.tocoo()
    union = in_annotated[table.row] + in_cells[table.col] - table.data
    rna = Overlap(table.row.astype(np.int64), table.col.astype(np.int64), table.data / union, overlap.truth_ids, overlap.predicted_ids)
    found = pd.DataFrame({"n_transcripts": in_annotated.astype(np.int64)})
    for name, one in (("pixel", overlap), ("rna", rna)):
        match = one.best()
        found[f"{name}_iou"] = one.best_iou()
        found[f"{name}_match"] = [cell_ids[m] if m >= 0 else None for m in match.tolist()]
    found.loc[in_annotated == 0, "rna_iou"] = np.nan
    return found


def summary(best: pd.DataFrame, overlap: Overlap) -> dict[str, Any]:
    """Means and medians over annotated cells, and the share that is found (matched one to one at IoU 0.5); needs no whole truth."""
    result: dict[str, Any] = {"n_annotated": len(best), "found": float((overlap.matches(0.5) >= 0).mean()) if len(best) else None}
    for name in ("pixel_iou", "rna_iou"):
        values = best[name].dropna().to_numpy()
        result |= {f"{name}_mean": float(values.mean()) if len(values) else None, f"{name}_median": float(np.median(values)) if len(values) else None}
    return result


def dense(overlap: Overlap, annotated: np.ndarray, predicted: np.ndarray, region: shapely.Geometry, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, Any]:
    """Scores where the truth is whole.

    A cell counts when its centroid lies in the region. TP: annotated cells in the region that are matched, FN: those that are not; FP: segmented cells in the
    region without any match, so that one whose partner lies just outside is neither.

    Parameters
    ----------
    annotated, predicted
        Polygons that `overlap` is of.

    Returns
    -------
    `n_truth`, `n_predicted` (in the region), `ap` {threshold: TP / (TP + FP + FN)}, `mean_ap`; at 0.5 `precision`, `recall`, `f1`, `panoptic_quality` =
    Σ IoU of the matches / (TP + FP/2 + FN/2), `segmentation_quality` (mean IoU of the matches). None where undefined.
    """
    inside = [shapely.intersects(region, shapely.centroid(shapes)) if len(shapes) else np.zeros(0, bool) for shapes in (annotated, predicted)]
    result: dict[str, Any] = {"n_truth": int(inside[0].sum()), "n_predicted": int(inside[1].sum()), "ap": {}}
    for threshold in thresholds:
        tp, fp, fn, _ = _count(overlap, inside, threshold)
        result["ap"][f"{threshold:g}"] = precision(tp, fp, fn)
    known = [v for v in result["ap"].values() if v is not None]
    tp, fp, fn, iou = _count(overlap, inside, 0.5)
    return result | {
        "mean_ap": float(np.mean(known)) if known else None,
        "precision": tp / (tp + fp) if tp + fp else None,
        "recall": tp / (tp + fn) if tp + fn else None,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "panoptic_quality": iou / (tp + fp / 2 + fn / 2) if tp + fp + fn else None,
        "segmentation_quality": iou / tp if tp else None,
    }


def _count(overlap: Overlap, inside: list[np.ndarray], threshold: float) -> tuple[int, int, int, float]:
    """TP, FP, FN and the sum of the IoU of the true positives."""
    partner = overlap.matches(threshold)
    hit = (partner >= 0) & inside[0]
    taken = np.zeros(len(overlap.predicted_ids), bool)
    taken[partner[partner >= 0]] = True
    pairs = hit[overlap.truth] & (partner[overlap.truth] == overlap.predicted)
    return int(hit.sum()), int((inside[1] & ~taken).sum()), int((inside[0] & ~hit).sum()), float(overlap.iou[pairs].sum())
