"""Ways to make a region worse: contours removed, stains dimmed or blurred, transcripts lost [paper: Simulation of degraded membrane staining, of reduced RNA
capture rate].

Every draw depends on the seed and on the cell or transcript alone, and a stronger degradation takes what the weaker one took and more.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import shapely
from shapely.ops import substring

from istseg.artifacts.contours import outlines
from istseg.artifacts.genes import draw_shares

RIM_UM = 0.75
"""How far to both sides of an outline the stain is taken away: half of a membrane's blurred width."""
PULL = 0.35
_SOFT_PX = 1.0
_SUBPIXEL_BITS = 4


def affected(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels of about this share of the cells, ascending; of two shares the larger holds the smaller."""
    ids = np.unique(labels)
    ids = ids[ids > 0]
    return ids[draw_shares(ids, seed) < share]


def break_contours(stains: np.ndarray, labels: np.ndarray, cells: np.ndarray, share: float, um: float, seed: int) -> np.ndarray:
    """Take a part of the outline of cells out of every stain, each at a place of its own.

    The removed rim, on both sides of the outline, looks like the cell's own inside: its pixels get the grey values that lie `PULL` of the way to the
    centroid, so that its grain stays; the rim's edge is soft.

    Parameters
    ----------
    stains
        uint16 (k, y, x) membrane stains.
    labels
        int (y, x) cells whose outlines are taken.
    cells
        Labels of the cells that lose a part.
    share
        Of an outline's length that is removed.
    um
        Size of a pixel.
    seed
        Of the places.
    """
    result = np.array(stains)
    if share <= 0:
        return result
    width = max(round(RIM_UM / um), 1)
    found, polygons = outlines(labels, cells)
    for label, polygon in zip(found.tolist(), polygons, strict=True):
        left, top, right, bottom = (int(v) for v in polygon.bounds)
        rows = slice(max(top - width - 1, 0), bottom + width + 2)
        columns = slice(max(left - width - 1, 0), right + width + 2)
        mine = labels[rows, columns] == label
        inside = cv2.erode(mine.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=width, borderValue=0) > 0
        inside = inside if inside.any() else mine
        source = _pulled(inside)
        ring = shapely.transform(polygon.exterior, lambda xy, at=(columns.start, rows.start): xy - at)
        for k, stain in enumerate(stains):
            gone = _arc(ring, np.random.default_rng([seed, label, k]).random(), share, mine.shape, width)
            soft = cv2.GaussianBlur(gone.astype(np.float32), (0, 0), _SOFT_PX)
            part, filled = result[k, rows, columns], stain[rows, columns][source].astype(np.float32)
            # Light is only taken away.
            part[:] = np.rint(np.minimum(part, part + soft * (filled - part)))
    return result


def _pulled(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) row and column of the pixel inside that each pixel of the box looks like; the middle of the inside where its own one lies outside."""
    at = np.argwhere(inside)
    middle = at.mean(0)
    nearest = at[np.square(at - middle).sum(1).argmin()]
    place = np.rint(middle[:, None, None] + (np.indices(inside.shape) - middle[:, None, None]) * (1 - PULL)).astype(np.int64)
    place = np.clip(place, 0, np.array(inside.shape)[:, None, None] - 1)
    place = np.where(inside[tuple(place)], place, nearest[:, None, None])
    return tuple(place)


def _arc(ring: shapely.LinearRing, start: float, share: float, shape: tuple[int, int], width: int) -> np.ndarray:
    """(y, x) bool: pixels within `width` of a part of the ring; `start` and `share` in lengths of the ring."""
    line = shapely.LineString(ring)
    stop = start + min(share, 1.0)
    parts = [substring(line, start, min(stop, 1.0), normalized=True)]
    if stop > 1:
        parts.append(substring(line, 0.0, stop - 1.0, normalized=True))
    gone = np.zeros(shape, np.uint8)
    for part in parts:
        # Pixel i covers [i, i+1), OpenCV speaks of pixel centres.
        points = np.rint((shapely.get_coordinates(part) - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.polylines(gone, [points], False, 1, 2 * width + 1, cv2.LINE_8, _SUBPIXEL_BITS)
    return gone > 0


def dim(stains: np.ndarray, background: np.ndarray, kept: float) -> np.ndarray:
    """uint16 (k, y, x): what rises above the (k,) background grey values is scaled; noise is scaled with it."""
    low = np.asarray(background, np.float32)[:, None, None]
    return np.clip(np.rint(low + (stains - low) * np.float32(kept)), 0, 65535).astype(np.uint16)


def blur(stains: np.ndarray, sigma_px: float) -> np.ndarray:
    """uint16 (k, y, x) after a Gaussian."""
    if sigma_px <= 0:
        return np.array(stains)
    soft = [cv2.GaussianBlur(stain.astype(np.float32), (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT) for stain in stains]
    return np.clip(np.rint(np.stack(soft)), 0, 65535).astype(np.uint16)


def fewer_transcripts(transcripts: pd.DataFrame, kept: float, seed: int) -> pd.DataFrame:
    """Rows of about this share of the transcripts, by hash of `transcript_id`."""
    return transcripts[draw_shares(transcripts["transcript_id"].to_numpy(), seed) < kept]
