"""The networks that painted tissue can teach: what differs between them in training and judging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istseg.comparators import genesegnet
from istseg.errors import InputError
from istseg.grid import DEFAULT_WORKING_UM
from istseg.network import weights
from istseg.network.card import ModelCard
from istseg.network.dynamics import labels_from_field
from istseg.network.inference import Predictor
from istseg.network.loss import Loss, LossSums, loss_sums
from istseg.pretrain.lessons import Targets, flows

MIN_AREA_PX = 12.8 / DEFAULT_WORKING_UM**2
"""`segment`'s default of 12.8 µm²: what is judged is what users get."""
LOGIT_THRESHOLDS = (-1.0, -0.5, 0.0)
MIN_FLOWS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
CENTRE_THRESHOLDS = (0.03, 0.06, 0.1, 0.15, 0.2)

Decoded = Iterator[tuple[float, np.ndarray]]
Start = tuple[nn.Module, ModelCard, dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A network.

    Attributes
    ----------
    start
        (base or `scratch`, its sha256, seed) → model and card to go on from, and facts for the new card.
    targets
        Crops → (B, C, S, S) what the network should give beside the cell logit; the loss takes it as its second argument.
    loss
        See `network.loss.loss_sums`.
    predictor
        Class, as `network.inference.Predictor`.
    cells
        (field, card, device) → (S, S) int32 cells.
    strictness
        Entry of the card that is chosen beside the logit threshold,
    tried
        and (field, logit threshold, device) → its values with the cells that each gives.
    """

    start: Callable[[str, str | None, int], Start]
    targets: Targets
    loss: Loss
    predictor: type[Predictor]
    cells: Callable[[Tensor, Any, torch.device], np.ndarray]
    strictness: str
    tried: Callable[[Tensor, float, torch.device], Decoded]


def _start_istseg(base: str, sha256: str | None, seed: int, backbone: str = "cnn") -> Start:
    return *(weights.new(seed, backbone) if base == weights.SCRATCH else weights.load(base, sha256)), {}


def _start_genesegnet(base: str, sha256: str | None, seed: int) -> Start:
    """From scratch, from a GeneSegNet, or with the layers that a base of the RNA2seg network has in common."""
    model, card = genesegnet.new(seed)
    if base == weights.SCRATCH:
        return model, card, {}
    try:
        model, card = genesegnet.load(base, sha256)
    except InputError:
        name, digest, shared = genesegnet.warm_start(model, base, sha256)
        return model, replace(card, parent=name, parent_sha256=digest), {"tensors_of_parent": shared}
    if card.gene_map != "density":
        raise InputError(f"--base: {card.name} are published weights of GeneSegNet, made for another gene map; give ones that istseg made.")
    return model, card, {}


def _flows(field: Tensor, logit_threshold: float, min_flow: float, device: torch.device) -> np.ndarray:
    return labels_from_field(field, logit_threshold, min_flow=min_flow, min_area_wpx=MIN_AREA_PX, device=device)


def _flows_tried(field: Tensor, logit_threshold: float, device: torch.device) -> Decoded:
    cells = _flows(field, logit_threshold, 0.0, device)
    length = field[:2].square().sum(0).sqrt().cpu().numpy()
    strength = np.bincount(cells.ravel(), weights=length.ravel()) / np.maximum(np.bincount(cells.ravel()), 1)
    for least in MIN_FLOWS:
        yield least, np.where((strength >= least)[cells], cells, 0)


def _centres(field: Tensor, logit_threshold: float, centre_threshold: float) -> np.ndarray:
    return genesegnet.labels_from_centres(field.cpu().numpy(), logit_threshold, centre_threshold, MIN_AREA_PX)


def genesegnet_loss(output: Tensor, maps: Tensor, cell: Tensor, teach: Tensor) -> LossSums:
    """As published: squared errors of offset and centre map and cross entropy of the cells, summed; here in the units of the raw outputs.

    Parameters
    ----------
    output
        (B, 4, H, W): offset y, offset x, cell logit, centre map.
    maps
        (B, 3, H, W): offset y, offset x, centre map.
    cell, teach
        (B, H, W) bool: pixel of a cell; pixel that teaches.
    """
    offset = ((output[:, :2] - maps[:, :2]) / genesegnet.OFFSET_UNIT_PX).square().mean(1)
    centre = ((output[:, 3] - maps[:, 2]) / genesegnet.CENTRE_GAIN).square()
    entropy = F.binary_cross_entropy_with_logits(output[:, 2], cell.float(), reduction="none")
    zero = torch.zeros((), device=output.device)
    return LossSums(torch.where(teach, offset + centre, zero).sum(), torch.where(teach, entropy, zero).sum(), teach.sum().float())


KINDS = {
    "istseg": Kind(
        _start_istseg,
        flows,
        loss_sums,
        Predictor,
        lambda field, card, device: _flows(field, card.logit_threshold, card.min_flow, device),
        "min_flow",
        _flows_tried,
    ),
    "genesegnet": Kind(
        _start_genesegnet,
        lambda crops: genesegnet.offset_targets(crops.labels),
        genesegnet_loss,
        genesegnet.GeneSegNetPredictor,
        lambda field, card, _: _centres(field, card.logit_threshold, card.centre_threshold),
        "centre_threshold",
        lambda field, threshold, _: ((least, _centres(field, threshold, least)) for least in CENTRE_THRESHOLDS),
    ),
}
"""By the option `--network`."""
