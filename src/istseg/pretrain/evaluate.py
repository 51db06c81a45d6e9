"""How well a model finds the cells of painted tissue that it never saw, and which filter suits it.

The painter is the one that the base model is trained on, with other seeds: the figures say whether the network learnt its task, not how it does on real tissue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from istseg.grid import DEFAULT_WORKING_UM
from istseg.network.card import ModelCard
from istseg.network.dynamics import labels_from_field
from istseg.network.inference import Predictor
from istseg.network.model import Rna2Seg
from istseg.pretrain.lessons import Crops, rna_image, seen
from istseg.pretrain.paint import CYTOPLASM, RANDOM, RING, Controls, Scene, paint
from istseg.pretrain.randomness import Draw
from istseg.pretrain.tissue import MAX_CELLS, NAMES, Tissues, make_tissues
from istseg.progress import track
from istseg.qc.matching import match_labels, precision

HELD_OUT_SEED, FILTER_SEED = 99_991, 88_801
"""Seeds that no training uses: of the held-out pictures, and of those on which the filter is chosen."""
MIN_AREA_PX = 12.8 / DEFAULT_WORKING_UM**2
"""`segment`'s default of 12.8 µm²: what is judged is what users get."""
IOUS = (0.5, 0.75)
MIN_FLOWS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LOGIT_THRESHOLDS = (-1.0, -0.5, 0.0)
BROKEN_CELLS = 0.3


@dataclass(frozen=True)
class Condition:
    """What a model is shown of the held-out tissue.

    Attributes
    ----------
    membranes
        Number of membrane stains.
    controls
        Of the painter.
    rna_kept
        Share of the transcripts that is kept.
    gone
        Share of the contour that is missing in all ring stains of 30 % of the cells.
    """

    membranes: int
    controls: Controls = RANDOM
    rna_kept: float = 1.0
    gone: float = 0.0


_CLEAN = Controls(clean=True, kinds=(RING, CYTOPLASM), transcripts_per_um2=1.0)
_RING = replace(_CLEAN, kinds=(RING,))
CONDITIONS: dict[str, Condition] = (
    {f"random stains, {k} beside DAPI": Condition(k) for k in (0, 1, 2, 3, 5)}
    | {"random stains, 2 beside DAPI, no RNA": Condition(2, rna_kept=0.0)}
    | {"clean ring and cytoplasm": Condition(2, _CLEAN)}
    | {f"clean ring and cytoplasm, RNA kept {share:.0%}": Condition(2, _CLEAN, rna_kept=share) for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.0)}
    | {"DAPI and RNA": Condition(0, _CLEAN), "DAPI alone": Condition(0, _CLEAN, rna_kept=0.0)}
    | {f"clean ring, {share:.0%} of the contour of 30 % of the cells gone": Condition(1, _RING, gone=share) for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)}
)


@dataclass(frozen=True)
class Picture:
    """A held-out picture: `inputs` (1, C, S, S) for the network; `truth` (S, S) cells that can be seen, `unseen` (S, S) bool the others, too small ones
    included.
    """

    inputs: Tensor
    truth: np.ndarray
    unseen: np.ndarray


def evaluate(
    model: Rna2Seg, card: ModelCard, device: torch.device, per_family: int = 1, side: int = 384, conditions: dict[str, Condition] | None = None
) -> list[dict[str, Any]]:
    """Figures for each condition.

    Parameters
    ----------
    per_family
        Pictures of each family of tissue.
    side
        Of a picture, working pixels, a multiple of 32.
    conditions
        Default: `CONDITIONS`.

    Returns
    -------
    One record per condition: `condition`, `cells`, `ap@0.5`, `ap@0.75`, `mean_best_iou`, `found@0.5` (share of true cells), `false@0.5` (share of predicted
    cells that match none). Cells that neither a visible nucleus nor a stain shows, and cells below
    segment's smallest area, count neither as missed nor as found.
    """
    predictor = Predictor(model, card, device)
    tissues = _tissues(HELD_OUT_SEED, device, per_family, side)
    records = []
    for name, condition in track(list((conditions or CONDITIONS).items()), "held-out tissue"):
        tallies = []
        for picture in pictures(tissues, condition, card.rna_form, HELD_OUT_SEED, device):
            cells = _cells(predictor.predict(picture.inputs)[0], card.logit_threshold, card.min_flow, predictor.device)
            tallies.append(tally(picture, cells))
        records.append({"condition": name} | figures(tallies))
    return records


def choose_filter(model: Rna2Seg, card: ModelCard, device: torch.device, per_family: int = 1, side: int = 384) -> tuple[float, float, list[dict[str, float]]]:
    """Logit threshold and least mean flow with the best AP@0.5 over random stains, on pictures that are used for nothing else.

    Returns
    -------
    (logit_threshold, min_flow, table) with one record `logit_threshold`, `min_flow`, `ap@0.5`, `false@0.5` per pair that was tried.
    """
    predictor = Predictor(model, card, device)
    tissues = _tissues(FILTER_SEED, device, per_family, side)
    shown = [CONDITIONS[f"random stains, {k} beside DAPI"] for k in (0, 1, 2, 3)]
    tallies: dict[tuple[float, float], list[dict[str, Any]]] = {(t, f): [] for t in LOGIT_THRESHOLDS for f in MIN_FLOWS}
    for condition in track(shown, "filter"):
        for picture in pictures(tissues, condition, card.rna_form, FILTER_SEED, device):
            field = predictor.predict(picture.inputs)[0]
            for threshold in LOGIT_THRESHOLDS:
                cells = _cells(field, threshold, 0.0, predictor.device)
                strength = _mean_flow(field, cells)
                for min_flow in MIN_FLOWS:
                    tallies[threshold, min_flow].append(tally(picture, np.where((strength >= min_flow)[cells], cells, 0)))
    table = [{"logit_threshold": t, "min_flow": f} | figures(of_pair) for (t, f), of_pair in tallies.items()]
    best = max(table, key=lambda record: record["ap@0.5"])
    return best["logit_threshold"], best["min_flow"], table


def pictures(tissues: Tissues, condition: Condition, rna_form: str, seed: int, device: torch.device) -> Iterator[Picture]:
    """Paint each tissue once; the same seed gives the same light and the same transcripts in every condition with equal stains."""
    for i in range(len(tissues)):
        draw = Draw(seed + 1 + i, device)
        labels, nuclei = tissues.labels[i : i + 1].long(), tissues.nuclei[i : i + 1] > 0
        gone = draw.chance(BROKEN_CELLS, 1, MAX_CELLS + 1) * condition.gone, draw.unit(1, MAX_CELLS + 1)
        controls = replace(condition.controls, gone=gone) if condition.gone else condition.controls
        stains, counts = paint(draw, Scene(labels, nuclei), condition.membranes, controls)
        counts = _thinned(counts, condition.rna_kept, Draw(seed, device))
        shown = seen(Crops(labels, nuclei, torch.empty(0)), stains)[0] & _large_enough(labels[0])
        truth = (labels[0] * shown).cpu().numpy().astype(np.int32)
        yield Picture(torch.cat((stains, rna_image(counts, rna_form)), 1), truth, ((labels[0] > 0) & ~shown).cpu().numpy())


def tally(picture: Picture, cells: np.ndarray) -> dict[str, Any]:
    """Matches of predicted with true cells of one picture; predicted cells that lie mostly in unseen ones are left out."""
    area = np.bincount(cells.ravel())
    unseen = np.bincount(cells.ravel(), weights=picture.unseen.ravel()) > area / 2
    overlap = match_labels(picture.truth, np.where(unseen[cells], 0, cells))
    matched = {t: int((overlap.matches(t) >= 0).sum()) for t in IOUS}
    return {"true": len(overlap.truth_ids), "predicted": len(overlap.predicted_ids), "matched": matched, "best": overlap.best_iou()}


def figures(tallies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over pictures; see `evaluate`."""
    true, predicted = (sum(t[name] for t in tallies) for name in ("true", "predicted"))
    matched = {iou: sum(t["matched"][iou] for t in tallies) for iou in IOUS}
    record: dict[str, Any] = {"cells": true}
    for iou, n in matched.items():
        record[f"ap@{iou:g}"] = precision(n, predicted - n, true - n) or 0.0
    record["mean_best_iou"] = float(np.concatenate([t["best"] for t in tallies]).mean()) if true else 0.0
    record["found@0.5"] = matched[0.5] / max(true, 1)
    record["false@0.5"] = 1 - matched[0.5] / max(predicted, 1) if predicted else 0.0
    return record


def _tissues(seed: int, device: torch.device, per_family: int, side: int) -> Tissues:
    families = torch.arange(len(NAMES), device=device).repeat_interleave(per_family)
    draw = Draw(seed, device)
    return Tissues.join([make_tissues(draw, len(part), side, part) for part in families.split(4)])


def _cells(field: Tensor, logit_threshold: float, min_flow: float, device: torch.device) -> np.ndarray:
    return labels_from_field(field, logit_threshold, min_flow=min_flow, min_area_wpx=MIN_AREA_PX, device=device)


def _mean_flow(field: Tensor, cells: np.ndarray) -> np.ndarray:
    """Mean length of the flow of each label, by label."""
    length = field[:2].square().sum(0).sqrt().cpu().numpy()
    return np.bincount(cells.ravel(), weights=length.ravel()) / np.maximum(np.bincount(cells.ravel()), 1)


def _large_enough(labels: Tensor) -> Tensor:
    """(S, S) bool: cells that are not smaller than the smallest that is kept (many at the picture's edge are cut)."""
    return (torch.bincount(labels.flatten()) >= MIN_AREA_PX)[labels]


def _thinned(counts: Tensor, kept: float, draw: Draw) -> Tensor:
    """Each transcript stays with a probability."""
    if kept >= 1:
        return counts
    return torch.binomial(counts, torch.full_like(counts, kept), generator=draw.generator)
