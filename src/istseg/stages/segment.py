"""segment: tile + model → `<tile_id>/{labels.npz, objects.parquet, meta.json}` with the layer `cells`. The network's cells of each tile."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.network import weights
from istseg.network.dynamics import labels_from_field
from istseg.network.field import blend_windows
from istseg.network.inference import Predictor, open_device
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

    Raises
    ------
    InputError
        If weights or tiles cannot be used (all tiles are checked before any work).
    DeviceError
        If the device is not there.
    """
    place = open_device(device)
    network, card = weights.load(model, model_sha256)
    read = _read_all(tiles, card)
    predictor = Predictor(network, card, place)
    parameters = {
        "logit_threshold": card.logit_threshold if logit_threshold is None else logit_threshold,
        "min_flow": card.min_flow if min_flow is None else min_flow,
        "flow_error": flow_error,
        "min_cell_area_um2": min_cell_area_um2,
        "flow_steps": flow_steps,
    }
    method = {
        "model": card.name,
        "model_sha256": card.sha256,
        "rna_form": card.rna_form,
        "parameters": parameters,
        "batch_size": batch_size,
        "device": device,
        "precision": str(predictor.precision).removeprefix("torch."),
    }
    for tile in track(read, "segment"):
        segment_tile(tile, predictor, parameters, batch_size, method).write(Path(out) / tile.tile_id)


def segment_tile(tile: Tile, predictor: Predictor, parameters: dict[str, float], batch_size: int, method: dict[str, Any]) -> TileLabels:
    """Cells of one tile; one without windows has none."""
    begin = time.perf_counter()
    grid = tile.window_grid
    labels = np.zeros(tile.shape, np.int32)
    flow = logit = None
    if tile.windows:
        field = blend_windows(tile, predictor.predict, batch_size=batch_size, inputs=predictor.inputs)
        labels = labels_from_field(
            field,
            logit_threshold=parameters["logit_threshold"],
            min_flow=parameters["min_flow"],
            flow_error=parameters["flow_error"],
            min_area_wpx=parameters["min_cell_area_um2"] / tile.working_um**2,
            steps=int(parameters["flow_steps"]),
            device=predictor.device,
        )
        flow, logit = np.hypot(field[0], field[1]), field[2]
    objects = describe(LAYER, labels, tile.core, tile.region, (grid.height, grid.width), flow, logit)
    seconds = time.perf_counter() - begin
    log.info("%s %s: %d cells of %d windows in %.1f s", tile.sample, tile.tile_id, int(objects["owned"].sum()), len(tile.windows), seconds)
    record = method | {"seconds": round(seconds, 3), "windows": len(tile.windows), "ring_windows": len(tile.ring_windows)}
    return TileLabels(tile.sample, tile.tile_id, tile.core, tile.region, {LAYER: labels}, objects, record)


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
    return tiles
