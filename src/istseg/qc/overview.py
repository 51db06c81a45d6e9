"""`overview.png`: the whole sample with the contours of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from istseg.artifacts.sample import Sample, apply_affine
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.errors import InputError
from istseg.qc import drawing

MAX_SIDE = 1600
_MIN_SIDE = 800


def draw(path: Path, tiles: Path, index: TileIndex, sample: Sample, polygons: np.ndarray) -> dict[str, Any]:
    """Write the picture from `tiles/overview.npz`; gives `{"file", "um_per_px"}`.

    Parameters
    ----------
    polygons
        (n,) valid polygons of the cells, µm.

    Raises
    ------
    InputError
        If `overview.npz` is missing or not of this sample.

    """
    source = tiles / "overview.npz"
    try:
        with np.load(source, allow_pickle=False) as stored:
            stains, names, um_per_px = stored["stains"].astype(np.float32), stored["stain_names"].tolist(), float(stored["um_per_px"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source}: is not an overview of the stage tile ({error}); run tile again.") from None
    ranges = {s.name: (s.low, s.high) for s in sample.stains}
    if set(names) - set(ranges):
        raise InputError(f"{source}: has stains {names} that sample.json does not know; run tile again.")
    shown = np.stack([(image - ranges[n][0]) / max(ranges[n][1] - ranges[n][0], 1e-6) for n, image in zip(names, stains, strict=True)])
    rna = _rna(tiles, index, shown.shape[1:], um_per_px)
    picture = drawing.composite(shown[0], shown[1:], rna)
    # A small sample is enlarged, so that its contours can be told apart.
    zoom = max(1, MAX_SIDE // max(picture.shape[:2])) if max(picture.shape[:2]) < _MIN_SIDE else 1
    picture = np.ascontiguousarray(cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR) if zoom > 1 else picture)
    um_per_px /= zoom
    to_picture = sample.affine * np.array([[sample.pixel_size_um / um_per_px]] * 2 + [[1]])
    # On a large slide contours are closer together than pixels and would hide the tissue.
    opacity = float(np.clip(1 / um_per_px, 0.25, 1))
    drawing.contours(picture, polygons, drawing.CELL, opacity=opacity, move=lambda xy: apply_affine(to_picture, xy))
    drawing.write_png(path, drawing.scale_bar(picture, um_per_px))
    return {"file": path.name, "um_per_px": um_per_px}


def _rna(tiles: Path, index: TileIndex, shape: tuple[int, int], um_per_px: float) -> np.ndarray:
    """(y, x) float32: transcripts per pixel of the picture, smoothed, its 99th percentile at 0.7."""
    counts = np.zeros(shape, np.float32)
    scale = index.working_um / um_per_px
    for record in index.tiles:
        tile = Tile.read(tiles / record["tile_id"])
        table = tile.transcripts(["x_wpx", "y_wpx", "is_control"])
        x, y = table["x_wpx"].to_numpy(float), table["y_wpx"].to_numpy(float)
        y0, x0, y1, x1 = tile.core
        own = ~table["is_control"].to_numpy() & (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
        row = np.minimum((y[own] * scale).astype(np.int64), shape[0] - 1)
        column = np.minimum((x[own] * scale).astype(np.int64), shape[1] - 1)
        counts += np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)
    counts = cv2.GaussianBlur(counts, (0, 0), max(0.7, 0.6 / um_per_px))
    filled = counts[counts > 0]
    return counts * (0.7 / float(np.percentile(filled, 99))) if len(filled) else counts
