"""Exact histograms of the grey values of every stain, gathered while the image streams."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future

import cv2
import numpy as np

_VALUES = 1 << 16
_PIECE = 1 << 21
"""Pixels of a stain that are counted at a time; the counts are exact in float32."""


class Histograms:
    """Histograms of uint16 grey values over the pixels that were imaged: those where any stain is above 0.

    Mosaics have areas that were never imaged; counting them would pull the percentiles down by the shape of the region.

    Parameters
    ----------
    n
        Number of stains.
    """

    def __init__(self, n: int):
        self.counts = np.zeros((n, _VALUES), np.int64)

    def add(self, strip: np.ndarray) -> None:
        """Add a strip (c, h, x) uint16."""
        for piece in _pieces(strip):
            self.counts += _counts(piece)

    def start(self, strip: np.ndarray, threads: Executor) -> list[Future[np.ndarray]]:
        """Let threads count a strip (c, h, x) uint16, for `finish`."""
        return [threads.submit(_counts, piece) for piece in _pieces(strip)]

    def finish(self, counting: list[Future[np.ndarray]]) -> None:
        """Add what threads count; the strip is free afterwards."""
        for counts in counting:
            self.counts += counts.result()

    @property
    def n_pixels(self) -> int:
        """Imaged pixels."""
        return int(self.counts[0].sum()) if len(self.counts) else 0

    def percentile(self, channel: int, q: float) -> float:
        """As `numpy.percentile` with linear interpolation; 0 without imaged pixels."""
        counts = self.counts[channel]
        total = int(counts.sum())
        if not total:
            return 0.0
        rank = (total - 1) * q / 100
        cumulative = np.cumsum(counts)
        low, high = (int(np.searchsorted(cumulative, r, side="right")) for r in (int(np.floor(rank)), int(np.ceil(rank))))
        return float(low + (high - low) * (rank - np.floor(rank)))

    def summary(self, channel: int, largest: int) -> dict[str, float]:
        """Fields `low`, `high`, `minimum`, `maximum`, `mean`, `saturated_fraction` of a stain; `largest` is the largest value of the raw type."""
        counts = self.counts[channel]
        there = np.flatnonzero(counts)
        total = max(int(counts.sum()), 1)
        return {
            "low": self.percentile(channel, 1),
            "high": self.percentile(channel, 99),
            "minimum": float(there[0]) if len(there) else 0.0,
            "maximum": float(there[-1]) if len(there) else 0.0,
            "mean": float(counts @ np.arange(_VALUES)) / total,
            "saturated_fraction": float(counts[largest]) / total,
        }


def _pieces(strip: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _PIECE // strip.shape[2])
    return (strip[:, y : y + rows] for y in range(0, strip.shape[1], rows))


def _counts(piece: np.ndarray) -> np.ndarray:
    """(c, 65536) int64 of the imaged pixels of a piece (c, h, x)."""
    # OpenCV needs no 64-bit copy as numpy's bincount does, and lets other threads run meanwhile.
    counts = np.stack([cv2.calcHist([plane], [0], None, [_VALUES], [0, _VALUES]).ravel() for plane in piece]).astype(np.int64)
    if counts[:, 0].all():
        counts[:, 0] -= piece[0].size - np.count_nonzero(np.bitwise_or.reduce(piece, axis=0))
    return counts
