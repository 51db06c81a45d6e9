"""How far two segmentations of a sample agree: cells that are the same, transcripts that lie together. Agreement is no accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from istseg.qc.matching import match_polygons


def cells(first: np.ndarray, second: np.ndarray, threshold: float = 0.5) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Cells that both segmentations have.

    Parameters
    ----------
    first, second
        Valid polygons of one frame.
    threshold
        IoU from which two cells are the same; matched one to one.

    Returns
    -------
    `n_matched`, `matched_first`, `matched_second` (share of the cells of each that are matched; None without cells), `mean_iou` (of the matched pairs; None
    without any); and whether each cell of the first and of the second is matched.
    """
    overlap = match_polygons(first, second, least=threshold)
    partner = overlap.matches(threshold)
    n = int((partner >= 0).sum())
    pairs = partner[overlap.truth] == overlap.predicted
    record = {
        "n_matched": n,
        "matched_first": n / len(first) if len(first) else None,
        "matched_second": n / len(second) if len(second) else None,
        "mean_iou": float(overlap.iou[pairs].mean()) if n else None,
    }
    return record, partner >= 0, np.isin(np.arange(len(second)), partner)


def transcripts(joint: sparse.csr_matrix, first: np.ndarray, second: np.ndarray, total: int) -> dict[str, Any]:
    """Adjusted Rand index of the assignment of transcripts to cells [Hubert and Arabie 1985].

    Parameters
    ----------
    joint
        (first's cells, second's cells) transcripts that both assign.
    first, second
        Transcripts of each cell, whatever the other says.
    total
        All transcripts.

    Returns
    -------
    `ari`: over all transcripts, one that lies in no cell being alone; `ari_assigned`: over those that both assign; `assigned_both`: their share of all.
    None where undefined.
    """
    counts = joint.data.astype(float)
    both = float(counts.sum())
    return {
        "ari": _adjusted(counts, first, second, total),
        "ari_assigned": _adjusted(counts, np.asarray(joint.sum(axis=1)).ravel(), np.asarray(joint.sum(axis=0)).ravel(), both),
        "assigned_both": both / total if total else None,
    }


def _adjusted(joint: np.ndarray, first: np.ndarray, second: np.ndarray, total: float) -> float | None:
    together, a, b = (_pairs(v) for v in (joint, first, second))
    if total < 2:
        return None
    expected, most = a * b / (total * (total - 1) / 2), (a + b) / 2
    return (together - expected) / (most - expected) if most != expected else None


def _pairs(counts: np.ndarray) -> float:
    counts = np.asarray(counts, float)
    return float((counts * (counts - 1) / 2).sum())
