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
        # No gene is black: it would look like no transcript. The fourth value counts.
        self._weights = np.column_stack([DARKEST + (1 - DARKEST) * colours, np.ones(len(colours))]).astype(np.float32)

    def strips(self, box: Box, um_per_px: float) -> Iterator[np.ndarray]:
        """uint8 (rows, columns, 3) strips of a box (y0, x0, y1, x1) of pixels, `STRIP` rows each, top to bottom."""
        for top in range(box[0], box[2], STRIP):
            yield self._draw((top, box[1], min(top + STRIP, box[2]), box[3]), um_per_px)

    def picture(self, box: Box, um_per_px: float) -> np.ndarray:
        """uint8 (rows, columns, 3) of a box (y0, x0, y1, x1) of pixels of `um_per_px`, counted from the mosaic's top left corner."""
        return np.concatenate(list(self.strips(box, um_per_px)))

    def _draw(self, box: Box, um_per_px: float) -> np.ndarray:
        y0, x0, y1, x1 = box
        sigma = self._spot / um_per_px
        # A spot that is far smaller than a pixel is a point.
        margin = int(np.ceil(4 * sigma)) if sigma > 0.2 else 0
        table = self._points.between((y0 - margin) * um_per_px, (y1 + margin) * um_per_px)
        table = table[~table["is_control"]]
        row = np.floor(table["y_um"].to_numpy() / um_per_px).astype(np.int64) - (y0 - margin)
        column = np.floor(table["x_um"].to_numpy() / um_per_px).astype(np.int64) - (x0 - margin)
        shape = y1 - y0 + 2 * margin, x1 - x0 + 2 * margin
        inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        at, weights = row[inside] * shape[1] + column[inside], self._weights[table["code"].to_numpy()[inside]]
        sums = np.stack([np.bincount(at, w, shape[0] * shape[1]) for w in weights.T], -1).astype(np.float32).reshape(*shape, 4)
        if margin:
            sums = cv2.GaussianBlur(sums, (2 * margin + 1,) * 2, sigma, borderType=cv2.BORDER_CONSTANT)
            sums = sums[margin:-margin, margin:-margin]
        density = sums[..., 3:]
        colour = sums[..., :3] / np.maximum(density, 1e-6)
        bright = 1 - np.exp(-density / (um_per_px**2 * self._bright))
        return np.rint(255 * colour * bright).astype(np.uint8)
