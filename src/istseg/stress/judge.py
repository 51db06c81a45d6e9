"""How a segmentation of a degraded region holds up against that of the clean one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from istseg.curation import rules
from istseg.curation.density import count_percentile
from istseg.qc import flags
from istseg.qc.matching import match_labels, precision
from istseg.qc.nuclei import of_overlaps

MEASURES = {
    "cells": "cells of the degraded region",
    "pixel_iou": "mean IoU of a clean cell with the best overlapping degraded one, pixels",
    "rna_iou": "the same, transcripts of the clean region",
    "ap50": "TP / (TP + FP + FN) of cells matched one to one at IoU >= 0.5",
    "ap75": "the same at IoU >= 0.75",
    "lost": "share of the clean cells that are not matched at IoU >= 0.5",
    "new": "share of the degraded cells that are not matched at IoU >= 0.5",
    "spurious": "share of the degraded cells without nucleus and with fewer transcripts than T_spurious",
    "inconsistent": "share of the degraded cells that cut a nucleus or contain several",
    "transcripts_in_cells": "share of the region's transcripts",
    "affected_pixel_iou": "pixel_iou of the clean cells whose contour was broken",
    "affected_rna_iou": "rna_iou of the clean cells whose contour was broken",
}
"""Figures of a condition: what each says."""


@dataclass(frozen=True)
class Molecules:
    """Transcripts of a tile, controls left out: flat index of each one's pixel in the region."""

    flat: np.ndarray

    def counts(self, labels: np.ndarray) -> np.ndarray:
        """Transcripts of each label, by label from 0."""
        return np.bincount(labels.ravel()[self.flat], minlength=int(labels.max(initial=0)) + 1)


@dataclass(frozen=True)
class Clean:
    """The clean region: `labels` and `nuclei` (y, x) int, its transcripts, and how cells are flagged."""

    labels: np.ndarray
    nuclei: np.ndarray
    molecules: Molecules
    contain: float
    intersect: float
    spurious_percentile: float

    def judge(self, labels: np.ndarray, molecules: Molecules, affected: np.ndarray | None = None) -> dict[str, float | None]:
        """`MEASURES` of the degraded region; None where a figure is undefined.

        Parameters
        ----------
        labels
            (y, x) int cells of the degraded region.
        molecules
            Its transcripts. T_spurious is theirs: the percentile of the transcripts per nucleus.
        affected
            Labels of clean cells that the last two figures are of.
        """
        pixels = match_labels(self.labels, labels)
        at = self.molecules.flat
        transcripts = match_labels(self.labels.ravel()[at], labels.ravel()[at])
        n_clean, n = len(pixels.truth_ids), len(pixels.predicted_ids)
        matched = {t: int((pixels.matches(t) >= 0).sum()) for t in (0.5, 0.75)}
        pixel_iou, rna_iou = pixels.best_iou(), transcripts.best_iou()
        result: dict[str, float | None] = {
            "cells": n,
            "pixel_iou": _mean(pixel_iou),
            "rna_iou": _mean(rna_iou),
            "ap50": precision(matched[0.5], n - matched[0.5], n_clean - matched[0.5]),
            "ap75": precision(matched[0.75], n - matched[0.75], n_clean - matched[0.75]),
            "lost": 1 - matched[0.5] / n_clean if n_clean else None,
            "new": 1 - matched[0.5] / n if n else None,
            **self._flag_rates(labels, molecules),
        }
        inside = int(molecules.counts(labels)[1:].sum())
        result["transcripts_in_cells"] = inside / len(molecules.flat) if len(molecules.flat) else None
        if affected is not None:
            result["affected_pixel_iou"] = _mean(pixel_iou[np.isin(pixels.truth_ids, affected)])
            result["affected_rna_iou"] = _mean(rna_iou[np.isin(transcripts.truth_ids, affected)])
        return result

    def _flag_rates(self, labels: np.ndarray, molecules: Molecules) -> dict[str, float | None]:
        overlaps, nucleus_ids, cell_ids = rules.from_label_images(self.nuclei, labels)
        per_nucleus = Counter(molecules.counts(self.nuclei)[nucleus_ids].tolist())
        counts = of_overlaps(overlaps, self.contain, self.intersect)
        threshold = count_percentile(per_nucleus, self.spurious_percentile)
        table = flags.flag(counts.contained, counts.intersected, molecules.counts(labels)[cell_ids], threshold)
        return {"spurious": _mean(table["is_spurious"].to_numpy()), "inconsistent": _mean(table["is_inconsistent"].to_numpy())}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
