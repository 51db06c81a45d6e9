"""What a model does on held-out patches, counted square by square against curated cells, nuclei and transcripts: the evidence of the gate.

Annotation is partial: curated cells are a part of all cells. **AP@0.5 under partial annotation** counts
TP: a curated cell that is matched one to one by a predicted cell with IoU ≥ 0.5; FN: one that is not;
FP: an unmatched predicted cell with its centroid in the window's core, more than half of whose area is *judged*, i.e. lies in curated cells or background.
A predicted cell in unlabelled area is neither right nor wrong. Stand-in nuclei are not judged area: they say that a cell is there, not how large it is.
Only curated cells with their centroid in the window's core count: those near the border are the neighbour's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from istseg.qc.matching import boundary_ious, match_labels

IOU = 0.5
MIN_AREA_UM2 = 12.8
FLOW_ERROR = 0.9
CONTAIN, INTERSECT = 0.95, 0.05
SPURIOUS_PERCENTILE = 5.0
NOISE = 2.0
"""Standard errors that a difference must exceed. Where k squares change, all alike and in one direction, k has to exceed about 4."""
SQUARE_UM = 10.0
"""Side of the squares of tissue that are taken for independent: about a cell, so that its counts lie together, and in the same square in both models."""
MIN_CELLS = 10
"""Fewer curated cells than this on held-out patches decide nothing."""

SHARED_IOU = 0.1
"""Curated cells of two stains that overlap by more than this mean one cell."""

RATIOS = {
    "ap50": ("tp", "scored"),
    "mean_best_iou": ("best_iou", "curated"),
    "boundary_iou": ("boundary_iou", "curated"),
    "spurious_rate": ("spurious", "predicted"),
    "inconsistent_rate": ("inconsistent", "predicted"),
    "nuclei_in_own_cell": ("nuclei_in_own_cell", "nuclei"),
    "transcripts_in_cells": ("transcripts_in_cells", "transcripts"),
    "density_in_cells": ("transcripts_in_cells", "cell_pixels"),
    "cells_without_nucleus": ("without_nucleus", "predicted"),
    "shared_cells_found": ("shared_by_model", "shared"),
    "shared_cells_found_by_teacher": ("shared_by_teacher", "shared"),
}
"""Figure → counts whose ratio it is; the density also has a constant factor."""
_NEED_NUCLEI = ("inconsistent_rate", "cells_without_nucleus")


@dataclass
class Tally:
    """Counts over held-out patches, square by square; see `figures`.

    Attributes
    ----------
    patches
        For each patch, count → (squares,) numbers; empty squares stay, so that the tallies of two models on the same patches are parallel.
    bare
        For each patch, (square, transcripts) of the predicted cells without nucleus.
    reference
        Transcripts of nuclei, or of curated cells where nuclei are not known: cells without nucleus that hold fewer are spurious.
    offsets_um
        (sample, label layer) → (y, x) from the centre of each curated cell to that of its nucleus.
    nuclei_known
        Whether all patches say where nuclei are.
    """

    patches: list[dict[str, np.ndarray]] = field(default_factory=list)
    bare: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    reference: list[int] = field(default_factory=list)
    offsets_um: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    nuclei_known: bool = True

    def by_square(self, count: str) -> np.ndarray:
        """(squares of all patches,) numbers of a count."""
        if count == "curated":
            return self.by_square("tp") + self.by_square("fn")
        if count == "scored":
            return self.by_square("curated") + self.by_square("fp")
        if count == "spurious":
            threshold = self.spurious_below()
            parts = [
                np.bincount(squares[transcripts < threshold], minlength=len(patch["predicted"]))
                for patch, (squares, transcripts) in zip(self.patches, self.bare, strict=True)
            ]
            return np.concatenate([np.zeros(0), *parts])
        return np.concatenate([np.zeros(0), *(patch.get(count, np.zeros(len(patch["predicted"]))) for patch in self.patches)])

    def total(self, count: str) -> float:
        return float(self.by_square(count).sum())

    def spurious_below(self) -> float | None:
        return float(np.percentile(self.reference, SPURIOUS_PERCENTILE)) if self.reference else None

    def factor(self, figure: str) -> float:
        """What the ratio of a figure is multiplied by: the density is relative to that of the nuclei. 0: there is no such figure."""
        if figure == "density_in_cells":
            in_nuclei = self.total("transcripts_in_nuclei")
            return self.total("nucleus_pixels") / in_nuclei if in_nuclei else 0.0
        if figure == "spurious_rate":
            return float(bool(self.reference))
        if figure == "ap50":
            return float(self.total("curated") > 0)
        return float(self.nuclei_known or figure not in _NEED_NUCLEI)

    def value(self, figure: str) -> float | None:
        factor = self.factor(figure)
        top, bottom = RATIOS[figure]
        if not factor or not self.total(bottom):
            return None
        return factor * self.total(top) / self.total(bottom)

    def offsets(self) -> list[tuple[float, float, str, str]]:
        """(length of the mean offset, its noise, sample, label layer) in µm where enough cells contain one nucleus; the largest beyond its noise first."""
        found = []
        for (sample, layer), offsets in self.offsets_um.items():
            if len(offsets) < MIN_CELLS:
                continue
            mean = np.mean(offsets, 0)
            length = float(np.linalg.norm(mean))
            along = np.asarray(offsets) @ (mean / max(length, 1e-9))
            found.append((length, NOISE * float(along.std(ddof=1)) / len(along) ** 0.5, sample, layer))
        return sorted(found, key=lambda one: one[1] - one[0])

    def figures(self) -> dict[str, Any]:
        """Figures of the decision: quality, rates, and the counts behind them."""
        offsets = self.offsets()
        return {
            **{figure: self.value(figure) for figure in RATIOS},
            "label_offset_um": max(length for length, *_ in offsets) if offsets else None,
            "shared_cells": int(self.total("shared")),
            "true_positives": int(self.total("tp")),
            "false_positives": int(self.total("fp")),
            "false_negatives": int(self.total("fn")),
            "curated_cells": int(self.total("curated")),
            "predicted_cells": int(self.total("predicted")),
            "predicted_cells_not_judged": int(self.total("ignored")),
            "spurious_below_transcripts": self.spurious_below(),
        }


def pool(tallies: Mapping[str, Tally]) -> Tally:
    """One tally of all samples."""
    whole = Tally()
    for tally in tallies.values():
        whole.patches += tally.patches
        whole.bare += tally.bare
        whole.reference += tally.reference
        whole.nuclei_known &= tally.nuclei_known
        for key, offsets in tally.offsets_um.items():
            whole.offsets_um[key] += offsets
    return whole


def evaluate(model: Rna2Seg, card: ModelCard, holdout: Sequence[PatchRef], device: torch.device, what: str = "gate") -> dict[str, Tally]:
    """Counts of a model on held-out patches.

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
    Sample → tally, in order of the samples' names. With nuclei in the patches, *spurious* and *inconsistent* are the paper's [Validation and metrics];
    without, every cell with fewer transcripts than the 5th percentile of the curated cells counts as spurious, and the inconsistent rate is None.
    """
    predictor = Predictor(model, card, device)
    tallies = {sample: Tally() for sample in sorted({ref.sample for ref in holdout})}
    for ref in track(list(holdout), what):
        patch = Patch.read(ref.path)
        judge(patch, predict(predictor, patch), tallies[ref.sample])
    return tallies


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


class _Part:
    """Counts of one patch by square."""

    def __init__(self, patch: Patch):
        side = max(round(SQUARE_UM / patch.working_um), 1)
        rows, columns = (np.arange(n) // side for n in patch.counts.shape)
        self.square = rows[:, None] * (columns[-1] + 1) + columns
        self.n = int(self.square[-1, -1]) + 1
        self.counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(self.n))

    def of(self, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(n,) squares of the labels' centres."""
        y, x = _centres(labels, ids).astype(int).T
        return self.square[y, x]

    def add(self, count: str, squares: np.ndarray, numbers: np.ndarray | None = None) -> None:
        self.counts[count] += np.bincount(squares.ravel(), None if numbers is None else numbers.ravel(), minlength=self.n)


def judge(patch: Patch, predicted: np.ndarray, tally: Tally) -> None:
    """Add the cells predicted in one patch to the tally; of a cell that reaches out of the mosaic the part inside."""
    inside = patch.inside_mosaic()
    patch = replace(patch, counts=np.where(inside, patch.counts, 0))
    predicted = np.where(inside, predicted, 0)
    part = _Part(patch)
    mine = _central(predicted, patch.overlap // 2)
    part.add("predicted", part.of(predicted, mine))
    stand_ins = patch.stand_ins if patch.stand_ins is not None else [[]] * len(patch.labels)
    cells = [np.where(patch.teach[k] & ~np.isin(labels, stand_ins[k]), labels, 0) for k, labels in enumerate(patch.labels)]
    for k in range(len(cells)):
        counted = np.setdiff1d(_central(cells[k], patch.overlap // 2), border_labels(patch.labels[k]))
        judged = patch.teach[k] & ~np.isin(patch.labels[k], stand_ins[k])
        if patch.nuclei is not None:
            offsets = _offsets_um(np.where(np.isin(cells[k], counted), cells[k], 0), patch.nuclei, patch.working_um)
            tally.offsets_um[patch.sample, patch.label_names[k]] += offsets
        _against_curated(cells[k], counted, judged, predicted, mine, part)
        for other in range(len(cells)):
            if other != k:
                _against_other_stain(cells[k], counted, cells[other], predicted, part)
    _against_transcripts(patch, predicted, part)
    tally.bare.append(_without_nuclei(patch, predicted, mine, part, tally) if patch.nuclei is None else _against_nuclei(patch, predicted, mine, part, tally))
    tally.patches.append(dict(part.counts))


def _against_curated(cells: np.ndarray, counted: np.ndarray, judged: np.ndarray, predicted: np.ndarray, mine: np.ndarray, part: _Part) -> None:
    overlap = match_labels(cells, predicted)
    partner = overlap.matches(IOU)
    wanted = np.flatnonzero(np.isin(overlap.truth_ids, counted))
    squares = part.of(cells, overlap.truth_ids[wanted])
    found = partner[wanted] >= 0
    part.add("tp", squares[found])
    part.add("fn", squares[~found])
    part.add("best_iou", squares, overlap.best_iou()[wanted])
    part.add("boundary_iou", squares, np.asarray(boundary_ious(cells, predicted, overlap, wanted), float))
    area = np.bincount(predicted.ravel())
    inside = np.bincount(predicted.ravel(), weights=judged.ravel())
    unmatched = np.setdiff1d(mine, overlap.predicted_ids[partner[partner >= 0]])
    wrong = inside[unmatched] > area[unmatched] / 2
    squares = part.of(predicted, unmatched)
    part.add("fp", squares[wrong])
    part.add("ignored", squares[~wrong])


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


def _against_other_stain(cells: np.ndarray, counted: np.ndarray, other: np.ndarray, predicted: np.ndarray, part: _Part) -> None:
    """Curated cells that a curated cell of another stain overlaps: found by that one, and by the model?"""
    peer, model = match_labels(cells, other), match_labels(cells, predicted)
    shared = np.isin(peer.truth_ids, counted) & (peer.best_iou() > SHARED_IOU)
    squares = part.of(cells, peer.truth_ids[shared])
    part.add("shared", squares)
    part.add("shared_by_teacher", squares[peer.best_iou()[shared] >= IOU])
    part.add("shared_by_model", squares[model.best_iou()[shared] >= IOU])


def _core(patch: Patch) -> tuple[slice, slice]:
    margin = patch.overlap // 2
    height, width = patch.counts.shape
    return np.s_[margin : height - margin, margin : width - margin]


def _against_transcripts(patch: Patch, predicted: np.ndarray, part: _Part) -> None:
    core = _core(patch)
    squares, counts, covered = part.square[core], patch.counts[core], predicted[core] > 0
    part.add("transcripts", squares, counts)
    part.add("transcripts_in_cells", squares[covered], counts[covered])
    part.add("cell_pixels", squares[covered])


def _without_nuclei(patch: Patch, predicted: np.ndarray, mine: np.ndarray, part: _Part, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
    """Squares and transcripts of all cells, since none is known to hold a nucleus."""
    tally.nuclei_known = False
    # The first label image only: the cells of several teachers are the same cells.
    curated = patch.labels[0]
    tally.reference += np.bincount(curated.ravel(), weights=patch.counts.ravel())[np.unique(curated[curated > 0])].astype(int).tolist()
    return part.of(predicted, mine), np.bincount(predicted.ravel(), weights=patch.counts.ravel())[mine]


def _against_nuclei(patch: Patch, predicted: np.ndarray, mine: np.ndarray, part: _Part, tally: Tally) -> tuple[np.ndarray, np.ndarray]:
    """Squares and transcripts of the cells without nucleus."""
    overlaps, nucleus_ids, cell_ids = from_label_images(patch.nuclei, predicted)
    contained = np.bincount(overlaps.cell[overlaps.fraction >= CONTAIN], minlength=len(cell_ids))
    intersected = np.bincount(overlaps.cell[overlaps.fraction > INTERSECT], minlength=len(cell_ids))
    central = np.isin(nucleus_ids, _central(patch.nuclei, patch.overlap // 2))
    alone = np.zeros(len(nucleus_ids), bool)
    alone[overlaps.nucleus[(overlaps.fraction >= CONTAIN) & (contained[overlaps.cell] == 1)]] = True
    part.add("nuclei", part.of(patch.nuclei, nucleus_ids[central]))
    part.add("nuclei_in_own_cell", part.of(patch.nuclei, nucleus_ids[central & alone]))
    core = _core(patch)
    in_nuclei = patch.nuclei[core] > 0
    part.add("nucleus_pixels", part.square[core][in_nuclei])
    part.add("transcripts_in_nuclei", part.square[core][in_nuclei], patch.counts[core][in_nuclei])
    chosen = np.isin(cell_ids, mine)
    part.add("inconsistent", part.of(predicted, cell_ids[chosen & (((intersected > 0) & (contained == 0)) | (contained > 1))]))
    bare = cell_ids[chosen & (intersected == 0)]
    squares = part.of(predicted, bare)
    part.add("without_nucleus", squares)
    tally.reference += np.bincount(patch.nuclei.ravel(), weights=patch.counts.ravel())[nucleus_ids].astype(int).tolist()
    return squares, np.bincount(predicted.ravel(), weights=patch.counts.ravel())[bare]


def _central(labels: np.ndarray, margin: int) -> np.ndarray:
    """Labels whose centroid lies in the core of the window, half-open."""
    ids = np.unique(labels[labels > 0])
    centres = _centres(labels, ids) + 0.5
    return ids[((centres >= margin) & (centres < np.asarray(labels.shape) - margin)).all(1)]


def nuclei_known(holdout: Sequence[PatchRef]) -> bool:
    """Whether every held-out patch says which labels are stand-in nuclei and where the nuclei are; else the figures are coarser."""
    patches = (Patch.read(ref.path) for ref in holdout)
    return all(patch.stand_ins is not None and patch.nuclei is not None for patch in patches)
