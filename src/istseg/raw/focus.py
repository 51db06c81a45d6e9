"""The best focused plane of a stack, decided on a bounded sample of blocks."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

BLOCK = 256
CANDIDATES = 6  # per side
BLOCKS = 12
BLUR_SIGMA = 1.5
"""Shot noise is as sharp in every plane; this blur leaves the edges of nuclei and removes most of it."""

ReadBlock = Callable[[int, int, int, int, int], np.ndarray]


def best_plane(read: ReadBlock, planes: list[int], height: int, width: int) -> tuple[int, dict[str, float]]:
    """Plane with the highest normalised variance of the Laplacian (Pech-Pacheco et al. 2000, normalised by the squared mean).

    Parameters
    ----------
    read
        `(plane, y0, y1, x0, x1)` → (h, w) grey values of the nucleus stain.
    planes
        Planes to choose from.
    height, width
        Of the mosaic, pixels.

    Returns
    -------
    The plane (the one nearest the middle on a tie), and plane → sharpness relative to the sharpest plane of each block, mean over the blocks.
    """
    middle = planes[len(planes) // 2]
    if len(planes) == 1:
        return middle, {str(middle): 1.0}
    boxes = _sample_boxes(read, middle, height, width)
    scores = np.zeros(len(planes))
    for box in boxes:
        sharpness = np.array([_sharpness(read(plane, *box)) for plane in planes])
        if sharpness.max() > 0:
            scores += sharpness / sharpness.max()
    scores /= max(len(boxes), 1)
    ties = np.flatnonzero(scores >= scores.max() - 1e-12)
    best = min(ties, key=lambda i: abs(i - len(planes) // 2))
    return planes[best], {str(p): round(float(s), 4) for p, s in zip(planes, scores, strict=True)}


def _sample_boxes(read: ReadBlock, plane: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
    side_y, side_x = min(BLOCK, height), min(BLOCK, width)
    ys = np.unique(np.linspace(0, height - side_y, CANDIDATES).astype(int))
    xs = np.unique(np.linspace(0, width - side_x, CANDIDATES).astype(int))
    boxes = [(int(y), int(y + side_y), int(x), int(x + side_x)) for y in ys for x in xs]
    # Blocks with nuclei: the largest spread of grey values, not the brightest (debris is bright and flat).
    spread = [float(np.subtract(*np.percentile(read(plane, *box), [95, 5]))) for box in boxes]
    order = np.argsort(np.asarray(spread), kind="stable")[::-1][:BLOCKS]
    return [boxes[i] for i in order if spread[i] > 0] or boxes[:1]


def _sharpness(block: np.ndarray) -> float:
    pixels = block.astype(np.float32)
    mean = float(pixels.mean())
    if mean <= 0:
        return 0.0
    smooth = cv2.GaussianBlur(pixels, (0, 0), BLUR_SIGMA, borderType=cv2.BORDER_REFLECT)
    return float(cv2.Laplacian(smooth, cv2.CV_32F).var()) / mean**2
