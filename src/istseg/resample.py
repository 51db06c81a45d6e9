"""From full to working resolution by exact area averaging, the same for a pixel in whichever tile it is computed.

Working pixel i covers the full pixels [i·f, (i+1)·f), f = working / full size of a pixel (any positive number). Its value is the average of what it covers;
a partly covered full pixel counts with its covered share, and what lies outside the mosaic does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np

from istseg.errors import InputError
from istseg.grid import Box, WindowGrid

_STRIP_FULL_ROWS = 2048
_TOLERANCE = 1e-6


def working_size(n_full: int, factor: float) -> int:
    """Number of working pixels that cover `n_full` full pixels; a remainder of less than a millionth of a pixel makes no pixel of its own."""
    return max(ceil(n_full / factor - _TOLERANCE), 1)


def sample_grid(height_px: int, width_px: int, factor: float, working_um: float, overlap_um: float) -> WindowGrid:
    """The grid of a sample.

    Parameters
    ----------
    height_px, width_px
        Full-resolution mosaic.
    factor
        Full-resolution pixels per working pixel.
    working_um, overlap_um
        Size of a working pixel and overlap of neighbouring windows, µm.

    Raises
    ------
    InputError
        If the overlap is wider than half a window.
    """
    try:
        return WindowGrid(working_size(height_px, factor), working_size(width_px, factor), 2 * round(overlap_um / working_um / 2))
    except ValueError as error:
        raise InputError(f"overlap_um {overlap_um} at working_um {working_um}: {error}. Choose a smaller overlap or larger working pixels.") from None


def taps(start: int, stop: int, factor: float, n_full: int) -> tuple[np.ndarray, np.ndarray]:
    """Full pixels under the working pixels `start`…`stop`.

    Returns
    -------
    index, weight
        int64 and float32, (stop − start, t): full pixel and its share; weights sum to 1. Unused taps have the weight 0 and a valid index.

    """
    pixel = np.arange(start, stop, dtype=np.int64)
    lower = np.minimum(pixel * factor, n_full - _TOLERANCE)
    upper = np.minimum((pixel + 1) * factor, float(n_full))
    index = np.floor(lower).astype(np.int64)[:, None] + np.arange(ceil(factor) + 1)
    weight = np.clip(np.minimum(index + 1, upper[:, None]) - np.maximum(index, lower[:, None]), 0, None)
    weight /= weight.sum(1, keepdims=True)
    return np.minimum(index, n_full - 1), weight.astype(np.float32)


def area_average(plane: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Average a plane.

    Parameters
    ----------
    plane
        (y, x) full pixels.
    rows, columns
        `taps` with indices into `plane`.

    Returns
    -------
    float32 (rows, columns). The order of the additions depends on the tap's number only, so the result does not depend on how the mosaic is cut.

    """
    index, weight = rows
    down = np.zeros((len(index), plane.shape[1]), np.float32)
    for tap in range(index.shape[1]):
        down += plane[index[:, tap]] * weight[:, tap, None]
    index, weight = columns
    # Whole rows are gathered faster than columns.
    turned = np.ascontiguousarray(down.T)
    result = np.zeros((len(index), len(down)), np.float32)
    for tap in range(index.shape[1]):
        result += turned[index[:, tap]] * weight[:, tap, None]
    return np.ascontiguousarray(result.T)


def working_image(read: Callable[[Box], np.ndarray], box: Box, factor: float, full_shape: tuple[int, int]) -> np.ndarray:
    """Part of one stain at working resolution, read in strips so that memory holds a strip of full pixels only.

    Parameters
    ----------
    read
        Gives the (y, x) full pixels of a box of full pixels.
    box
        (y0, x0, y1, x1) in working pixels, inside the mosaic.
    factor
        Full pixels per working pixel.
    full_shape
        (height, width) of the mosaic in full pixels.

    Returns
    -------
    uint16 (y, x), rounded to the nearest grey value.

    """
    y0, x0, y1, x1 = box
    height, width = full_shape
    column_index, column_weight = taps(x0, x1, factor, width)
    left, right = int(column_index.min()), int(column_index.max()) + 1
    columns = column_index - left, column_weight
    step = max(int(_STRIP_FULL_ROWS / factor), 1)
    result = np.empty((y1 - y0, x1 - x0), np.uint16)
    for first in range(y0, y1, step):
        last = min(first + step, y1)
        row_index, row_weight = taps(first, last, factor, height)
        top, bottom = int(row_index.min()), int(row_index.max()) + 1
        plane = read((top, left, bottom, right))
        averaged = area_average(plane, (row_index - top, row_weight), columns)
        result[first - y0 : last - y0] = np.rint(averaged).astype(np.uint16)
    return result
