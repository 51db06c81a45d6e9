"""Where a sample holds tissue: decided once per sample on a coarse grid, so that it does not depend on the tiling.

A square of 24 µm is tissue when it holds enough transcripts or when the nucleus stain clearly rises above the sample's background in it. Tissue is then
grown by one square, so that the cells at its border are seen whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from istseg.grid import Box
from istseg.resample import area_average, taps

SQUARE_UM = 24.0
BLOCKS = 8
"""Blocks along a square: the stain is averaged over blocks of 3 µm, half a nucleus, so that neither noise nor single hot pixels look like one."""
RISE = 0.2
"""Share of the way from background to the sample's 99th percentile that the brightest block of a square must reach."""

_SQUARES_PER_STRIP = 16


@dataclass(frozen=True)
class TissueGrid:
    """Squares with tissue.

    Attributes
    ----------
    own
        bool (rows, columns): squares that hold tissue themselves.
    mask
        bool (rows, columns): those and their eight neighbours.
    size_um
        (height, width) of the mosaic.

    """

    own: np.ndarray
    mask: np.ndarray
    size_um: tuple[float, float]

    @property
    def fraction(self) -> float:
        """Share of the mosaic's area that lies in squares of `own`."""
        height, width = (_edge_lengths(n, size) for n, size in zip(self.own.shape, self.size_um, strict=True))
        return float((height @ self.own @ width) / (height.sum() * width.sum()))

    def touches(self, box: Box, working_um: float) -> bool:
        """Whether a box of working pixels touches a square of `mask`."""
        y0, x0, y1, x1 = (v * working_um / SQUARE_UM for v in box)
        return bool(self.mask[floor(y0) : ceil(y1), floor(x0) : ceil(x1)].any())


def grid_shape(size_um: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns of squares on a mosaic of (height, width) µm."""
    return max(ceil(size_um[0] / SQUARE_UM), 1), max(ceil(size_um[1] / SQUARE_UM), 1)


def find_tissue(transcripts: np.ndarray, stained: np.ndarray, min_transcripts: int, size_um: tuple[float, float]) -> TissueGrid:
    """Combine both signs of tissue: int `transcripts` and bool `stained` (rows, columns) of the squares of a mosaic of `size_um` (height, width)."""
    from scipy.ndimage import binary_dilation

    own = (transcripts >= min_transcripts) | stained
    return TissueGrid(own, binary_dilation(own, np.ones((3, 3), bool)), size_um)


def count_in_squares(y_um: np.ndarray, x_um: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """int64 (rows, columns): points in each square; y and x are µm from the mosaic's top left corner, points outside are left out."""
    row, column = np.floor(y_um / SQUARE_UM).astype(np.int64), np.floor(x_um / SQUARE_UM).astype(np.int64)
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    return np.bincount(row[inside] * shape[1] + column[inside], minlength=shape[0] * shape[1]).reshape(shape)


def stained_squares(read: Callable[[Box], np.ndarray], level_shape: tuple[int, int], size_um: tuple[float, float], high: float) -> np.ndarray:
    """Squares in which the nucleus stain rises above the sample's background.

    The background is the 5th percentile, over the squares that were imaged, of the median of their blocks; squares of zeros only were not imaged.

    Parameters
    ----------
    read
        Gives the (y, x) pixels of a box of a pyramid level of the nucleus stain.
    level_shape
        (height, width) of that level.
    size_um
        (height, width) of the mosaic.
    high
        99th percentile of the stain over the sample, grey values.

    Returns
    -------
    bool (rows, columns).

    """
    rows, columns = grid_shape(size_um)
    brightest = np.zeros((rows, columns), np.float32)
    median = np.full((rows, columns), np.nan, np.float32)
    block_um = SQUARE_UM / BLOCKS
    factors = [block_um * n / um for n, um in zip(level_shape, size_um, strict=True)]
    counts = [max(ceil(um / block_um - 1e-6), 1) for um in size_um]
    column_taps = taps(0, counts[1], factors[1], level_shape[1])
    for first in range(0, rows, _SQUARES_PER_STRIP):
        last = min(first + _SQUARES_PER_STRIP, rows)
        index, weight = taps(first * BLOCKS, min(last * BLOCKS, counts[0]), factors[0], level_shape[0])
        top, bottom = int(index.min()), int(index.max()) + 1
        blocks = area_average(read((top, 0, bottom, level_shape[1])), (index - top, weight), column_taps)
        padded = np.full(((last - first) * BLOCKS, columns * BLOCKS), np.nan, np.float32)
        padded[: blocks.shape[0], : blocks.shape[1]] = np.where(blocks > 0, blocks, np.nan)
        squares = padded.reshape(last - first, BLOCKS, columns, BLOCKS).swapaxes(1, 2).reshape(last - first, columns, BLOCKS * BLOCKS)
        imaged = ~np.isnan(squares).all(-1)
        brightest[first:last][imaged] = np.nanmax(squares[imaged], axis=-1)
        median[first:last][imaged] = np.nanmedian(squares[imaged], axis=-1)
    if np.isnan(median).all():
        return np.zeros((rows, columns), bool)
    background = float(np.nanpercentile(median, 5))
    if high <= background:
        return np.zeros((rows, columns), bool)
    return brightest > background + RISE * (high - background)


def _edge_lengths(n: int, size_um: float) -> np.ndarray:
    return np.minimum(size_um - np.arange(n) * SQUARE_UM, SQUARE_UM)
