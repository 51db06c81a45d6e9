"""Where CosMx fields of view (FOVs) lie, and how their images lie against their transcripts: inferred from the data, then checked.

Exports differ: `y_global` grows with or against `y_local`, and images are flipped, rotated or shifted against the points. So the
sign and offset of `global` against `local` come from the transcripts, and the flip from vendor labels: the right one is that under which the label
below a transcript is its vendor `cell_ID`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from istseg.raw.agreement import FLIPS

MIN_AGREEMENT = 0.9
"""A good sample scores 98.9 %, a mismatched one 44 to 78 %."""
FOVS_TESTED = 4
_ROWS_PER_FOV = 20_000
_MIN_ROWS = 30
_MAX_RESIDUAL_PX = 2.0
MAX_SPREAD_PX = 5.0


@dataclass
class LocalRows:
    """A sample of transcripts as numpy columns: `fov`, `cell` (0 = none), local coordinates, global ones (None when the table lacks them)."""

    fov: np.ndarray
    cell: np.ndarray
    x: np.ndarray
    y: np.ndarray
    x_global: np.ndarray | None
    y_global: np.ndarray | None

    def of(self, fov: int) -> np.ndarray:
        """Rows of a FOV, at most 20,000 evenly spaced ones."""
        rows = np.flatnonzero(self.fov == fov)
        return rows[:: max(1, -(-len(rows) // _ROWS_PER_FOV))]


@dataclass
class AxisFit:
    """`global = sign · local + offset` of one axis, and the offset of each FOV that had enough rows."""

    sign: int
    offsets: dict[int, float]
    problems: list[str] = field(default_factory=list)


def fit_axis(axis: str, local: np.ndarray, world: np.ndarray, fov: np.ndarray) -> AxisFit:
    """Fit sign and offsets of an axis."""
    signs, offsets, bad = [], {}, []
    for number in np.unique(fov):
        rows = fov == number
        a, b = local[rows], world[rows]
        good = np.isfinite(a) & np.isfinite(b)
        a, b = a[good], b[good]
        if len(a) < _MIN_ROWS or np.ptp(a) < 20:
            continue
        slope = float(np.cov(a, b)[0, 1] / a.var(ddof=1))
        sign = 1 if slope > 0 else -1
        offset = float(np.median(b - sign * a))
        residual = float(np.percentile(np.abs(b - sign * a - offset), 95))
        # In this form values beyond float64, which give NaN, are bad too.
        if not (abs(abs(slope) - 1) <= 0.02 and residual <= _MAX_RESIDUAL_PX):
            bad.append(f"FOV {number}: slope {slope:.3f}, residual {residual:.1f} px")
            continue
        signs.append(sign)
        offsets[int(number)] = offset
    if bad:
        return AxisFit(0, {}, [f"{axis}_global_px is not {axis}_local_px plus or minus an offset ({'; '.join(bad[:3])})."])
    if signs and len(set(signs)) > 1:
        return AxisFit(0, {}, [f"{axis}_global_px grows with {axis}_local_px in some fields of view and against it in others."])
    return AxisFit(signs[0] if signs else 0, offsets)


def shift_of(offsets: dict[int, float], positions: dict[int, float]) -> tuple[float, float, float]:
    """Offset of the transcripts against the positions: median, spread (largest deviation), number of FOVs compared."""
    shared = [offsets[f] - positions[f] for f in offsets if f in positions]
    if not shared:
        return 0.0, 0.0, 0
    middle = float(np.median(shared))
    return middle, float(np.max(np.abs(np.asarray(shared) - middle))), len(shared)


def pixel_um(offsets: list[dict[int, float]], positions: dict[int, tuple[float, float]]) -> float | None:
    """µm per pixel from positions in mm against offsets in pixels, over both axes."""
    px, mm = [], []
    for axis, fitted in enumerate(offsets):
        shared = [f for f in fitted if f in positions]
        if len(shared) > 1:
            a, b = np.array([fitted[f] for f in shared]), np.array([positions[f][axis] for f in shared])
            px.append(a - a.mean())
            mm.append(b - b.mean())
    if not px or np.abs(np.concatenate(px)).max() < 50:
        return None
    a, b = np.concatenate(px), np.concatenate(mm)
    slope = abs(float(a @ b / (a @ a))) * 1000
    return slope if 0.01 <= slope <= 5 else None


def label_agreement(rows: LocalRows, labels: dict[int, Any], read_labels: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Share of the assigned transcripts whose label is their vendor cell, under each flip.

    Parameters
    ----------
    rows
        Sample of the transcripts.
    labels
        FOVs that have a label image.
    read_labels
        FOV → (y, x) integers.

    Returns
    -------
    {flip: share} over the tested FOVs (empty when there is nothing to test), and {FOV: share} under the best flip.
    """
    assigned = rows.cell > 0
    counts = {int(f): int(n) for f, n in zip(*np.unique(rows.fov[assigned], return_counts=True), strict=True) if int(f) in labels and n >= _MIN_ROWS}
    tested = sorted(counts, key=lambda f: (-counts[f], f))[:FOVS_TESTED]
    hits = {name: [] for name in FLIPS}
    totals = []
    for fov in tested:
        image = read_labels(fov)
        picked = rows.of(fov)
        picked = picked[rows.cell[picked] > 0]
        totals.append(len(picked))
        for name in FLIPS:
            row, column = image_position(rows.x[picked], rows.y[picked], name, image.shape)
            r, c = np.floor(row).astype(int), np.floor(column).astype(int)
            inside = (r >= 0) & (r < image.shape[0]) & (c >= 0) & (c < image.shape[1])
            hits[name].append(int((image[r[inside], c[inside]] == rows.cell[picked][inside]).sum()))
    if not sum(totals):
        return {}, {}
    shares = {name: sum(h) / sum(totals) for name, h in hits.items()}
    best = max(shares, key=lambda n: shares[n])
    return shares, {str(f): h / n for f, h, n in zip(tested, hits[best], totals, strict=True) if n}


def image_position(x: np.ndarray, y: np.ndarray, flip: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Continuous (row, column) in the image of local coordinates, `shape` (height, width) in table pixels."""
    rows, columns = FLIPS[flip]
    return (shape[0] - y if rows else y), (shape[1] - x if columns else x)


@dataclass
class Placement:
    """Where FOVs lie in the mosaic.

    Attributes
    ----------
    origin_px
        FOV → (y, x) of the upper left corner, mosaic pixels; FOVs without image may lie outside the mosaic.
    frame
        (height, width) of a FOV in table pixels.
    flip
        Key of `agreement.FLIPS`: how image rows and columns run against local coordinates.
    scale
        Image pixels per table pixel (below 1 when images are binned).
    """

    origin_px: dict[int, tuple[int, int]]
    frame: tuple[int, int]
    flip: str
    scale: float
    height_px: int
    width_px: int

    def mosaic_px(self, fov: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Continuous mosaic pixel (x, y) of local coordinates; NaN where the FOV has no position."""
        known = np.array(sorted(self.origin_px), int)
        if not len(known):
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        origins = np.array([self.origin_px[f] for f in known], float)
        index = np.clip(np.searchsorted(known, fov), 0, len(known) - 1)
        row, column = image_position(x, y, self.flip, self.frame)
        missing = known[index] != fov
        px, py = column * self.scale + origins[index, 1], row * self.scale + origins[index, 0]
        px[missing], py[missing] = np.nan, np.nan
        return px, py


def place(
    offsets_x: dict[int, float],
    offsets_y: dict[int, float],
    signs: tuple[int, int],
    flip: str,
    frame: tuple[int, int],
    image: tuple[int, int],
    with_image: set[int],
) -> Placement:
    """Lay the FOVs out as their images lie: images are never turned, the mosaic's axes follow them.

    Parameters
    ----------
    offsets_x, offsets_y
        FOV → global coordinate (table pixels) of local 0.
    signs
        Of global against local, (x, y).
    flip
        Key of `agreement.FLIPS`.
    frame, image
        (height, width) of a FOV in table pixels and of its image.
    with_image
        FOVs that span the mosaic.
    """
    rows, columns = FLIPS[flip]
    scale = image[0] / frame[0]
    towards_x, towards_y = signs[0] * (-1 if columns else 1), signs[1] * (-1 if rows else 1)
    corners = {}
    for fov in offsets_x:
        x = offsets_x[fov] + (signs[0] * frame[1] if columns else 0)
        y = offsets_y[fov] + (signs[1] * frame[0] if rows else 0)
        corners[fov] = towards_y * y * scale, towards_x * x * scale
    top = min(corners[f][0] for f in with_image)
    left = min(corners[f][1] for f in with_image)
    origin = {f: (int(np.floor(y - top + 0.5)), int(np.floor(x - left + 0.5))) for f, (y, x) in corners.items()}
    height = max(origin[f][0] for f in with_image) + image[0]
    width = max(origin[f][1] for f in with_image) + image[1]
    return Placement(origin, frame, flip, scale, height, width)
