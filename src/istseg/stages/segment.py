"""segment: tile + model → `<tile_id>/{labels.npz, objects.parquet, meta.json}` with the layer `cells`. The network's cells of each tile."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from istseg.ahead import ahead
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.finishing import finisher
from istseg.network import kernels, weights
from istseg.network.dynamics import labels_from_field, object_means
from istseg.network.field import blend_windows
from istseg.network.inference import Predictor, choose_precision, open_device
from istseg.network.loading import DeviceTile, LoadedTile, load
from istseg.progress import track

log = logging.getLogger("istseg")

BATCH_WINDOWS = {"cpu": 1, "cuda": 32}
"""A CPU gains nothing by more than one. On a GPU results depend on the size of a batch by rounding, so it does not follow the memory that is free."""


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
    batch_size: int | None,
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
        Windows per step of the network; None for `BATCH_WINDOWS`.
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
    on_gpu = place.type == "cuda"
    batch_size = batch_size or BATCH_WINDOWS[place.type]
    with finisher(Path(out), apart=on_gpu) as finishing:
        arithmetic = choose_precision(precision, place)
        if on_gpu:
            kernels.prepare(arithmetic)
        network, card = weights.load(model, model_sha256)
        read = _read_all(tiles, card)
        # Tiles are read, kernels compiled and the processes started while the network is moved to the GPU.
        loading = ahead(read, lambda tile: load(tile, card, pinned=True) if on_gpu and tile.windows else None)
        predictor = Predictor(network, card, place, arithmetic)
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
        begin = time.perf_counter()
        for tile, loaded in track(loading, "segment", len(read)):
            labels, field = predict_tile(tile, predictor, parameters, batch_size, loaded)
            means = None if field is None else _means(labels, field)
            record = method | {"windows": len(tile.windows), "ring_windows": len(tile.ring_windows)}
            finishing.add(tile, labels, means, record, time.perf_counter() - begin)
            begin = time.perf_counter()


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


def predict_tile(
    tile: Tile, predictor: Predictor, parameters: dict[str, float], batch_size: int, loaded: LoadedTile | None = None
) -> tuple[np.ndarray, Tensor | None]:
    """Cells of one tile.

    Parameters
    ----------
    loaded
        The tile in memory (`network.loading.load`): its windows are cut on the device. None: for a GPU it is loaded here, a CPU reads its windows one by one.

    Returns
    -------
    int32 (h, w) labels over the region, and its field (3, h, w) on the device, None for a tile without windows, which has no cells.
    """
    if not tile.windows:
        return np.zeros(tile.shape, np.int32), None
    if loaded is None and predictor.device.type == "cuda":
        loaded = load(tile, predictor.card, pinned=True)
    cut = None if loaded is None else DeviceTile(loaded, predictor.card, predictor.device).windows
    field = blend_windows(tile, predictor.predict, batch_size=batch_size, inputs=predictor.inputs, fill=not predictor.one_by_one, cut=cut)
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
