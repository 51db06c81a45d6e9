"""Accept a fine-tuned model, or keep its base: both are judged on held-out patches against curated cells, nuclei and transcripts.

Annotation is partial: curated cells are a part of all cells. **AP@0.5 under partial annotation** counts
TP: a curated cell that is matched one to one by a predicted cell with IoU ≥ 0.5; FN: one that is not;
FP: an unmatched predicted cell with its centroid in the window's core, more than half of whose area is *judged*, i.e. lies in curated cells or background.
A predicted cell in unlabelled area is neither right nor wrong. Stand-in nuclei are not judged area: they say that a cell is there, not how large it is.
Only curated cells with their centroid in the window's core count: those near the border are the neighbour's.

Curated cells come from the teacher, so a model can gain on them by learning the teacher's faults, and a teacher that is wrong throughout cannot be told from
truth by its own labels. Four things guard against it. The rates of spurious and inconsistent cells judge by nuclei and transcripts, over all predicted cells.
`GUARDS` do so too, and can only refuse: cells that are too narrow leave transcripts outside, cells that are too wide hold few for
their area, cells that are cut
leave parts without nucleus, cells that are merged or displaced do not have a nucleus of their own.
Where the teacher labelled by several stains, its label images are held against each other on the cells that they share: labels that agree with each other
less than the base agrees with them are noisier than the base, and cannot show that another model is better.
Labels that lie beside their nuclei, all in one direction, are refused as they are: augmentation turns the direction away, so the model does not show it.

What no rule here can see: outlines that are wrong between touching cells, where neither nuclei nor transcripts tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from istseg.artifacts.patches import Patch
from istseg.curation.rules import from_label_images
from istseg.network.card import ModelCard
from istseg.network.dataset import PatchRef, border_labels
from istseg.network.dynamics import labels_from_field
from istseg.network.inference import Predictor
from istseg.network.model import Rna2Seg
from istseg.network.rna_image import rna_channel
from istseg.progress import track
from istseg.qc.matching import boundary_ious, match_labels, precision

IOU = 0.5
MIN_AREA_UM2 = 12.8
FLOW_ERROR = 0.9
CONTAIN, INTERSECT = 0.95, 0.05
SPURIOUS_PERCENTILE = 5.0
MARGIN = 0.01
"""A difference counts when it is larger than this and than what a single cell makes."""
UNCHECKED_MARGIN = {"ap50": 0.03, "boundary_iou": 0.10}
"""What a gain against the labels must exceed where no second stain checks the labels: a model gains a little on any teacher by learning its style of outlines
(measured: 0.06 of boundary IoU on a watershed's cells, while the model became worse by the truth)."""
MIN_CELLS = 10
"""Fewer curated cells than this on held-out patches decide nothing."""

SHARED_IOU = 0.1
"""Curated cells of two stains that overlap by more than this mean one cell."""

GUARDS = {
    "nuclei_in_own_cell": (1, 0.03),
    "transcripts_in_cells": (1, 0.05),
    "density_in_cells": (1, 0.15),
    "cells_without_nucleus": (-1, 0.10),
}
"""Figure → (1: more is better, −1: less is; how much worse than the base's it may be). Wider than `MARGIN`, because a right correction moves them too: cells
that had swallowed background give up some transcripts, cells that the base had missed hold fewer of them, and cells without nucleus in the plane are real."""

LABEL_OFFSET_UM = 0.75
"""How far the curated cells may lie beside their nuclei in the mean: nuclei lie anywhere in their cells, but in no direction more than in another."""

HIGHER_IS_BETTER = ("ap50", "boundary_iou")
LOWER_IS_BETTER = ("spurious_rate", "inconsistent_rate")


@dataclass
class Tally:
    """Counts over held-out patches; see `figures`."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    predicted: int = 0
    ignored: int = 0
    best: list[float] = field(default_factory=list)
    boundary: list[float] = field(default_factory=list)
    shared: int = 0
    shared_by_model: int = 0
    shared_by_teacher: int = 0
    inconsistent: int | None = 0
    nuclei: int = 0
    nuclei_in_own_cell: int = 0
    transcripts: int = 0
    transcripts_in_cells: int = 0
    cell_pixels: int = 0
    transcripts_in_nuclei: int = 0
    nucleus_pixels: int = 0
    label_offsets_um: list[tuple[float, float]] = field(default_factory=list)
    without_nucleus: list[int] = field(default_factory=list)
    reference: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Figures of the decision: quality, rates, and the counts behind them."""
        curated = self.tp + self.fn
        threshold = float(np.percentile(self.reference, SPURIOUS_PERCENTILE)) if self.reference else None
        spurious = None if threshold is None else sum(n < threshold for n in self.without_nucleus)
        return {
            "ap50": precision(self.tp, self.fp, self.fn) if curated else None,
            "mean_best_iou": float(np.mean(self.best)) if self.best else None,
            "boundary_iou": float(np.mean(self.boundary)) if self.boundary else None,
            "spurious_rate": None if spurious is None or not self.predicted else spurious / self.predicted,
            "inconsistent_rate": None if self.inconsistent is None or not self.predicted else self.inconsistent / self.predicted,
            "nuclei_in_own_cell": self.nuclei_in_own_cell / self.nuclei if self.nuclei else None,
            "transcripts_in_cells": self.transcripts_in_cells / self.transcripts if self.transcripts else None,
            "density_in_cells": self._density_in_cells(),
            "cells_without_nucleus": None if self.inconsistent is None or not self.predicted else len(self.without_nucleus) / self.predicted,
            "label_offset_um": float(np.linalg.norm(np.mean(self.label_offsets_um, 0))) if len(self.label_offsets_um) >= MIN_CELLS else None,
            "shared_cells_found": self.shared_by_model / self.shared if self.shared else None,
            "shared_cells_found_by_teacher": self.shared_by_teacher / self.shared if self.shared else None,
            "shared_cells": self.shared,
            "true_positives": self.tp,
            "false_positives": self.fp,
            "false_negatives": self.fn,
            "curated_cells": curated,
            "predicted_cells": self.predicted,
            "predicted_cells_not_judged": self.ignored,
            "spurious_below_transcripts": threshold,
        }

    def _density_in_cells(self) -> float | None:
        """Transcripts per area of the cells, relative to that of the nuclei."""
        if not self.cell_pixels or not self.transcripts_in_nuclei:
            return None
        return (self.transcripts_in_cells / self.cell_pixels) / (self.transcripts_in_nuclei / self.nucleus_pixels)


def evaluate(model: Rna2Seg, card: ModelCard, holdout: Sequence[PatchRef], device: torch.device, what: str = "gate") -> dict[str, Any]:
    """Figures of a model on held-out patches.

    Parameters
    ----------
    model, card
        Network and its card: RNA image and thresholds.
    holdout
        Patches, read one by one.
    device
        Of `inference.open_device`.
    what
        Name of the work for the progress.

    Returns
    -------
    See `Tally.figures`. With nuclei in the patches, *spurious* and *inconsistent* are the paper's [Validation and metrics]; without, every cell with fewer
    transcripts than the 5th percentile of the curated cells counts as spurious, and the inconsistent rate is None.
    """
    predictor = Predictor(model, card, device)
    tally = Tally()
    for ref in track(list(holdout), what):
        patch = Patch.read(ref.path)
        judge(patch, predict(predictor, patch), tally)
    return tally.figures()


def predict(predictor: Predictor, patch: Patch) -> np.ndarray:
    """(y, x) int32 cells that a model finds in a patch."""
    card = predictor.card
    rna = rna_channel(patch.gene_map(card.genes) if card.genes else patch.counts, card.image_form)
    field_of_flows = predictor.predict(torch.from_numpy(np.concatenate((patch.normalised(), rna[None]))[None]))[0]
    return labels_from_field(
        field_of_flows,
        logit_threshold=predictor.card.logit_threshold,
        min_flow=predictor.card.min_flow,
        flow_error=FLOW_ERROR,
        min_area_wpx=MIN_AREA_UM2 / patch.working_um**2,
        device=predictor.device,
    )


def judge(patch: Patch, predicted: np.ndarray, tally: Tally) -> None:
    """Add the cells predicted in one patch to the tally; of a cell that reaches out of the mosaic the part inside."""
    inside = patch.inside_mosaic()
    patch = replace(patch, counts=np.where(inside, patch.counts, 0))
    predicted = np.where(inside, predicted, 0)
    mine = _central(predicted, patch.overlap // 2)
    tally.predicted += len(mine)
    stand_ins = patch.stand_ins if patch.stand_ins is not None else [[]] * len(patch.labels)
    cells = [np.where(patch.teach[k] & ~np.isin(labels, stand_ins[k]), labels, 0) for k, labels in enumerate(patch.labels)]
    for k in range(len(cells)):
        counted = np.setdiff1d(_central(cells[k], patch.overlap // 2), border_labels(patch.labels[k]))
        judged = patch.teach[k] & ~np.isin(patch.labels[k], stand_ins[k])
        if patch.nuclei is not None:
            tally.label_offsets_um += _offsets_um(np.where(np.isin(cells[k], counted), cells[k], 0), patch.nuclei, patch.working_um)
        _against_curated(cells[k], counted, judged, predicted, mine, tally)
        for other in range(len(cells)):
            if other != k:
                _against_other_stain(cells[k], counted, cells[other], predicted, tally)
    _against_nuclei_and_transcripts(patch, predicted, mine, tally)


def _against_curated(cells: np.ndarray, counted: np.ndarray, judged: np.ndarray, predicted: np.ndarray, mine: np.ndarray, tally: Tally) -> None:
    overlap = match_labels(cells, predicted)
    partner = overlap.matches(IOU)
    wanted = np.isin(overlap.truth_ids, counted)
    tally.tp += int((partner[wanted] >= 0).sum())
    tally.fn += int((partner[wanted] < 0).sum())
    tally.best += overlap.best_iou()[wanted].tolist()
    tally.boundary += boundary_ious(cells, predicted, overlap, np.flatnonzero(wanted))
    area = np.bincount(predicted.ravel())
    inside = np.bincount(predicted.ravel(), weights=judged.ravel())
    unmatched = np.setdiff1d(mine, overlap.predicted_ids[partner[partner >= 0]])
    wrong = inside[unmatched] > area[unmatched] / 2
    tally.fp += int(wrong.sum())
    tally.ignored += int((~wrong).sum())


def _offsets_um(cells: np.ndarray, nuclei: np.ndarray, working_um: float) -> list[tuple[float, float]]:
    """(y, x) from the centre of each cell to that of its nucleus, for cells that contain exactly one."""
    overlaps, nucleus_ids, cell_ids = from_label_images(nuclei, cells)
    inside = overlaps.fraction >= CONTAIN
    single = inside & (np.bincount(overlaps.cell[inside], minlength=len(cell_ids))[overlaps.cell] == 1)
    of_nuclei, of_cells = _centres(nuclei, nucleus_ids), _centres(cells, cell_ids)
    return [tuple(d) for d in ((of_nuclei[overlaps.nucleus[single]] - of_cells[overlaps.cell[single]]) * working_um).tolist()]


def _centres(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(n, 2) mean (y, x) of labels."""
    flat = labels.ravel()
    y, x = np.divmod(np.arange(flat.size), labels.shape[1])
    size = np.maximum(np.bincount(flat), 1)
    return np.stack([np.bincount(flat, v)[ids] / size[ids] for v in (y, x)], 1)


def _against_other_stain(cells: np.ndarray, counted: np.ndarray, other: np.ndarray, predicted: np.ndarray, tally: Tally) -> None:
    """Curated cells that a curated cell of another stain overlaps: found by that one, and by the model?"""
    peer, model = match_labels(cells, other), match_labels(cells, predicted)
    shared = np.isin(peer.truth_ids, counted) & (peer.best_iou() > SHARED_IOU)
    tally.shared += int(shared.sum())
    tally.shared_by_teacher += int((peer.best_iou()[shared] >= IOU).sum())
    tally.shared_by_model += int((model.best_iou()[shared] >= IOU).sum())


def _against_nuclei_and_transcripts(patch: Patch, predicted: np.ndarray, mine: np.ndarray, tally: Tally) -> None:
    margin = patch.overlap // 2
    core = np.s_[margin : patch.counts.shape[0] - margin, margin : patch.counts.shape[1] - margin]
    tally.transcripts += int(patch.counts[core].sum())
    tally.transcripts_in_cells += int(patch.counts[core][predicted[core] > 0].sum())
    tally.cell_pixels += int((predicted[core] > 0).sum())
    transcripts = np.bincount(predicted.ravel(), weights=patch.counts.ravel(), minlength=1)
    if patch.nuclei is None:
        tally.inconsistent = None
        tally.without_nucleus += transcripts[mine].astype(int).tolist()
        # The first label image only: the cells of several teachers are the same cells.
        curated = patch.labels[0]
        tally.reference += np.bincount(curated.ravel(), weights=patch.counts.ravel())[np.unique(curated[curated > 0])].astype(int).tolist()
        return
    overlaps, nucleus_ids, cell_ids = from_label_images(patch.nuclei, predicted)
    contained = np.bincount(overlaps.cell[overlaps.fraction >= CONTAIN], minlength=len(cell_ids))
    intersected = np.bincount(overlaps.cell[overlaps.fraction > INTERSECT], minlength=len(cell_ids))
    central = np.isin(nucleus_ids, _central(patch.nuclei, margin))
    alone = (overlaps.fraction >= CONTAIN) & (contained[overlaps.cell] == 1)
    tally.nuclei += int(central.sum())
    tally.nuclei_in_own_cell += int(central[overlaps.nucleus[alone]].sum())
    tally.nucleus_pixels += int((patch.nuclei[core] > 0).sum())
    tally.transcripts_in_nuclei += int(patch.counts[core][patch.nuclei[core] > 0].sum())
    chosen = np.isin(cell_ids, mine)
    if tally.inconsistent is not None:
        tally.inconsistent += int((chosen & (((intersected > 0) & (contained == 0)) | (contained > 1))).sum())
    tally.without_nucleus += transcripts[cell_ids[chosen & (intersected == 0)]].astype(int).tolist()
    tally.reference += np.bincount(patch.nuclei.ravel(), weights=patch.counts.ravel())[nucleus_ids].astype(int).tolist()


def _central(labels: np.ndarray, margin: int) -> np.ndarray:
    """Labels whose centroid lies in the core of the window, half-open."""
    ids, inverse, area = np.unique(labels, return_inverse=True, return_counts=True)
    y, x = np.indices(labels.shape)
    centres = [np.bincount(inverse.ravel(), weights=v.ravel()) / area + 0.5 for v in (y, x)]
    inside = (ids > 0) & np.logical_and.reduce([(c >= margin) & (c < side - margin) for c, side in zip(centres, labels.shape, strict=True)])
    return ids[inside]


def decide(base: dict[str, Any], finetuned: dict[str, Any]) -> tuple[bool, str]:
    """Accept the fine-tuned model when it is worse in nothing and better in something; else keep the base. `GUARDS` can only make it worse.

    Parameters
    ----------
    base, finetuned
        Of `evaluate`, on the same patches.

    Returns
    -------
    (accepted, reason in words)
    """
    curated = finetuned["curated_cells"]
    if curated < MIN_CELLS:
        return False, f"the base is kept: only {curated} curated cells lie on held-out patches, at least {MIN_CELLS} are needed to decide"
    by_base, by_teacher = base.get("shared_cells_found"), base.get("shared_cells_found_by_teacher")
    if by_base is not None and base["shared_cells"] >= MIN_CELLS and by_base >= by_teacher:
        return False, (
            f"the base is kept: of the curated cells that the teacher labelled by several stains it finds {by_base:.1%}, the teacher's other stains "
            f"{by_teacher:.1%}: labels that are noisier than the base cannot show an improvement; use a better teacher"
        )
    offset = base.get("label_offset_um")
    if offset is not None and offset > LABEL_OFFSET_UM:
        return False, (
            f"the base is kept: the curated cells lie {offset:.2f} µm beside their nuclei in the mean (at most {LABEL_OFFSET_UM} µm may be): "
            "stains or labels are displaced; align them"
        )
    checked = by_base is not None and base["shared_cells"] >= MIN_CELLS
    better, worse = [], []
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        before, after = base[name], finetuned[name]
        if before is None and after is None:
            continue
        if after is None:
            worse.append(f"{name} (it predicts no cell)")
            continue
        if before is None:
            continue
        gain = (after - before) * (1 if name in HIGHER_IS_BETTER else -1)
        n = curated if name in HIGHER_IS_BETTER else min(base["predicted_cells"], finetuned["predicted_cells"])
        step = max(MARGIN, 1 / n)
        if gain < -step:
            worse.append(f"{name} {before:.3f} → {after:.3f}")
        if gain > (step if checked else max(step, UNCHECKED_MARGIN.get(name, 0.0))):
            better.append(f"{name} {before:.3f} → {after:.3f}")
    for name, (sign, margin) in GUARDS.items():
        before, after = base.get(name), finetuned.get(name)
        if before is not None and after is not None and (before - after) * sign > margin:
            worse.append(f"{name} {before:.3f} → {after:.3f}")
    if worse:
        return False, "the base is kept: fine-tuning made worse " + ", ".join(worse) + (f" (better: {', '.join(better)})" if better else "")
    if not better:
        return False, "the base is kept: fine-tuning changed nothing by more than the margin"
    return True, "fine-tuning is accepted: better " + ", ".join(better) + ", nothing worse"


def nuclei_known(holdout: Sequence[PatchRef]) -> bool:
    """Whether every held-out patch says which labels are stand-in nuclei and where the nuclei are; else the figures are coarser."""
    patches = (Patch.read(ref.path) for ref in holdout)
    return all(patch.stand_ins is not None and patch.nuclei is not None for patch in patches)
