"""Where in a sample cells are flagged, agree, and how many transcripts they hold: sums over squares, so that any number of cells makes a small map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from istseg.qc.summary import round_up

SQUARES = 72
"""Along the longer side, at most."""
MIN_SQUARE_UM = 50.0
"""About twenty cells: fewer make a share a matter of chance."""


def over_squares(xy_um: np.ndarray, size_um: tuple[float, float], values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Sums of values of cells by square.

    Parameters
    ----------
    xy_um
        (n, 2) centroids in µm from the mosaic's upper left corner; those outside are left out.
    size_um
        (height, width) of the mosaic.
    values
        Name → (n,) whole numbers of each cell.

    Returns
    -------
    `square_um` (a round number), `cells` and the sums by name, each as rows from the top; empty without cells inside.
    """
    side = round_up(max(max(size_um) / SQUARES, MIN_SQUARE_UM))
    rows, columns = (max(int(np.ceil(n / side)), 1) for n in size_um)
    inside = (xy_um >= 0).all(1) & (xy_um[:, 0] < size_um[1]) & (xy_um[:, 1] < size_um[0])
    if not inside.any():
        return {}
    x, y = (xy_um[inside] // side).astype(np.int64).T
    at = y * columns + x
    summed = {name: np.bincount(at, np.asarray(v, float)[inside], rows * columns) for name, v in {"cells": np.ones(len(xy_um)), **values}.items()}
    return {"square_um": float(side), **{name: v.astype(np.int64).reshape(rows, columns).tolist() for name, v in summed.items()}}
