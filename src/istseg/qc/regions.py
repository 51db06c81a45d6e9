"""Squares of a sample worth a close look, and their layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import shapely

from istseg import rna_view
from istseg.artifacts import gene_colours
from istseg.artifacts.metrics import FLAGS
from istseg.artifacts.regions import Region
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.grid import Box
from istseg.qc.drawing import write_png

_SIMPLIFY_WPX = 0.5
_COLOURS = ("#00b454", "#ff9a3c", "#c8c800", "#ff5050", "#a0a0ff")
"""Of membrane stains in their order; the nucleus stain is blue, RNA magenta."""
_NUCLEUS_COLOUR, _RNA_COLOUR = "#4073ff", "#ff26a6"
_RNA_SIGMA_WPX, _RNA_TOP = 1.0, 99.5
_RNA_FULL = 2.0
"""Of the mean density of a region: there a pixel in the colours of genes has 63 % of its full brightness."""


def choose(index: TileIndex, xy_wpx: np.ndarray, flag: np.ndarray, side_wpx: int) -> list[tuple[str, int, int]]:
    """The squares: a typical one among those that are not nearly empty, the one with most flagged cells, the one with most cells; none that overlap.

    Parameters
    ----------
    xy_wpx
        (n, 2) centroids of the cells, working pixels.
    flag
        (n,) place in `FLAGS` of each cell.
    side_wpx
        Side of a square.

    Returns
    -------
    (reason, y, x) of each: the corner in working pixels, on a grid of half a side. Fewer where the sample is small or holds no such cells.
    """
    step = max(side_wpx // 2, 1)
    height, width = index.window_grid.height, index.window_grid.width
    rows, columns = (max(-(-max(n - side_wpx, 0) // step) + 1, 1) for n in (height, width))
    inside = ((xy_wpx >= 0) & (xy_wpx < [width, height])).all(1)

    def count(of: np.ndarray) -> np.ndarray:
        """(rows, columns) cells of each square: sums over 2 × 2 half squares."""
        x, y = (xy_wpx[of & inside] // step).astype(int).T
        halves = np.zeros((rows + 1, columns + 1), np.int64)
        np.add.at(halves, (np.minimum(y, rows), np.minimum(x, columns)), 1)
        return halves[:-1, :-1] + halves[1:, :-1] + halves[:-1, 1:] + halves[1:, 1:]

    cells, flagged = count(np.ones(len(flag), bool)), count(flag != FLAGS.index("consistent"))
    if not cells.max():
        return []
    full = cells >= np.median(cells[cells > 0])
    unusual = np.abs(flagged / np.maximum(cells, 1) - flagged.sum() / cells.sum())
    wanted = [
        ("most cells", cells, cells > 0),
        ("most flagged cells", flagged, flagged > 0),
        ("typical: its share of flagged cells is that of the sample", -unusual, full),
    ]
    chosen: list[tuple[str, int, int]] = []
    free = np.ones_like(full)
    for reason, score, possible in wanted:
        possible &= free
        if not possible.any():
            continue
        row, column = np.unravel_index(int(np.argmax(np.where(possible, score, -np.inf))), score.shape)
        chosen.append((reason, int(row) * step, int(column) * step))
        free[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = False
    return chosen[::-1]


def view(index: TileIndex, square: tuple[str, int, int], side_wpx: int) -> shapely.Polygon:
    """The box of a square of `choose`, µm."""
    _, y, x = square
    corners = apply_affine(np.linalg.inv(index.affine), np.array([[x, y], [x + side_wpx, y + side_wpx]], float))
    return shapely.box(*corners.min(0), *corners.max(0))


def draw(
    folder: Path,
    number: int,
    square: tuple[str, int, int],
    side_wpx: int,
    tiles: Path,
    index: TileIndex,
    outlines: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    colours: pd.DataFrame | None,
) -> Region:
    """Write the pictures of one square into `folder`.

    Parameters
    ----------
    number
        Of the square, in the names of the files.
    square
        Of `choose`.
    outlines
        Name → ids, valid polygons in µm, and place in `FLAGS` (or None) of the nuclei or cells that touch the square; nuclei have the name `nuclei`.
    colours
        Of genes (`artifacts.gene_colours`); without them the RNA is one grey picture.
    """
    reason, y, x = square
    box = (y, x, y + side_wpx, x + side_wpx)
    stains, points, names = _contents(tiles, index, box)
    layers = [
        (name, "membrane" if i else "nucleus", image, _COLOURS[(i - 1) % len(_COLOURS)] if i else _NUCLEUS_COLOUR)
        for i, (name, image) in enumerate(zip(names, stains, strict=True))
    ]
    layers.append(("RNA", "rna", *_rna(points, side_wpx, colours)))
    records = []
    for i, (name, role, image, colour) in enumerate(layers):
        file = f"region{number}_{i}.png"
        write_png(folder / file, np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
        records.append({"name": name, "role": role, "file": file, "colour": colour})
    to_picture = np.array([[1.0, 0, -x], [0, 1.0, -y], [0, 0, 1.0]]) @ index.affine
    drawn = [_outlines(name, *found, to_picture) for name, found in outlines.items()]
    return Region(reason, (x * index.working_um, y * index.working_um), records, drawn)


def _contents(tiles: Path, index: TileIndex, box: Box) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """Normalised stains (c, y, x) and gene transcripts (`row`, `column`, `gene`) of a box, from the cores of the tiles; empty outside of them."""
    y0, x0, y1, x1 = box
    shape, stains, points, names = (y1 - y0, x1 - x0), np.zeros((0, y1 - y0, x1 - x0), np.float32), [], []
    for record in index.tiles:
        top, left, bottom, right = (max(y0, record["core"][0]), max(x0, record["core"][1]), min(y1, record["core"][2]), min(x1, record["core"][3]))
        if top >= bottom or left >= right:
            continue
        tile = Tile.read(tiles / record["tile_id"])
        if not names:
            names, stains = tile.stains, np.zeros((len(tile.stains), *shape), np.float32)
        stains[:, top - y0 : bottom - y0, left - x0 : right - x0] = tile.normalised((top, left, bottom, right))
        table = tile.transcripts(["x_wpx", "y_wpx", "gene", "is_control"])
        y, x = np.floor(table["y_wpx"]).astype(np.int64), np.floor(table["x_wpx"]).astype(np.int64)
        mine = ~table["is_control"] & (y >= top) & (y < bottom) & (x >= left) & (x < right)
        points.append(pd.DataFrame({"row": y[mine] - y0, "column": x[mine] - x0, "gene": table.loc[mine, "gene"].astype(str)}))
    return stains, pd.concat(points) if points else pd.DataFrame({"row": [], "column": [], "gene": []}), names


def _rna(points: pd.DataFrame, side: int, colours: pd.DataFrame | None) -> tuple[np.ndarray, str | None]:
    """Picture of the transcripts, 0…1, and its tint: in the colours of the genes, or grey to be tinted."""
    row, column, shape = points["row"].to_numpy(np.int64), points["column"].to_numpy(np.int64), (side, side)
    if colours is None:
        counts = np.bincount(row * side + column, minlength=side * side).reshape(shape).astype(np.float32)
        rna = cv2.GaussianBlur(counts, (0, 0), _RNA_SIGMA_WPX)
        return rna / (float(np.percentile(rna, _RNA_TOP)) or 1.0), _RNA_COLOUR
    genes = points["gene"].astype("category").cat
    weight = rna_view.weights(gene_colours.of(colours, genes.categories))[genes.codes]
    full = max(_RNA_FULL * len(points) / side**2, 1e-6)
    return rna_view.paint(row, column, weight, shape, _RNA_SIGMA_WPX, full) / 255, None


def _outlines(name: str, ids: np.ndarray, polygons: np.ndarray, flags: np.ndarray | None, to_picture: np.ndarray) -> dict[str, Any]:
    """In pixels of the picture, simplified; whole, also where they leave it."""
    shown = shapely.simplify(shapely.transform(polygons, lambda xy: apply_affine(to_picture, xy)), _SIMPLIFY_WPX)
    # Twice: a repaired polygon may be a collection that holds a multipolygon.
    outer, first = shapely.get_parts(shown, return_index=True)
    parts, second = shapely.get_parts(outer, return_index=True)
    polygonal = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    parts, owner = parts[polygonal], first[second][polygonal]
    rings = [_points(shapely.get_coordinates(shapely.get_exterior_ring(part))) for part in parts]
    return {
        "name": name,
        "kind": "nuclei" if name == "nuclei" else "cells",
        "rings": rings,
        "ids": [str(i) for i in ids[owner]],
        "flags": None if flags is None else flags[owner].tolist(),
    }


def _points(xy: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)
