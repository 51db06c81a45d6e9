"""Are the stains sharp, and do they jump where the instrument's fields of view meet? Measured on the converted image in pieces of bounded size, on squares
and lines that depend on the mosaic only: neither pixel size nor tiling changes what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import cv2
import numpy as np

from istseg.artifacts.sample import Sample, Stain
from istseg.converted import StainImage
from istseg.grid import Box
from istseg.tissue import SQUARE_UM, TissueGrid

SHARP_UM = 0.5
"""Largest pixel on which focus is measured: a coarser level of the image would hide what is sharp."""
STEP_UM = 0.3
"""Largest pixel on which steps are measured: the nearer the two sides of a border, the less tissue changes between them."""
SCALES_UM = (0.5, 1.0)
"""Standard deviations of the two Gaussians that the edges are looked at through."""
OUT_OF_FOCUS_UM = 1.25
"""Edge blur above which a square is out of focus. Squares of the sharp stains of public samples have 0 to 1.1 µm."""
LARGEST_BLUR_UM = 10.0
CONTRAST = 0.05
"""Share of the stain's range by which a square must vary to be measured: where nothing is stained nothing can be sharp."""
SEARCH_UM = 3.0
"""How far from its known place a border is sought: MERSCOPE's folder tells where fields lie by their transcripts only."""
LIT = 0.05
"""Mean light along a border, as share of the stain's range, from which a step can be told."""
_WIDEST_OVERLAP = 0.2
"""Two fields are neighbours when they overlap by at most this share of their side, or are apart by at most `_WIDEST_HOLE_UM`."""
_WIDEST_HOLE_UM = 2.0
_SHORTEST_UM = 24.0
_LEAST_GREY = 0.5
_BLOCK = 16
_MARGIN_UM = 4.0
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def measure(image: StainImage, sample: Sample, tissue: TissueGrid) -> list[dict[str, Any]]:
    """Focus and steps of each stain that the network is given.

    Returns
    -------
    Of each stain, nucleus stain first: `name`, `focus` (`focus`), `seams` (`seams`; None where fewer than two fields are known).
    """
    stains = [sample.nucleus, *sample.membranes]
    steps = seams(image, sample, stains) or [None] * len(stains)
    return [{"name": s.name, "focus": focus(image, sample, s, tissue), "seams": step} for s, step in zip(stains, steps, strict=True)]


def focus(image: StainImage, sample: Sample, stain: Stain, tissue: TissueGrid) -> dict[str, Any]:
    """Edge blur of a stain over the squares of tissue in which it shows something.

    Returns
    -------
    `blur_um` median over the squares, `out_of_focus` share of them above `OUT_OF_FOCUS_UM` (both None without a square), `n_squares`.
    """
    level = _level(image, sample, SHARP_UM)
    values = [blur for block in _blocks(tissue) for blur in _square_blurs(image, sample, stain, tissue, level, block)]
    blurs = np.array(values)
    return {
        "blur_um": float(np.median(blurs)) if len(blurs) else None,
        "out_of_focus": float((blurs > OUT_OF_FOCUS_UM).mean()) if len(blurs) else None,
        "n_squares": len(blurs),
    }


def edge_blur_um(fine: float, coarse: float, pixel_um: float) -> float:
    """Blur of step edges from the mean squared gradient seen through both `SCALES_UM`, without what noise adds; µm, at most `LARGEST_BLUR_UM`.

    The gradient is half the difference of the two neighbours, which looks at an edge through two more pixels.

    An edge of blur s looked at through a Gaussian of σ has the squared gradient ∝ 1 / sqrt(s² + σ²), so the ratio of the two gives s whatever the
    brightness [Zhuo and Sim 2011: edges blurred again]. Thin lines look sharper than they are, down to 0.
    """
    a, b = (scale**2 + pixel_um**2 / 3 for scale in SCALES_UM)
    if coarse <= 0 or fine <= coarse:
        return LARGEST_BLUR_UM
    ratio = (fine / coarse) ** 2
    return float(np.sqrt(np.clip((b - ratio * a) / (ratio - 1), 0, LARGEST_BLUR_UM**2)))


def _square_blurs(image: StainImage, sample: Sample, stain: Stain, tissue: TissueGrid, level: int, block: tuple[slice, slice]) -> Iterator[float]:
    """Edge blur of the squares of a block that lie in tissue, are whole, and show something."""
    height, width = image.shape(level)
    px = sample.size_um[0] / height
    step = SQUARE_UM / px
    margin = ceil(_MARGIN_UM / px)
    rows, columns = block
    y0, x0 = round(rows.start * step), round(columns.start * step)
    y1, x1 = min(round(rows.stop * step), height), min(round(columns.stop * step), width)
    outer: Box = max(y0 - margin, 0), max(x0 - margin, 0), min(y1 + margin, height), min(x1 + margin, width)
    pixels = image.read(stain.name, outer, level).astype(np.float32)
    (fine, _), (coarse, smooth) = (_gradient(pixels, scale / px) for scale in SCALES_UM)
    noise = np.abs(cv2.filter2D(pixels, -1, _NOISE))
    for row, column in np.argwhere(tissue.own[block]) + (rows.start, columns.start):
        top, left, bottom, right = (round(v * step) for v in (row, column, row + 1, column + 1))
        if bottom > height or right > width:
            continue
        square = np.s_[top - outer[0] : bottom - outer[0], left - outer[1] : right - outer[1]]
        # Median of |x| of a normal distribution is 0.6745 σ; the mask adds 36 variances [Immerkær 1996].
        variance = (np.median(noise[square][::2, ::2]) / 0.6745) ** 2 / 36
        # White noise behind a Gaussian of σ pixels has the variance 1 / (4 π σ²).
        grain = np.sqrt(variance / (4 * np.pi)) * px / SCALES_UM[1]
        if not smooth[square].std() > max(CONTRAST * (stain.high - stain.low), 3 * grain, _LEAST_GREY):
            continue
        yield edge_blur_um(*(float(e[square].mean()) - variance * _noise_gain(s / px) for e, s in zip((fine, coarse), SCALES_UM, strict=True)), px)


def _gradient(pixels: np.ndarray, sigma_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Squared gradient of (y, x) float32 pixels seen through a Gaussian, and what is seen through it."""
    side = 2 * ceil(3 * sigma_px) + 1
    smooth = cv2.GaussianBlur(pixels, (side, side), sigma_px, borderType=cv2.BORDER_REFLECT_101)
    down, right = np.zeros_like(smooth), np.zeros_like(smooth)
    down[1:-1] = (smooth[2:] - smooth[:-2]) / 2
    right[:, 1:-1] = (smooth[:, 2:] - smooth[:, :-2]) / 2
    return down**2 + right**2, smooth


@cache
def _noise_gain(sigma_px: float) -> float:
    """Mean squared gradient that white noise of variance 1 leaves behind the same Gaussian."""
    impulse = np.zeros((2 * ceil(3 * sigma_px) + 9,) * 2, np.float32)
    impulse[impulse.shape[0] // 2, impulse.shape[1] // 2] = 1
    return float(_gradient(impulse, sigma_px)[0].sum())


def _blocks(tissue: TissueGrid) -> Iterator[tuple[slice, slice]]:
    """Squares in blocks, those without tissue left out."""
    rows, columns = tissue.own.shape
    for row in range(0, rows, _BLOCK):
        for column in range(0, columns, _BLOCK):
            block = slice(row, min(row + _BLOCK, rows)), slice(column, min(column + _BLOCK, columns))
            if tissue.own[block].any():
                yield block


def _level(image: StainImage, sample: Sample, largest_um: float) -> int:
    """The coarsest level whose pixels are at most so large; the finest when none is."""
    return image.coarsest(sample.size_um[0] / largest_um)


@dataclass(frozen=True)
class _Border:
    """A straight border: `at` µm on the axis across it (0 = y), from `start` to `stop` on the other; it may lie `search` µm away."""

    across: int
    at: float
    start: float
    stop: float
    search: float


def seams(image: StainImage, sample: Sample, stains: list[Stain]) -> list[dict[str, Any]] | None:
    """Steps of the stains at borders between fields of view; None with fewer than two fields.

    Light is what lies above the stain's 1st percentile. The step of a line is (light just after it − light just before it) ÷ their mean, light summed along
    the line. A border's step is the largest absolute one of the lines within `SEARCH_UM` of its known place; what tissue does without a border is the same
    on as many lines on either side of these.

    Returns
    -------
    Of each stain `step` and `beside` (root mean squares over borders, which count by their length), `excess` = sqrt(step² − beside²), 0 at least: what the
    borders add; all None without a border that is lit; `border_um`, length of those that are.
    """
    boxes = sample.field_boxes_px * sample.pixel_size_um
    if len(boxes) < 2:
        return None
    level = _level(image, sample, STEP_UM)
    px = sample.size_um[0] / image.shape(level)[0]
    found: list[list[tuple[float, float, float]]] = [[] for _ in stains]
    for border in _borders(boxes):
        rows, columns = _around(border, px, image.shape(level))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        block = np.stack([image.read(s.name, (rows.start, columns.start, rows.stop, columns.stop), level) for s in stains])
        turned = block if border.across == 0 else block.swapaxes(1, 2)
        first = (rows, columns)[border.across].start
        for steps, pixels, stain in zip(found, turned, stains, strict=True):
            if pair := _largest_steps(pixels, turned.any(0), stain, border.at / px - first, border.search / px):
                steps.append((*pair, border.stop - border.start))
    return [_over_borders(np.array(steps).reshape(-1, 3)) for steps in found]


def _over_borders(steps: np.ndarray) -> dict[str, Any]:
    """Figures of a stain from (n, 3): step, step beside, length of each border."""
    if not len(steps):
        return {"step": None, "beside": None, "excess": None, "border_um": 0.0}
    step, beside = np.average(steps[:, :2] ** 2, axis=0, weights=steps[:, 2])
    return {
        "step": float(np.sqrt(step)),
        "beside": float(np.sqrt(beside)),
        "excess": float(np.sqrt(max(step - beside, 0))),
        "border_um": float(steps[:, 2].sum()),
    }


def _borders(boxes: np.ndarray) -> Iterator[_Border]:
    """Borders between neighbours among (n, 4) y0, x0, y1, x1 in µm."""
    for box in boxes:
        for across in (0, 1):
            along = 1 - across
            side = box[across + 2] - box[across]
            start, stop = np.maximum(box[along], boxes[:, along]), np.minimum(box[along + 2], boxes[:, along + 2])
            overlap = box[across + 2] - boxes[:, across]
            after = (
                (boxes[:, across] > box[across])
                & (boxes[:, across + 2] > box[across + 2])
                & (overlap <= _WIDEST_OVERLAP * side)
                & (overlap >= -_WIDEST_HOLE_UM)
            )
            for other in np.flatnonzero(after & (stop - start >= _SHORTEST_UM)):
                at = (box[across + 2] + boxes[other, across]) / 2
                yield _Border(across, float(at), float(start[other]), float(stop[other]), float(SEARCH_UM + abs(overlap[other]) / 2))


def _around(border: _Border, px: float, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a level that hold a border and what lies beside it."""
    reach = 3 * border.search
    ends = [(border.at - reach, border.at + reach), (border.start, border.stop)]
    ys, xs = ends if border.across == 0 else ends[::-1]
    return tuple(slice(max(round(low / px) - 2, 0), min(round(high / px) + 3, n)) for (low, high), n in zip((ys, xs), shape, strict=True))


def _largest_steps(pixels: np.ndarray, imaged: np.ndarray, stain: Stain, at: float, search: float) -> tuple[float, float] | None:
    """Largest step near a border and the mean of the largest on either side of it; None where it is not lit.

    Parameters
    ----------
    pixels
        (across, along) grey values.
    imaged
        bool, the same shape.
    at, search
        Place of the border on the axis across and reach around it, pixels.
    """
    span = stain.high - stain.low
    # Fields may lie apart by some pixels that nobody imaged: what lies before and after them is compared, without the pixels that are only partly imaged.
    imaged = cv2.erode(imaged.astype(np.uint8), np.ones((3, 1), np.uint8), borderType=cv2.BORDER_REPLICATE) > 0
    rows = np.flatnonzero(imaged.mean(1) > 0.5)
    light, imaged = np.clip(pixels[rows].astype(np.float32) - stain.low, 0, span), imaged[rows]
    # The pixel before a pixel against the one after it: a border that cuts a pixel has whole ones on either side.
    whole = imaged[:-2] & imaged[2:]
    near, far = (light[:-2] * whole).sum(1), (light[2:] * whole).sum(1)
    mean, n = (near + far) / 2, whole.sum(1)
    away = (rows[:-2] + rows[2:]) / 2 + 0.5 - at
    lit = (n * 2 >= pixels.shape[1]) & (mean > LIT * span * n) & (span > 0)
    step = np.abs(far - near) / np.where(lit, mean, 1)
    here, before, after = (step[lit & (low < away) & (away <= high)] for low, high in ((-search, search), (-3 * search, -search), (search, 3 * search)))
    if not len(here) or not len(before) or not len(after):
        return None
    return float(here.max()), float((before.max() + after.max()) / 2)
