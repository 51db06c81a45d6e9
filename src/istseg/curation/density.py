"""RNA density [paper: Background segmentation] and its pooled histogram."""

from __future__ import annotations

from typing import Any

import numpy as np

_TRUNCATE = 4.0
LOWEST, HIGHEST, BINS = 1e-5, 1e3, 4096
"""Bins of the pooled histogram, transcripts per µm²: each is 0.45 % wide, so a percentile read from it errs by less than that. Below `LOWEST` is zero."""


def rna_density(counts: np.ndarray, sigma_um: float, working_um: float) -> np.ndarray:
    """Gaussian kernel density of transcripts.

    Parameters
    ----------
    counts
        int (y, x): transcripts per working pixel. Give at least `reach_wpx` more on every side than is used of the result; at the mosaic's edge the
        counts are reflected, so that tissue there does not look thinner than it is.
    sigma_um
        Standard deviation of the kernel, µm (paper: 10 full pixels, 1.08 µm).
    working_um
        Size of a working pixel, µm.

    Returns
    -------
    float32 (y, x), transcripts per µm². A pixel's value depends on its surroundings of `reach_wpx` only, to the last bit.

    """
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(counts.astype(np.float64), sigma_um / working_um, mode="reflect", truncate=_TRUNCATE)
    return (blurred / working_um**2).astype(np.float32)


def reach_wpx(sigma_um: float, working_um: float) -> int:
    """How far a transcript is felt, working pixels."""
    return int(_TRUNCATE * sigma_um / working_um + 0.5)


def bin_edges() -> np.ndarray:
    """(BINS + 1,) edges of the histogram, transcripts per µm²."""
    return np.geomspace(LOWEST, HIGHEST, BINS + 1)


def density_histogram(values: np.ndarray) -> np.ndarray:
    """int64 (BINS + 1,): number of values that are zero (below `LOWEST`), then in each bin; values above `HIGHEST` go to the last."""
    place = np.searchsorted(bin_edges(), np.asarray(values, np.float64).ravel(), side="right")
    return np.bincount(np.minimum(place, BINS), minlength=BINS + 1)


def sparse(histogram: np.ndarray) -> dict[str, list[int]]:
    """Non-empty bins for JSON: `{"bins": [...], "counts": [...]}`."""
    filled = np.flatnonzero(histogram)
    return {"bins": filled.tolist(), "counts": histogram[filled].tolist()}


def dense(record: dict[str, Any]) -> np.ndarray:
    """Undo `sparse`."""
    histogram = np.zeros(BINS + 1, np.int64)
    histogram[np.asarray(record["bins"], np.int64)] = record["counts"]
    return histogram


def percentile(histogram: np.ndarray, percent: float) -> float:
    """Percentile of the density from a histogram: linear in the logarithm inside a bin; 0 when it falls among the zeros or nothing was counted."""
    total = int(histogram.sum())
    if total == 0:
        return 0.0
    wanted = percent / 100 * (total - 1) + 0.5
    above = np.cumsum(histogram)
    place = int(np.searchsorted(above, wanted))
    if place == 0:
        return 0.0
    low, high = bin_edges()[place - 1 : place + 1]
    share = (wanted - above[place - 1]) / histogram[place]
    return float(low * (high / low) ** share)


def count_percentile(counts: dict[int, int], percent: float) -> float:
    """Percentile of integers given as value → how often; equals numpy's of the full list. 0 without values."""
    if not counts:
        return 0.0
    values = np.array(sorted(counts))
    above = np.cumsum([counts[v] for v in values.tolist()])
    at = percent / 100 * (above[-1] - 1)
    lower, upper = (values[np.searchsorted(above, k, side="right")] for k in (np.floor(at), np.ceil(at)))
    # Rounded: a whole number of transcripts stays one.
    return round(float(lower + (upper - lower) * (at - np.floor(at))), 9)
