"""Pictures of transcripts in the colours of their genes, for the eye [paper: Co-expression visualization, Fig. 2]."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from istseg.converted import Points
from istseg.grid import Box

STRIP = 512
"""Rows that are drawn at once."""
DARKEST = 0.2
"""Drawn for a colour's 0."""


def weights(colours: np.ndarray) -> np.ndarray:
    """(genes, 4) float32 of colours (genes, 3) in 0…1, for `paint`: no gene is black, it would look like no transcript; the fourth value counts."""
    return np.column_stack([DARKEST + (1 - DARKEST) * colours, np.ones(len(colours))]).astype(np.float32)


def paint(row: np.ndarray, column: np.ndarray, weight: np.ndarray, shape: tuple[int, int], sigma: float, full: float) -> np.ndarray:
    """Draw transcripts.

    Parameters
    ----------
    row, column
        (n,) int64 pixel of each transcript; those outside are left out.
    weight
        (n, 4) `weights` of their genes.
    sigma
        Standard deviation of a spot in pixels; 0: a point.
    full
        Transcripts per pixel at which a pixel has 63 % of its full brightness.

    Returns
    -------
    uint8 (rows, columns, 3).
    """
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    at = row[inside] * shape[1] + column[inside]
    sums = np.stack([np.bincount(at, w, shape[0] * shape[1]) for w in weight[inside].T], -1).astype(np.float32).reshape(*shape, 4)
    if sigma:
        sums = cv2.GaussianBlur(sums, (2 * reach(sigma) + 1,) * 2, sigma, borderType=cv2.BORDER_CONSTANT)
    density = sums[..., 3:]
    colour = sums[..., :3] / np.maximum(density, 1e-6)
    return np.rint(255 * colour * (1 - np.exp(-density / full))).astype(np.uint8)


def reach(sigma: float) -> int:
    """Pixels that a spot reaches."""
    return int(np.ceil(4 * sigma))


class RnaView:
    """Draws boxes of a sample at any size of a pixel.

    A pixel has the mean colour of the transcripts around it, weighted by a Gaussian, and is brighter the denser they lie. Where two boxes overlap their
    pixels are equal.

    Parameters
    ----------
    points
        Transcripts of the sample.
    colours
        (genes, 3) 0…1, in the order of the sample's genes.
    spot_um
        Standard deviation of a transcript's spot, µm.
    bright
        Transcripts per µm² at which a pixel has 63 % of its full brightness.
    """

    def __init__(self, points: Points, colours: np.ndarray, spot_um: float, bright: float):
        self._points, self._spot, self._bright = points, spot_um, bright
        self._weights = weights(colours)

    def strips(self, box: Box, um_per_px: float) -> Iterator[np.ndarray]:
        """uint8 (rows, columns, 3) strips of a box (y0, x0, y1, x1) of pixels, `STRIP` rows each, top to bottom."""
        for top in range(box[0], box[2], STRIP):
            yield self._draw((top, box[1], min(top + STRIP, box[2]), box[3]), um_per_px)

    def picture(self, box: Box, um_per_px: float) -> np.ndarray:
        """uint8 (rows, columns, 3) of a box (y0, x0, y1, x1) of pixels of `um_per_px`, counted from the mosaic's top left corner."""
        return np.concatenate(list(self.strips(box, um_per_px)))

    def _draw(self, box: Box, um_per_px: float) -> np.ndarray:
        y0, x0, y1, x1 = box
        # A spot that is far smaller than a pixel is a point.
        sigma = self._spot / um_per_px if self._spot > 0.2 * um_per_px else 0.0
        margin = reach(sigma)
        table = self._points.between((y0 - margin) * um_per_px, (y1 + margin) * um_per_px)
        table = table[~table["is_control"]]
        row = np.floor(table["y_um"].to_numpy() / um_per_px).astype(np.int64) - (y0 - margin)
        column = np.floor(table["x_um"].to_numpy() / um_per_px).astype(np.int64) - (x0 - margin)
        shape = y1 - y0 + 2 * margin, x1 - x0 + 2 * margin
        drawn = paint(row, column, self._weights[table["code"].to_numpy()], shape, sigma, um_per_px**2 * self._bright)
        return drawn[margin : shape[0] - margin, margin : shape[1] - margin]
