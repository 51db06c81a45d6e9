"""Where in a sample cells are flagged, and how many transcripts they hold: sums over squares, so that any number of cells makes a small map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from istseg.qc.summary import round_up

SQUARES = 72
"""Along the longer side, at most."""
MIN_SQUARE_UM = 10.0


def squares(obs: pd.DataFrame, xy_um: np.ndarray, size_um: tuple[float, float]) -> dict[str, Any]:
    """Cells by square.

    Parameters
    ----------
    obs
        With `qc_flag` and `n_transcripts`.
    xy_um
        (n, 2) centroids in µm from the mosaic's upper left corner; those outside are left out.
    size_um
        (height, width) of the mosaic.

    Returns
    -------
    `square_um` (a round number), and rows of numbers `cells`, `flagged` (not consistent), `transcripts`, from the top; empty without cells inside.
    """
    side = round_up(max(max(size_um) / SQUARES, MIN_SQUARE_UM))
    rows, columns = (max(int(np.ceil(n / side)), 1) for n in size_um)
    x, y = (xy_um // side).astype(np.int64).T
    inside = (xy_um >= 0).all(1) & (xy_um[:, 0] < size_um[1]) & (xy_um[:, 1] < size_um[0])
    if not inside.any():
        return {}
    at = y[inside] * columns + x[inside]

    def sums(values: np.ndarray) -> list[list[int]]:
        return np.bincount(at, values[inside], rows * columns).astype(np.int64).reshape(rows, columns).tolist()

    flagged = (obs["qc_flag"] != "consistent").to_numpy(float)
    return {
        "square_um": float(side),
        "cells": sums(np.ones(len(obs))),
        "flagged": sums(flagged),
        "transcripts": sums(obs["n_transcripts"].to_numpy(float)),
    }
