"""Comparator `genesegnet`: GeneSegNet (Wang et al., Genome Biology 2023, 24:235), which sees a stain and a map of the transcripts.

Our own implementation from the publication: Cellpose's residual U-Net on the concatenated pictures gives for every pixel the offset from its cell's centre, a
cell logit and how near a centre is. Pixels above the logit's threshold go to the centre nearest to where their offset points.

The published network has two pictures, nucleus stain and transcripts. Ours has a third between them, the maximum over all normalised membrane stains (0 where
there is none), because the architecture takes a fixed number. Without membranes it is the published one with a plane of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter
from scipy.spatial import cKDTree
from torch import Tensor

from istseg.artifacts.tiles import Tile
from istseg.comparators import Settings, Surroundings
from istseg.errors import InputError, as_written
from istseg.grid import DEFAULT_WORKING_UM
from istseg.network import weights
from istseg.network.card import ModelCard
from istseg.network.dynamics import tidy
from istseg.network.field import blend_windows
from istseg.network.inference import Predictor, choose_precision, on_host, open_device
from istseg.network.unet import UNet

ARCHITECTURE = ROLE = "genesegnet"
GENE_MAPS = ("density", "location")
"""What the network sees of the transcripts. `density`: our RNA image. `location`: the published one, a Gaussian at every transcript, the highest counts."""
LOCATION_SIGMA_PX, LOCATION_LEAST = 7.0, 0.01
"""Of the published gene location map, and the value below which it is 0."""
CENTRE_SIGMA_PX = 3.0
"""Of the Gaussian at each centre in the centre map, and of the blur before its peaks are taken (both as published)."""
OFFSET_UNIT_PX, CENTRE_GAIN = 4.0, 0.2
"""What our network's raw outputs are multiplied by: an output layer then gives values of about 1 from the start. Published: 1 and 1."""
REACH_PX = 64.0
"""A pixel whose offset points further than this (16 µm) from every centre belongs to no cell. Published: no limit, so that far pixels join any cell."""
_TIES = 4
MADE_BY = "`istseg pretrain --network genesegnet` makes them from painted tissue"


@dataclass
class GeneSegNetCard(ModelCard):
    """Facts about a GeneSegNet.

    Attributes
    ----------
    architecture
        `genesegnet`.
    membranes
        The network has the picture of the membrane stains.
    gene_map
        One of `GENE_MAPS`.
    offset_unit_px, centre_gain
        Factors on the raw outputs.
    centre_threshold
        Least value of a peak of the blurred centre map.
    """

    architecture: str = ""
    membranes: bool = True
    gene_map: str = "density"
    offset_unit_px: float = OFFSET_UNIT_PX
    centre_gain: float = CENTRE_GAIN
    centre_threshold: float = 0.1
    logit_threshold: float = 0.0

    def problems(self, where: str) -> list[str]:
        """What this version cannot honour, one sentence each."""
        if self.architecture != ARCHITECTURE:
            what = self.architecture or "the RNA2seg network"
            return [f"{where}: is a model of {what}, not of GeneSegNet; give weights that `istseg pretrain --network genesegnet` made."]
        found = super().problems(where)
        if self.gene_map not in GENE_MAPS:
            found.append(f"{where}: the model has the gene map {self.gene_map!r}, this version knows {list(GENE_MAPS)}; update istseg or use another model.")
        for name in ("offset_unit_px", "centre_gain", "centre_threshold"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or value <= 0:
                found.append(f"{where}: {name} {value!r} of the model card is not a number above 0.")
        return found


class GeneSegNet(UNet):
    """The network; parameters and their names are the published package's, but for the picture of the membranes.

    Parameters
    ----------
    membranes, offset_unit_px, centre_gain
        See `GeneSegNetCard`.
    """

    flow_scale = 1.0

    def __init__(self, membranes: bool = True, offset_unit_px: float = OFFSET_UNIT_PX, centre_gain: float = CENTRE_GAIN):
        super().__init__(3 if membranes else 2, 4)
        self.membranes = membranes
        self.register_buffer("gains", torch.tensor([offset_unit_px, offset_unit_px, 1.0, centre_gain])[:, None, None], persistent=False)

    def forward(self, stains: Tensor, rna: Tensor) -> Tensor:
        """Predict.

        Parameters
        ----------
        stains
            (B, 1 + K, H, W), nucleus stain first, then K ≥ 0 membrane stains in any order, normalised; H and W multiples of 8.
        rna
            (B, 1, H, W) map of the transcripts.

        Returns
        -------
        (B, 4, H, W) float32: offset y, offset x (pixel minus centre, working pixels), cell logit, centre map.
        """
        planes = [stains[:, :1], rna.to(stains.dtype)]
        if self.membranes:
            planes.insert(1, stains[:, 1:].amax(1, keepdim=True) if stains.shape[1] > 1 else torch.zeros_like(planes[0]))
        return super().forward(torch.cat(planes, 1)).float() * self.gains


def new(seed: int) -> tuple[GeneSegNet, GeneSegNetCard]:
    """Untrained network (evaluation mode) with seeded random weights, and a card to fill in. The global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GeneSegNet()
    return model.eval(), GeneSegNetCard(name="scratch", architecture=ARCHITECTURE, training={"init_seed": seed})


def load(path: str | Path, sha256: str | None = None) -> tuple[GeneSegNet, GeneSegNetCard]:
    """Read a model.

    Parameters
    ----------
    path
        `.safetensors` of ours, or a state dict of the package GeneSegNet (its files have no suffix), which gets the card `published_card`.
    sha256
        Digest that the file must have.

    Returns
    -------
    The network in evaluation mode and its card with the file's sha256.

    Raises
    ------
    InputError
        If the file is missing, has another digest, cannot be read, is no GeneSegNet, or its tensors are not those of the network.
    """
    path = Path(path)
    digest = weights.checked_digest(path, sha256)
    if path.suffix == ".safetensors":
        tensors, card = weights.read_safetensors(path, GeneSegNetCard)
    else:
        tensors, card = weights.read_pt(path, "GeneSegNet"), published_card(path.name)
    model = GeneSegNet(card.membranes, card.offset_unit_px, card.centre_gain)
    return weights.fill(model, tensors, path, "GeneSegNet" if card.membranes else "the published GeneSegNet (2 pictures)"), replace(card, sha256=digest)


def published_card(name: str) -> GeneSegNetCard:
    """Card of weights of the package GeneSegNet, which carry none."""
    return GeneSegNetCard(
        name=name,
        architecture=ARCHITECTURE,
        membranes=False,
        gene_map="location",
        offset_unit_px=1.0,
        centre_gain=1.0,
        notes=[
            "weights of the package GeneSegNet: they carry no card, its defaults are assumed",
            "the package enlarges or shrinks pictures until the mean cell is 34 pixels across; here it sees working pixels as they are",
        ],
    )


def warm_start(model: GeneSegNet, base: str | Path, sha256: str | None = None) -> tuple[str, str, int]:
    """Copy the layers of equal name and shape from a base model with the backbone `cnn`; gives its name, its sha256 and the number of tensors.

    Raises
    ------
    InputError
        If the base cannot be read.
    """
    donor, card = weights.load(base, sha256)
    own, given = model.state_dict(), donor.model.state_dict()
    same = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(own | same)
    return card.name, card.sha256, len(same)


def offset_targets(labels: Tensor) -> Tensor:
    """What the network should give: offsets and centre map.

    The centre is the cell's pixel nearest its centroid (published: nearest the median of its pixels).

    Parameters
    ----------
    labels
        (B, H, W) int64, 0 is background. Any device.

    Returns
    -------
    (B, 3, H, W) float32: offset y, offset x (pixel minus centre), centre map; 0 outside cells.
    """
    n, height, width = labels.shape
    flat = labels.flatten(1)
    slots = int(flat.max()) + 1
    place = torch.arange(height * width, device=labels.device).expand(n, -1)
    y, x = (place // width).float(), (place % width).float()

    def per_cell(values: Tensor) -> Tensor:
        return torch.zeros(n, slots, device=labels.device).scatter_add_(1, flat, values)

    area = per_cell(torch.ones_like(y)).clamp_min(1)
    squared = sum((axis - (per_cell(axis) / area).gather(1, flat)).square() for axis in (y, x))
    least = torch.full((n, slots), torch.inf, device=labels.device).scatter_reduce(1, flat, squared, "amin")
    candidates = torch.where(squared == least.gather(1, flat), place, height * width)
    centre = torch.full((n, slots), height * width, device=labels.device).scatter_reduce(1, flat, candidates, "amin").gather(1, flat)
    offset = torch.stack((y - centre // width, x - centre % width), 1)
    near = torch.exp(-offset.square().sum(1, keepdim=True) / (2 * CENTRE_SIGMA_PX**2))
    return (torch.cat((offset, near), 1) * (flat > 0)[:, None]).unflatten(2, (height, width))


def location_map(counts: np.ndarray) -> np.ndarray:
    """The published gene location map: exp(−d²/2σ²) of the distance d to the nearest transcript, below 0.01 nothing; (H, W) → (H, W) float32."""
    if not counts.any():
        return np.zeros(counts.shape, np.float32)
    distance = distance_transform_edt(counts == 0)
    value = np.exp(-(distance**2) / (2 * LOCATION_SIGMA_PX**2))
    return np.where(value < LOCATION_LEAST, 0, value).astype(np.float32)


def labels_from_centres(field: np.ndarray, logit_threshold: float, centre_threshold: float, min_area_wpx: float) -> np.ndarray:
    """Cells of a field.

    A cell depends on the field within `REACH_PX` of where its pixels' offsets point only, and ties go to the upper left, so that every tile that sees a cell
    and its surroundings finds the same.

    Parameters
    ----------
    field
        (4, H, W) float32: offset y, offset x, logit, centre map.
    logit_threshold, centre_threshold
        See `GeneSegNetCard`.
    min_area_wpx
        Smallest area in pixels.

    Returns
    -------
    (H, W) int32 labels 1…n. Each label is one 4-connected part without holes.
    """
    labels = np.zeros(field.shape[1:], np.int32)
    centres = _peaks(field[3], centre_threshold)
    pixels = np.argwhere(field[2] > logit_threshold)
    if not len(centres) or not len(pixels):
        return labels
    y, x = pixels.T
    votes = pixels - field[:2, y, x].T.astype(np.float64)
    distance, nearest = cKDTree(centres).query(votes, k=_TIES, distance_upper_bound=REACH_PX)
    # Precision of 8 bits makes equal distances common; the tree takes any of them.
    nearest = np.where(distance == distance[:, :1], nearest, len(centres)).min(1)
    labels[y, x] = np.where(np.isfinite(distance[:, 0]), nearest + 1, 0)
    return tidy(torch.from_numpy(labels), min_area_wpx).numpy()


def _peaks(centre: np.ndarray, threshold: float) -> np.ndarray:
    """(n, 2) rows and columns of the peaks of the blurred centre map, by rows; of equal neighbours the first."""
    heat = gaussian_filter(centre.astype(np.float64), CENTRE_SIGMA_PX)
    before = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    highest = (heat > maximum_filter(heat, footprint=before, mode="constant")) & (heat >= maximum_filter(heat, footprint=before[::-1, ::-1], mode="constant"))
    return np.argwhere(highest & (heat > threshold))


class GeneSegNetPredictor(Predictor):
    """`Predictor` with the gene map of the card."""

    card: GeneSegNetCard

    def rna(self, counts: np.ndarray) -> np.ndarray:
        """(h, w) float32 gene map of the transcript counts of a window."""
        return location_map(counts) if self.card.gene_map == "location" else super().rna(counts)


class GeneSegNetLabeller:
    """Labels tiles; the same interface as a teacher (`teachers.base.Teacher`).

    Parameters
    ----------
    path, sha256
        Weights (see `load`) and the digest that they must have.
    membranes
        Show the network the membrane stains; else the nucleus stain alone.
    min_cell_area_um2
        Smallest cell, µm².
    device, precision
        See `network.inference`.

    Raises
    ------
    InputError
        If the weights cannot be used, or have no picture of the membranes and `membranes` is asked for.
    DeviceError
        If the device is not there.
    """

    name = ARCHITECTURE

    def __init__(self, path: Path, sha256: str | None, membranes: bool, min_cell_area_um2: float, device: str = "cpu", precision: str = "auto"):
        place = open_device(device)
        model, self.card = load(path, sha256)
        self.membranes = membranes and self.card.membranes
        self.min_cell_area_um2 = min_cell_area_um2
        self._predictor = GeneSegNetPredictor(model, self.card, place, choose_precision(precision, place))

    @property
    def method(self) -> dict[str, Any]:
        """How the labels are made."""
        card = self.card
        thresholds = {"logit_threshold": card.logit_threshold, "centre_threshold": card.centre_threshold, "min_cell_area_um2": self.min_cell_area_um2}
        facts = {"comparator": self.name, "model": card.name, "model_sha256": card.sha256, "membranes": self.membranes, "gene_map": card.gene_map}
        return facts | {"parameters": thresholds, **self._predictor.method}

    def label(self, tile: Tile) -> dict[str, np.ndarray]:
        """Layer `cells`, int32 (y, x) over the tile's region."""
        self.card.check_tile(tile.working_um, str(tile.folder))
        if not tile.windows:
            return {"cells": np.zeros(tile.shape, np.int32)}
        field = on_host(blend_windows(tile, self._predict, inputs=self._predictor.inputs, channels=4))
        area = self.min_cell_area_um2 / tile.working_um**2
        return {"cells": labels_from_centres(field, self.card.logit_threshold, self.card.centre_threshold, area)}

    def _predict(self, batch: Tensor) -> Tensor:
        return self._predictor.predict(batch if self.membranes else batch[:, [0, -1]])


def make(settings: Settings) -> GeneSegNetLabeller:
    """The network with the weights of the run.

    Raises
    ------
    InputError
        If weights are not given or cannot be used.
    """
    path = settings.weights.get(ROLE)
    if path is None:
        raise InputError(f"the comparator `genesegnet` needs weights; give them with --genesegnet-weights ({MADE_BY}).")
    return GeneSegNetLabeller(path, settings.sha256.get(ROLE), settings.membranes, settings.sizes.min_cell_area_um2, settings.device, settings.precision)


def problems(surroundings: Surroundings) -> list[str]:
    """Weights that are missing, have another digest, are no GeneSegNet or were made for another resolution."""
    path, params = surroundings.weights.get(ROLE), surroundings.params
    if path is None:
        return [f"needs --genesegnet_weights, a file with weights of GeneSegNet ({MADE_BY})."]
    try:
        _, card = load(path, params.get("genesegnet_sha256"))
        card.check_tile(float(params.get("working_um") or DEFAULT_WORKING_UM), "--working_um")
    except InputError as error:
        return [as_written(text, path, params.get("genesegnet_weights")) for text in error.problems]
    return []
