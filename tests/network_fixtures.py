"""A painted sample with known cells, cut into tiles by any tiling, for the tests of network, segment and merge."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from istseg.artifacts.tiles import Tile, TileIndex
from istseg.grid import WindowGrid, tile_id

ROOT = Path(__file__).parents[1]
BASE_MODEL = ROOT / "assets" / "models" / "istseg-sim-v2.safetensors"
WORKING_UM = 0.253
ORIGIN_UM = (120.5, -37.25)


def golden(name: str) -> dict[str, np.ndarray]:
    """Arrays of a golden file; skips where the golden data are absent."""
    folder = Path(os.environ.get("ISTSEG_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not (folder / name).is_file():
        pytest.skip(f"no golden data: {folder / name}")
    with np.load(folder / name) as stored:
        return dict(stored)


@dataclass
class Painting:
    """Stains (c, y, x) uint16, transcripts in working pixels and the true cells (y, x)."""

    stains: np.ndarray
    transcripts: pd.DataFrame
    cells: np.ndarray


def paint(height: int, width: int, spacing: float = 38.0, membranes: int = 1, seed: int = 0, empty_from_x: int | None = None) -> Painting:
    """Packed cells with nucleus, membrane ring and transcripts; nothing right of `empty_from_x`."""
    rng = np.random.default_rng(seed)
    rows, columns = max(round(height / spacing), 1) + 2, max(round(width / spacing), 1) + 2
    at = np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2) - 0.5 + rng.uniform(-0.28, 0.28, (rows * columns, 2))
    points = at * spacing
    y, x = np.mgrid[:height, :width]
    distance, nearest = cKDTree(points).query(np.stack([y, x], -1).reshape(-1, 2), k=2)
    inside = (distance[:, 0] < 0.8 * spacing) & (distance[:, 1] - distance[:, 0] > 1.5)
    cells = np.where(inside, nearest[:, 0] + 1, 0).reshape(height, width).astype(np.int32)
    nucleus = ((distance[:, 0] < 0.2 * spacing) & inside).reshape(height, width)
    edge = np.exp(-(((distance[:, 1] - distance[:, 0]) / 4) ** 2)).reshape(height, width)
    if empty_from_x is not None:
        gone = np.unique(cells[:, empty_from_x:])
        hidden = np.isin(cells, gone) | (x >= empty_from_x)
        cells[hidden], nucleus[hidden], edge[hidden] = 0, False, 0
    signal = [gaussian_filter(nucleus.astype(np.float32), 1.2)] + [gaussian_filter(edge.astype(np.float32), 1.0)] * membranes
    noise = rng.normal(0, 0.03, (1 + membranes, height, width))
    stains = (np.clip(np.stack(signal) + noise + 0.1, 0, None) * 2000).astype(np.uint16)
    n = height * width // 12
    ty, tx = rng.uniform(0, height, n), rng.uniform(0, width, n)
    inside_cell = cells[ty.astype(int), tx.astype(int)] > 0
    ty, tx = ty[inside_cell], tx[inside_cell]
    genes = pd.Categorical(rng.choice(["A", "B", "Blank-1"], len(ty), p=[0.6, 0.38, 0.02]))
    table = pd.DataFrame({"transcript_id": np.arange(len(ty)), "x_wpx": tx, "y_wpx": ty, "gene": genes, "is_control": genes == "Blank-1"})
    return Painting(stains, table, cells)


def cut(
    painting: Painting,
    folder: Path,
    windows_per_side: int,
    without: set[tuple[int, int]] = frozenset(),
    window: int = 192,
    overlap: int = 64,
    sample: str = "s1",
) -> list[Path]:
    """Write `tiles.json` and the tile folders; windows in `without` hold no tissue. Returns the tile folders. Small windows by default, for speed."""
    height, width = painting.cells.shape
    grid = WindowGrid(height, width, overlap, window)
    stains = ["DAPI"] + [f"Cellbound{i}" for i in range(1, len(painting.stains))]
    ranges = [(float(np.percentile(s, 1)), float(np.percentile(s, 99))) for s in painting.stains]
    scale = 1 / WORKING_UM
    affine = [[scale, 0.0, -ORIGIN_UM[0] * scale], [0.0, scale, -ORIGIN_UM[1] * scale], [0.0, 0.0, 1.0]]
    index = TileIndex(sample, grid.as_dict(), windows_per_side, WORKING_UM, affine, [], [], 1.0)
    genes = painting.transcripts.loc[~painting.transcripts["is_control"], "gene"].value_counts().to_dict()
    folders = []
    for ty, tx in grid.tiles(windows_per_side):
        name = tile_id(ty, tx)
        windows = [w for w in grid.tile_windows(ty, tx, windows_per_side) if w not in without]
        ring = [w for w in grid.tile_windows(ty, tx, windows_per_side, ring=1) if w not in without and w not in windows]
        core, region = grid.tile_core(ty, tx, windows_per_side), grid.tile_region(ty, tx, windows_per_side)
        if not windows:
            index.skipped.append({"tile_id": name, "core": core, "reason": "no tissue"})
            continue
        tile = Tile(sample, name, grid.as_dict(), core, region, windows, ring, stains, ranges, WORKING_UM, affine)
        y0, x0, y1, x1 = region
        t = painting.transcripts
        own = t[(t.y_wpx >= y0) & (t.y_wpx < y1) & (t.x_wpx >= x0) & (t.x_wpx < x1)]
        tile.write(folder / name, painting.stains[:, y0:y1, x0:x1], own, genes)
        index.tiles.append({"tile_id": name, "core": core, "region": region, "n_windows": len(windows), "n_transcripts": len(own)})
        folders.append(folder / name)
    index.write(folder / "tiles.json")
    return folders


def best_iou(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Best IoU of each true object with any found one, in the order of the numbers."""
    truth = np.unique(truth, return_inverse=True)[1].reshape(truth.shape)
    found = np.unique(np.append(found, 0), return_inverse=True)[1][:-1].reshape(found.shape)
    n = int(found.max()) + 1
    joint = np.bincount(truth.ravel() * n + found.ravel(), minlength=(truth.max() + 1) * n).reshape(-1, n).astype(float)
    iou = joint / (joint.sum(1, keepdims=True) + joint.sum(0) - joint)
    return iou[1:, 1:].max(1, initial=0.0)
