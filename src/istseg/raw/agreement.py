"""Do transcripts lie where the image shows tissue? Correlation of densities, as found and under the flips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

FLIPS = {"none": (False, False), "y": (True, False), "x": (False, True), "xy": (True, True)}
"""Name → (rows reversed, columns reversed)."""
SUSPICIOUS_MARGIN = 0.15
SUSPICIOUS_FLOOR = 0.3
_SMOOTH = 2.0
_MIN_BINS = 64
_SQUARE_UM, _SQUARES, _BIN_UM, _MIN_MOLECULES = 200.0, 6, 2.0, 300
ReadBox = Callable[[int, int, int, int], np.ndarray]


def flip(image: np.ndarray, name: str) -> np.ndarray:
    """Flip the last two axes."""
    rows, columns = FLIPS[name]
    return image[..., :: -1 if rows else 1, :: -1 if columns else 1]


def density_evidence(stains: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Correlate stains with the transcript density, as found and with the image flipped.

    Parameters
    ----------
    stains
        (c, y, x) grey values of a thumbnail.
    counts
        (y, x) transcripts per bin of about the same size; cropped to the same shape.

    Returns
    -------
    `correlation` {flip: r of the square roots over imaged bins, best stain}, `best`, `suspicious` (another flip is clearly better). Empty when
    there is too little to tell.
    """
    h, w = min(stains.shape[1], counts.shape[0]), min(stains.shape[2], counts.shape[1])
    stains, counts = stains[:, :h, :w].astype(np.float32), counts[:h, :w].astype(np.float32)
    if h * w < _MIN_BINS or counts.sum() < _MIN_BINS:
        return {}
    density = np.sqrt(cv2.GaussianBlur(counts, (0, 0), _SMOOTH))
    smooth = [cv2.GaussianBlur(np.sqrt(s), (0, 0), _SMOOTH) for s in stains]
    imaged = stains.max(axis=0) > 0
    result = {}
    for name in FLIPS:
        mask = flip(imaged, name)
        values = [_correlation(flip(s, name)[mask], density[mask]) for s in smooth] if mask.sum() >= _MIN_BINS else [0.0]
        result[name] = round(max(values), 4)
    return {"correlation": result, **_judged(result)}


def local_evidence(read: ReadBox, pixel: np.ndarray, shape: tuple[int, int], pixel_um: float) -> dict[str, Any]:
    """Correlate stains with transcripts inside a few squares that hold many of them, as found and with the whole mosaic flipped.

    A sample of a table in the order of its fields of view covers some fields completely and the others not at all, so only squares of it are looked at.

    Parameters
    ----------
    read
        (y0, y1, x0, x1) → (c, h, w) grey values.
    pixel
        (n, 2) mosaic pixels (x, y) of transcripts.
    shape
        (height, width) of the mosaic.
    pixel_um
        Size of a mosaic pixel.

    Returns
    -------
    `squares`, `correlation` {flip: mean over the squares}, `best`, `suspicious` as `density_evidence`. Empty when there is too little to tell.
    """
    side = max(1, min(round(_SQUARE_UM / pixel_um), *shape))
    step = max(1, round(_BIN_UM / pixel_um))
    inside = pixel[((pixel >= 0) & (pixel < shape[::-1])).all(axis=1)].astype(np.int64)
    squares, counts = np.unique(inside[:, ::-1] // side, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SQUARES]
    totals: dict[str, list[float]] = {name: [] for name in FLIPS}
    for row, column in squares[order[counts[order] >= _MIN_MOLECULES]]:
        y0, x0 = row * side, column * side
        y1, x1 = min(y0 + side, shape[0]), min(x0 + side, shape[1])
        size = (x1 - x0) // step, (y1 - y0) // step
        if min(size) < 8:
            continue
        mine = inside[(inside[:, 1] >= y0) & (inside[:, 1] < y0 + size[1] * step) & (inside[:, 0] >= x0) & (inside[:, 0] < x0 + size[0] * step)]
        density = np.zeros(size[::-1])
        np.add.at(density, ((mine[:, 1] - y0) // step, (mine[:, 0] - x0) // step), 1)
        density = np.sqrt(cv2.GaussianBlur(density, (0, 0), 1.0))
        for name, (rows, columns) in FLIPS.items():
            box = (shape[0] - y1, shape[0] - y0) if rows else (y0, y1), (shape[1] - x1, shape[1] - x0) if columns else (x0, x1)
            stains = flip(read(*map(int, (*box[0], *box[1]))), name)[:, : size[1] * step, : size[0] * step]
            smooth = [cv2.resize(np.sqrt(np.ascontiguousarray(stain)), size, interpolation=cv2.INTER_AREA) for stain in stains]
            imaged = np.max(smooth, axis=0) > 0
            values = [_correlation(stain[imaged], density[imaged]) for stain in smooth] if imaged.sum() >= _MIN_BINS else [0.0]
            totals[name].append(max(values))
    if not totals["none"]:
        return {}
    result = {name: round(float(np.mean(values)), 4) for name, values in totals.items()}
    return {"squares": len(totals["none"]), "correlation": result, **_judged(result)}


def _judged(result: dict[str, float]) -> dict[str, Any]:
    best = max(result, key=lambda k: (result[k], k == "none"))
    suspicious = best != "none" and result[best] > SUSPICIOUS_FLOOR and result[best] - result["none"] > SUSPICIOUS_MARGIN
    return {"best": best, "suspicious": suspicious}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
