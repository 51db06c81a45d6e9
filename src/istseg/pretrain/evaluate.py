"""How well a model finds the cells of painted tissue that it never saw, and which filter suits it.

The painter is the one that the base model is trained on, with other seeds: the figures say whether the network learnt its task, not how it does on real tissue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from istseg.network.card import ModelCard
from istseg.network.weights import Card
from istseg.pretrain.kinds import KINDS, LOGIT_THRESHOLDS, MIN_AREA_PX, Kind
from istseg.pretrain.lessons import Crops, rna_image, seen
from istseg.pretrain.paint import CYTOPLASM, RANDOM, RING, Controls, Scene, paint
from istseg.pretrain.randomness import Draw
from istseg.pretrain.tissue import MAX_CELLS, NAMES, Tissues, make_tissues
from istseg.progress import track
from istseg.qc.matching import match_labels, precision

HELD_OUT_SEED, FILTER_SEED = 99_991, 88_801
"""Seeds that no training uses: of the held-out pictures, and of those on which the filter is chosen."""
IOUS = (0.5, 0.75)
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
    | {f"clean ring, granules {light:g} as bright": Condition(1, replace(_RING, own_light=light)) for light in (0.3, 1.0)}
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
    model: nn.Module,
    card: ModelCard,
    device: torch.device,
    per_family: int = 1,
    side: int = 384,
    conditions: dict[str, Condition] | None = None,
    kind: Kind = KINDS["istseg"],
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
    kind
        Of the network.

    Returns
    -------
    One record per condition: `condition`, `cells`, `ap@0.5`, `ap@0.75`, `mean_best_iou`, `found@0.5` (share of true cells), `false@0.5` (share of predicted
    cells that match none). Cells that neither a visible nucleus nor a stain shows, and cells below
    segment's smallest area, count neither as missed nor as found.
    """
    predictor = kind.predictor(model, card, device)
    tissues = _tissues(HELD_OUT_SEED, device, per_family, side)
    records = []
    for name, condition in track(list((conditions or CONDITIONS).items()), "held-out tissue"):
        tallies = []
        for picture in pictures(tissues, condition, card.rna_form, HELD_OUT_SEED, device):
            tallies.append(tally(picture, kind.cells(predictor.predict(picture.inputs)[0], card, predictor.device)))
        records.append({"condition": name} | figures(tallies))
    return records


def choose_filter(
    model: nn.Module, card: Card, device: torch.device, per_family: int = 1, side: int = 384, kind: Kind = KINDS["istseg"]
) -> tuple[Card, list[dict[str, float]]]:
    """Logit threshold and strictness (`Kind.strictness`: least mean flow) with the best AP@0.5 over random stains, on pictures that are used for nothing else.

    Returns
    -------
    The card with both, and a table with one record `logit_threshold`, `min_flow` (or the name of the other strictness), `ap@0.5`, `false@0.5` per pair that
    was tried.
    """
    predictor = kind.predictor(model, card, device)
    tissues = _tissues(FILTER_SEED, device, per_family, side)
    shown = [CONDITIONS[f"random stains, {k} beside DAPI"] for k in (0, 1, 2, 3)]
    tallies: dict[tuple[float, float], list[dict[str, Any]]] = defaultdict(list)
    for condition in track(shown, "filter"):
        for picture in pictures(tissues, condition, card.rna_form, FILTER_SEED, device):
            field = predictor.predict(picture.inputs)[0]
            for threshold in LOGIT_THRESHOLDS:
                for strictness, cells in kind.tried(field, threshold, predictor.device):
                    tallies[threshold, strictness].append(tally(picture, cells))
    table = [{"logit_threshold": t, kind.strictness: f} | figures(of_pair) for (t, f), of_pair in tallies.items()]
    best = max(table, key=lambda record: record["ap@0.5"])
    return replace(card, **{name: best[name] for name in ("logit_threshold", kind.strictness)}), table


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


def _large_enough(labels: Tensor) -> Tensor:
    """(S, S) bool: cells that are not smaller than the smallest that is kept (many at the picture's edge are cut)."""
    return (torch.bincount(labels.flatten()) >= MIN_AREA_PX)[labels]


def _thinned(counts: Tensor, kept: float, draw: Draw) -> Tensor:
    """Each transcript stays with a probability."""
    if kept >= 1:
        return counts
    return torch.binomial(counts, torch.full_like(counts, kept), generator=draw.generator)
