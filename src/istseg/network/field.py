"""One field of flows and logits over a tile, blended from windows of the sample's grid.

A window's prediction depends on the pixels of that window only, and the weights of the blend on the grid only: two tiles that both see a place get the
same numbers there, bit for bit (docs/architecture.md). Used by the network and by every teacher that predicts flows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from istseg.artifacts.tiles import Tile
from istseg.grid import Box, WindowGrid

NO_TISSUE_LOGIT = -1e4
"""Logit in the cores of windows that were not computed."""

Inputs = Callable[[Tile, Box], np.ndarray]
Predict = Callable[[Tensor], Tensor]
Cut = Callable[[list[Box]], Tensor]


def blend_windows(
    tile: Tile,
    predict: Predict,
    windows: Sequence[tuple[int, int]] | None = None,
    batch_size: int = 1,
    inputs: Inputs | None = None,
    fill: bool = True,
    channels: int = 3,
    cut: Cut | None = None,
) -> Tensor:
    """Predict windows and blend them over the tile's region.

    Parameters
    ----------
    tile
        Read window by window; the region is never in memory as a whole.
    predict
        (batch_size, C, window, window) float32 on the CPU → (batch_size, 3, window, window) float32 on any device: flow y, flow x (unit scale) and logit.
    windows
        (gy, gx) to compute; default: the tile's own and those of its ring.
    batch_size
        Windows that are predicted together.
    inputs
        Makes the (C, window, window) float32 input of a window box; default: `stain_window`.
    fill
        Fill the last batch with zeros, so that all have one size and the arithmetic does not depend on how many windows there are. Only waste where
        `predict` computes windows one by one (`Predictor.one_by_one`).
    channels
        That `predict` gives: flow y, flow x, logit, and what else a network has.
    cut
        In place of `inputs`: makes those of a whole batch, on the device of the predictions.

    Returns
    -------
    (channels, h, w) float32 over the region, on the device of the predictions: flow y, flow x, logit... In the cores of windows that were not computed all is
    0 but the logit, which is `NO_TISSUE_LOGIT`, also where a neighbouring window reaches in: a tile without tissue does not exist, so an object there would
    belong to no tile.
    """
    grid = tile.window_grid
    chosen = sorted(set(tile.windows) | set(tile.ring_windows) if windows is None else set(windows))
    height, width = tile.shape
    field = weight = window_weight = torch.empty(0)
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    stacks = _cut(tile, batches, cut) if cut else _read(tile, batches, inputs or stain_window)
    for at, predicted in _predictions(batches, stacks, predict, batch_size if fill else 0):
        if not field.numel():
            field, weight = (predicted.new_zeros((n, height, width)) for n in (channels, 1))
            window_weight = torch.from_numpy(taper(grid)).to(predicted.device)
        inside, place = _overlap(grid.window_box(*at), tile.region)
        w = window_weight[inside]
        # Two steps: a fused one may round differently at another place of the array.
        field[:, *place] += predicted[:, *inside] * w
        weight[:, *place] += w
    if not field.numel():
        field, weight = (torch.zeros((n, height, width)) for n in (channels, 1))
    seen = _computed_cores(tile, chosen, field.device)
    field /= weight.masked_fill_(~seen, 1)
    field.masked_fill_(~seen, 0)
    field[2].masked_fill_(~seen, NO_TISSUE_LOGIT)
    return field


def stain_window(tile: Tile, box: Box) -> np.ndarray:
    """(C, h, w) float32 normalised stains of a window box, reflected outside the mosaic."""
    rows, columns, cover = reflect_box(tile, box)
    stains = tile.normalised(cover)
    return stains if cover == box else stains.take(rows, 1).take(columns, 2)


def count_window(tile: Tile, counts: np.ndarray, box: Box) -> np.ndarray:
    """(h, w) of a window box from `counts` = `tile.transcript_counts()` of the region, reflected outside the mosaic."""
    rows, columns, cover = reflect_box(tile, box)
    y, x = cover[0] - tile.region[0], cover[1] - tile.region[1]
    if cover == box:
        return counts[y : y + len(rows), x : x + len(columns)]
    return counts.take(rows + y, 0).take(columns + x, 1)


def reflect(start: int, stop: int, size: int) -> np.ndarray:
    """Indices in [0, size) of the places [start, stop): beyond the ends they run back, ends repeated (`np.pad(mode="symmetric")`), as often as needed."""
    at = np.arange(start, stop) % (2 * size)
    return np.where(at < size, at, 2 * size - 1 - at)


def taper(grid: WindowGrid) -> np.ndarray:
    """(window, window) float32 weights: 1 in the middle, falling linearly over the overlap; those of neighbouring windows sum to 1."""
    line = np.ones(grid.window, np.float32)
    if grid.overlap:
        ramp = (np.arange(grid.overlap, dtype=np.float32) + np.float32(0.5)) / np.float32(grid.overlap)
        line[: grid.overlap] = ramp
        line[-grid.overlap :] = ramp[::-1]
    return line[:, None] * line


def _computed_cores(tile: Tile, windows: list[tuple[int, int]], device: torch.device) -> Tensor:
    """(h, w) bool over the region: the cores of the windows."""
    grid = tile.window_grid
    seen = torch.zeros(tile.shape, dtype=torch.bool, device=device)
    for at in windows:
        _, place = _overlap(grid.core(*at), tile.region)
        seen[place] = True
    return seen


def _predictions(batches: list[list[tuple[int, int]]], stacks: Iterator[Tensor], predict: Predict, size: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Prediction of each window in order; batches are filled with zeros up to a size."""
    for batch, stack in zip(batches, stacks, strict=True):
        filled = F.pad(stack, (0, 0, 0, 0, 0, 0, 0, size - len(stack))) if len(stack) < size else stack
        yield from zip(batch, predict(filled).float(), strict=False)


def _cut(tile: Tile, batches: list[list[tuple[int, int]]], cut: Cut) -> Iterator[Tensor]:
    """Inputs of each batch."""
    grid = tile.window_grid
    for batch in batches:
        yield cut([grid.window_box(*at) for at in batch])


def _read(tile: Tile, batches: list[list[tuple[int, int]]], inputs: Inputs) -> Iterator[Tensor]:
    """Inputs of each batch, window by window; those of the next one are read while one is computed."""
    grid = tile.window_grid

    def read(at: tuple[int, int]) -> np.ndarray:
        return np.asarray(inputs(tile, grid.window_box(*at)), np.float32)

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, at) for at in batches[0]] if batches else []
        for i in range(len(batches)):
            arrays = [future.result() for future in waiting]
            waiting = [pool.submit(read, at) for at in batches[i + 1]] if i + 1 < len(batches) else []
            yield torch.from_numpy(np.stack(arrays))


def reflect_box(tile: Tile, box: Box) -> tuple[np.ndarray, np.ndarray, Box]:
    """Rows and columns of a window box, reflected at the mosaic's edge, relative to the smallest box that holds them all."""
    grid = tile.window_grid
    rows, columns = reflect(box[0], box[2], grid.height), reflect(box[1], box[3], grid.width)
    cover = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    y0, x0, y1, x1 = tile.region
    if cover[0] < y0 or cover[1] < x0 or cover[2] > y1 or cover[3] > x1:
        raise ValueError(f"window {box} needs {cover}, which is not inside the region {tile.region} of the tile {tile.tile_id}")
    return rows - cover[0], columns - cover[1], cover


def _overlap(box: Box, region: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of what a box and a region share: in the box, in the region."""
    y0, x0 = max(box[0], region[0]), max(box[1], region[1])
    y1, x1 = min(box[2], region[2]), min(box[3], region[3])
    inside = slice(y0 - box[0], y1 - box[0]), slice(x0 - box[1], x1 - box[1])
    return inside, (slice(y0 - region[0], y1 - region[0]), slice(x0 - region[1], x1 - region[1]))
