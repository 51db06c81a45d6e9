"""segment: tile + model → `<tile_id>/{labels.npz, objects.parquet, meta.json}` with the layer `cells`. The network's cells of each tile."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from istseg.artifacts.tiles import Tile
from istseg.cpus import given_cpus
from istseg.errors import InputError
from istseg.finishing import finisher
from istseg.network import weights
from istseg.network.dynamics import labels_from_field, object_means
from istseg.network.field import blend_windows
from istseg.network.inference import Predictor, choose_precision, open_device
from istseg.progress import track

log = logging.getLogger("istseg")

READERS = {"cpu": 1, "cuda": 8}
"""Windows that are read together at most: a GPU is faster than a CPU that reads for it."""


def run(
    *,
    tiles: list[Path],
    model: Path,
    out: Path,
    model_sha256: str | None,
    logit_threshold: float | None,
    min_flow: float | None,
    flow_error: float,
    min_cell_area_um2: float,
    flow_steps: int,
    batch_size: int,
    device: str,
    precision: str,
) -> None:
    """Segment tiles.

    Parameters
    ----------
    tiles
        Tile folders.
    model
        Weights; their card gives the defaults of `logit_threshold` and `min_flow`.
    model_sha256
        Digest that they must have; None for any.
    out
        A folder per tile is written below it.
    logit_threshold, min_flow, flow_error, flow_steps
        See `network.dynamics.labels_from_field`.
    min_cell_area_um2
        Smallest cell, µm².
    batch_size
        Windows per step of the network.
    device
        `cpu` or `cuda`.
    precision
        Key of `network.inference.PRECISIONS`. Tiles of one sample must be computed in the same one (`merge` checks it).

    Raises
    ------
    InputError
        If weights, tiles or precision cannot be used (all tiles are checked before any work).
    DeviceError
        If the device is not there.
    """
    place = open_device(device)
    network, card = weights.load(model, model_sha256)
    read = _read_all(tiles, card)
    predictor = Predictor(network, card, place, choose_precision(precision, place))
    parameters = filter_of(card, logit_threshold, min_flow, flow_error, min_cell_area_um2, flow_steps)
    method = {
        "model": card.name,
        "model_sha256": card.sha256,
        "rna_form": card.rna_form,
        "rna_input": card.rna_input,
        "parameters": parameters,
        "batch_size": batch_size,
        **predictor.method,
    }
    with finisher(Path(out), apart=place.type == "cuda") as finishing:
        for tile in track(read, "segment"):
            begin = time.perf_counter()
            labels, field = predict_tile(tile, predictor, parameters, batch_size)
            means = None if field is None else _means(labels, field)
            record = method | {"windows": len(tile.windows), "ring_windows": len(tile.ring_windows)}
            finishing.add(tile, labels, means, record, time.perf_counter() - begin)


def filter_of(
    card: weights.ModelCard,
    logit_threshold: float | None = None,
    min_flow: float | None = None,
    flow_error: float = 0.9,
    min_cell_area_um2: float = 12.8,
    flow_steps: int = 60,
) -> dict[str, float]:
    """Parameters of `predict_tile`, the model card's where they are None; the other defaults are the command's."""
    return {
        "logit_threshold": card.logit_threshold if logit_threshold is None else logit_threshold,
        "min_flow": card.min_flow if min_flow is None else min_flow,
        "flow_error": flow_error,
        "min_cell_area_um2": min_cell_area_um2,
        "flow_steps": flow_steps,
    }


def predict_tile(tile: Tile, predictor: Predictor, parameters: dict[str, float], batch_size: int) -> tuple[np.ndarray, Tensor | None]:
    """Cells of one tile.

    Returns
    -------
    int32 (h, w) labels over the region, and its field (3, h, w) on the device, None for a tile without windows, which has no cells.
    """
    if not tile.windows:
        return np.zeros(tile.shape, np.int32), None
    field = blend_windows(
        tile, predictor.predict, batch_size=batch_size, inputs=predictor.inputs, fill=not predictor.one_by_one,
        readers=min(READERS[predictor.device.type], given_cpus()),
    )  # fmt: skip
    labels = labels_from_field(
        field,
        logit_threshold=parameters["logit_threshold"],
        min_flow=parameters["min_flow"],
        flow_error=parameters["flow_error"],
        min_area_wpx=parameters["min_cell_area_um2"] / tile.working_um**2,
        steps=int(parameters["flow_steps"]),
        device=predictor.device,
    )
    return labels, field


def _means(labels: np.ndarray, field: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean length of the flow and mean logit of each cell."""
    cells = torch.from_numpy(labels).to(field.device)
    return object_means(cells, torch.hypot(field[0], field[1])), object_means(cells, field[2])


def _read_all(folders: list[Path], card: weights.ModelCard) -> list[Tile]:
    tiles, problems = [], []
    for folder in folders:
        try:
            tile = Tile.read(folder)
            tile.raw_stains()
            card.check_tile(tile.working_um, str(folder))
            tiles.append(tile)
        except FileNotFoundError as error:
            problems.append(f"{error.filename}: no such file; run tile again.")
        except InputError as error:
            problems += error.problems
    names = [t.tile_id for t in tiles]
    problems += [f"the tile {name} is given more than once; name each tile folder once." for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise InputError(problems)
    if card.genes:
        for sample, tile in {tile.sample: tile for tile in tiles}.items():
            card.check_panel(tile.sample_genes(), sample)
    return tiles
