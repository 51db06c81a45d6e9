"""What the stains and the RNA say of each cell, tile by tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.curation.density import rna_density
from istseg.progress import track
from istseg.qc.spans import scan


def owners(index: TileIndex, xy_um: np.ndarray) -> np.ndarray:
    """(n,) position in `index.tiles` of the tile whose core holds each point, −1 where no tile was written."""
    x, y = apply_affine(index.affine, xy_um).T
    owner = np.full(len(xy_um), -1, np.int64)
    for i, tile in enumerate(index.tiles):
        y0, x0, y1, x1 = tile["core"]
        owner[(y >= y0) & (y < y1) & (x >= x0) & (x < x1)] = i
    return owner


def measure(tiles: Path, index: TileIndex, polygons: np.ndarray, centroids_um: np.ndarray, background_density: float, density_sigma_um: float) -> pd.DataFrame:
    """Background share and mean stains of cells.

    Parameters
    ----------
    tiles
        Folder of the tiles.
    polygons, centroids_um
        (n,) valid polygons and (n, 2) centroids in µm. A cell is measured in the tile whose core holds its centroid.
    background_density
        T_b, transcripts per µm².
    density_sigma_um
        Kernel of the RNA density that T_b comes from.

    Returns
    -------
    DataFrame (n,) with `background_fraction` (share of the cell's pixels whose RNA density is below T_b) and `<stain>_mean` (raw grey values); NaN for
    cells outside the tiles that were written.

    """
    owner = owners(index, centroids_um)
    measured: dict[str, np.ndarray] = {"background_fraction": np.full(len(polygons), np.nan)}
    for i, record in enumerate(track(index.tiles, "measure cells")):
        tile = Tile.read(tiles / record["tile_id"])
        for stain in tile.stains:
            measured.setdefault(f"{stain}_mean", np.full(len(polygons), np.nan))
        mine = np.flatnonzero(owner == i)
        if not len(mine):
            continue
        spans = scan(in_region(tile, polygons[mine]), tile.shape)
        background = rna_density(tile.transcript_counts(), density_sigma_um, tile.working_um) < background_density
        measured["background_fraction"][mine] = spans.means(background)
        for stain, image in zip(tile.stains, tile.raw_stains(), strict=True):
            measured[f"{stain}_mean"][mine] = spans.means(image)
    return pd.DataFrame(measured)


def in_region(tile: Tile, polygons: np.ndarray) -> np.ndarray:
    """The polygons (µm) in pixels of the tile's region."""
    offset = np.array([tile.region[1], tile.region[0]])
    return shapely.transform(polygons, lambda xy: apply_affine(tile.affine, xy) - offset)
