"""segment: tile + model → `<tile_id>/{labels.npz, objects.parquet, meta.json}` with the layer `cells`. The network's cells of each tile."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.network import weights
from istseg.network.dynamics import labels_from_field
from istseg.network.field import blend_windows
from istseg.network.inference import Predictor, choose_precision, open_device
from istseg.progress import track

log = logging.getLogger("istseg")

LAYER = "cells"


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
    # Outlines and files of a tile are made while the device works on the next one; not further ahead, so that memory holds two tiles at most.
    with ThreadPoolExecutor(1) as finisher:
        unfinished: Future | None = None
        for tile in track(read, "segment"):
            begin = time.perf_counter()
            labels, field = predict_tile(tile, predictor, parameters, batch_size)
            seconds = time.perf_counter() - begin
            if unfinished:
                unfinished.result()
            record = method | {"windows": len(tile.windows), "ring_windows": len(tile.ring_windows)}
            unfinished = finisher.submit(_finish, tile, labels, field, record, Path(out), seconds)
        if unfinished:
            unfinished.result()


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


def predict_tile(tile: Tile, predictor: Predictor, parameters: dict[str, float], batch_size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Cells of one tile.

    Returns
    -------
    int32 (h, w) labels over the region, and its field (3, h, w), None for a tile without windows, which has no cells.
    """
    if not tile.windows:
        return np.zeros(tile.shape, np.int32), None
    field = blend_windows(tile, predictor.predict, batch_size=batch_size, inputs=predictor.inputs, fill=not predictor.one_by_one)
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


def _finish(tile: Tile, labels: np.ndarray, field: np.ndarray | None, record: dict[str, Any], out: Path, prediction: float) -> None:
    """Outlines and files of a tile whose prediction took so many seconds."""
    begin = time.perf_counter()
    times: dict[str, float] = {}

    def clock() -> dict[str, float]:
        finishing = time.perf_counter() - begin
        times.update(seconds=round(prediction + finishing, 3), prediction_seconds=round(prediction, 3), finishing_seconds=round(finishing, 3))
        return times

    grid = tile.window_grid
    flow, logit = (None, None) if field is None else (np.hypot(field[0], field[1]), field[2])
    objects = describe(LAYER, labels, tile.core, tile.region, (grid.height, grid.width), flow, logit)
    TileLabels(tile.sample, tile.tile_id, tile.core, tile.region, {LAYER: labels}, objects, record).write(out / tile.tile_id, clock)
    log.info("%s %s: %d cells of %d windows in %.1f s", tile.sample, tile.tile_id, int(objects["owned"].sum()), len(tile.windows), times["seconds"])


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
