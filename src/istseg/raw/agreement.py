"""Do transcripts lie where the image shows tissue? Correlation of densities, as found and under the flips."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

FLIPS = {"none": (False, False), "y": (True, False), "x": (False, True), "xy": (True, True)}
"""Name → (rows reversed, columns reversed)."""
SUSPICIOUS_MARGIN = 0.15
SUSPICIOUS_FLOOR = 0.3
_SMOOTH = 2.0
_MIN_BINS = 64


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
    best = max(result, key=lambda k: (result[k], k == "none"))
    suspicious = best != "none" and result[best] > SUSPICIOUS_FLOOR and result[best] - result["none"] > SUSPICIOUS_MARGIN
    return {"correlation": result, "best": best, "suspicious": suspicious}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
