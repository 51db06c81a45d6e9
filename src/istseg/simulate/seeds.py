"""Where cells lie and what they are: layout of the slide and hard-core seeds, block by block."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import norm

from istseg.grid import Box
from istseg.simulate.panel import TYPES, ZONES, parameter
from istseg.simulate.randomness import Field, generator

PIXEL_UM = 0.216
"""Pixel of the tissue's geometry: two MERSCOPE pixels, finer than the optical resolution."""
BLOCK_PX = 512
BLOCK_UM = BLOCK_PX * PIXEL_UM
EXTENT_UM = 17.0
"""No cell reaches further from its seed."""
_MARGIN_PX = 112
_CANDIDATES = 1500
_BATCH = 200
_MAX_AXIS_UM = 11.0
_CORNER_SHARE = 0.65  # of the empty area; the rest are holes inside the tissue

Cells = dict[str, np.ndarray]


def block_box(by: int, bx: int) -> Box:
    """Box of a block in geometry pixels. The lattice begins outside of the mosaic, so that cells at its edge are whole."""
    y, x = by * BLOCK_PX - _MARGIN_PX, bx * BLOCK_PX - _MARGIN_PX
    return y, x, y + BLOCK_PX, x + BLOCK_PX


def blocks_of(box: Box) -> Box:
    """Blocks [by0, by1) × [bx0, bx1) that a box in geometry pixels touches, as (by0, bx0, by1, bx1)."""
    y0, x0, y1, x1 = (v + _MARGIN_PX for v in box)
    return y0 // BLOCK_PX, x0 // BLOCK_PX, -(-y1 // BLOCK_PX), -(-x1 // BLOCK_PX)


def grow(box: Box, by: int) -> Box:
    """The box, wider by so many pixels on every side."""
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


class Layout:
    """Which parts of the slide are empty and which tissue zone lies where.

    Parameters
    ----------
    width_um, height_um
        Size of the mosaic.
    empty_fraction
        Expected share of its area without tissue: a corner (bottom right) and holes.
    """

    def __init__(self, seed: int, width_um: float, height_um: float, empty_fraction: float):
        self.width, self.height = width_um, height_um
        self.blocks = tuple(-(-(int(np.ceil(size / PIXEL_UM)) + 2 * _MARGIN_PX) // BLOCK_PX) for size in (height_um, width_um))
        corner = _CORNER_SHARE * empty_fraction
        self._cut = np.sqrt(2 * corner) if corner <= 0.5 else 2 - np.sqrt(2 * (1 - corner))
        self._slope = np.hypot(1 / width_um, 1 / height_um)
        self._hole = norm.ppf(1 - (empty_fraction - corner) / (1 - corner))
        self._edge = Field(seed, "edge", 12.0)
        self._holes = (Field(seed, "holes", 16.0), Field(seed, "holes", 4.0, 1))
        self._zones = (Field(seed, "zone", 34.0), Field(seed, "zone2", 34.0))

    def holds(self, by: int, bx: int) -> bool:
        """Whether the block can matter for the mosaic; the others are empty."""
        return 0 <= by < self.blocks[0] and 0 <= bx < self.blocks[1]

    def empty_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) bool."""
        return self._empty(x, y, self._edge.at(x, y), _octaves(*(hole.at(x, y) for hole in self._holes)))

    def empty_grid(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(len(y), len(x)) bool."""
        return self._empty(x[None, :], y[:, None], self._edge.grid(y, x), _octaves(*(hole.grid(y, x) for hole in self._holes)))

    def zone_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Index into ZONES, (n,)."""
        first, second = (zone.at(x, y) for zone in self._zones)
        return np.where(first > -0.15, 0, np.where(second > 0.1, 2, 1))

    def _empty(self, x, y, edge, holes):
        if self._cut == 0:
            return np.zeros(np.broadcast(x, y, edge).shape, bool)
        past = ((2 - x / self.width - y / self.height) - self._cut) / self._slope
        return (past < 2.5 * edge) | (holes > self._hole)


def _octaves(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Sum of two fields, again of unit variance."""
    return (coarse + 0.2 * fine) / np.hypot(1, 0.2)


class Seeds:
    """Seeds of all blocks.

    Random sequential adsorption inside each block; blocks are coloured like a 2×2 board and a block sees the seeds of its neighbours of lower colour. So a
    block depends on at most three rings of neighbours and on no order.
    """

    def __init__(self, seed: int, layout: Layout, degraded_fraction: float):
        self.seed, self.layout, self.degraded_fraction = seed, layout, degraded_fraction
        self.block = lru_cache(maxsize=400)(self._block)
        self._radius, self._spread, self._elongation, self._packing = (parameter(n) for n in ("radius", "spread", "elongation", "packing"))

    def near(self, by0: int, bx0: int, by1: int, bx1: int) -> Cells:
        """Seeds of the blocks [by0, by1) × [bx0, bx1), row by row."""
        blocks = [self.block(by, bx) for by in range(by0, by1) for bx in range(bx0, bx1)]
        return {key: np.concatenate([b[key] for b in blocks]) for key in blocks[0]}

    def _block(self, by: int, bx: int) -> Cells:
        random = generator(self.seed, "seeds", by, bx)
        candidates = self._candidates(random, by, bx, _CANDIDATES if self.layout.holds(by, bx) else 0)
        alive = ~self.layout.empty_at(candidates["x"], candidates["y"])
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if self.layout.holds(by + dy, bx + dx) and _colour(by + dy, bx + dx) < _colour(by, bx):
                    alive &= ~_blocked(candidates, _close(self.block(by + dy, bx + dx), by, bx))
        cells = _adsorb(_rows(candidates, alive))
        cells["number"] = number_of(by, bx, np.arange(len(cells["x"])))
        return cells

    def _candidates(self, random: np.random.Generator, by: int, bx: int, n: int) -> Cells:
        top, left = (v * PIXEL_UM for v in block_box(by, bx)[:2])
        x = left + random.random(n) * BLOCK_UM
        y = top + random.random(n) * BLOCK_UM
        zone = self.layout.zone_at(x, y)
        draw = random.random(n)
        kind = np.zeros(n, np.int64)
        for z in range(len(ZONES)):
            members = [i for i, t in enumerate(TYPES) if t.zone == z]
            ends = np.cumsum([TYPES[i].share for i in members])
            here = zone == z
            kind[here] = np.array(members)[np.minimum(np.searchsorted(ends, draw[here], side="right"), len(members) - 1)]
        radius = self._radius[kind] * np.exp(self._spread[kind] * random.standard_normal(n))
        elongation = 1 + (self._elongation[kind] - 1) * random.uniform(0.5, 1.4, n)
        long = np.minimum(radius * np.sqrt(elongation), _MAX_AXIS_UM)
        short = radius**2 / long
        phase = random.uniform(0, 2 * np.pi, (n, 4))
        amplitude = parameter("lobes")[kind][:, None] * np.abs(random.standard_normal((n, 4))) / np.array([1.0, 1.2, 1.8, 2.4])
        draws = random.random((n, 5))
        return {
            "x": x,
            "y": y,
            "kind": kind,
            "long": long,
            "short": np.minimum(short, _MAX_AXIS_UM),
            "angle": self.layout._zones[0].at(x + 500, y) * 1.5 + random.normal(0, 0.45, n),
            "packing": self._packing[kind],
            "reach": parameter("reach")[kind] * (1 + 0.04 * random.standard_normal(n)),
            "lobe_cos": amplitude * np.cos(phase),
            "lobe_sin": amplitude * np.sin(phase),
            "n_nuclei": np.where(draws[:, 0] < parameter("without")[kind], 0, np.where(draws[:, 1] < parameter("double")[kind], 2, 1)),
            "nucleus": parameter("nucleus")[kind] * np.exp(0.1 * random.standard_normal(n)),
            "nucleus_elongation": random.uniform(1.0, 1.35, n) * elongation**0.4,
            "nucleus_turn": random.normal(0, 0.25, n),
            "nucleus_offset": random.normal(0, 0.16, (n, 2)),
            "degraded": draws[:, 2] < self.degraded_fraction,
            "vendor_draw": draws[:, 3],
            "arc": draws[:, 4],
            "brightness": np.exp(random.standard_normal((n, 3)) * np.array([0.22, 0.15, 0.2])),
            "rna": parameter("rna")[kind] * np.exp(0.25 * random.standard_normal(n)),
        }


def number_of(by: int, bx: int, k: np.ndarray) -> np.ndarray:
    """Number of the k-th cell of a block: int32, positive, unique on slides up to 100 mm."""
    return (((by + 8) << 20) | ((bx + 8) << 10) | k).astype(np.int32) if len(k) else np.empty(0, np.int32)


def name_of(number: int) -> str:
    """`cell_id` of a number: stable whatever the size of the slide."""
    return f"y{(number >> 20) - 8:03d}x{((number >> 10) & 1023) - 8:03d}c{number & 1023:03d}"


def block_of(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(by, bx) of the block that a cell's seed lies in."""
    return (number >> 20) - 8, ((number >> 10) & 1023) - 8


def _colour(by: int, bx: int) -> int:
    return 2 * (by % 2) + bx % 2


def _close(cells: Cells, by: int, bx: int) -> Cells:
    """Those that can be in the way of a candidate of the block."""
    y0, x0, y1, x1 = (v * PIXEL_UM for v in block_box(by, bx))
    reach = 2 * _MAX_AXIS_UM * 1.1
    x, y = cells["x"], cells["y"]
    return _rows(cells, (x > x0 - reach) & (x < x1 + reach) & (y > y0 - reach) & (y < y1 + reach))


def _rows(cells: Cells, which: np.ndarray) -> Cells:
    return {key: value[which] for key, value in cells.items()}


def _adsorb(candidates: Cells) -> Cells:
    """One candidate after the other is taken unless a taken one is in its way; done in batches, which gives the same."""
    taken: list[Cells] = []
    while len(candidates["x"]):
        batch, candidates = ({k: v[part] for k, v in candidates.items()} for part in (slice(_BATCH), slice(_BATCH, None)))
        conflicts = _conflicts(batch, batch)
        free = np.ones(len(conflicts), bool)
        chosen = []
        for i in range(len(conflicts)):
            if free[i]:
                chosen.append(i)
                free &= ~conflicts[i]
        taken.append(_rows(batch, np.array(chosen)))
        candidates = _rows(candidates, ~_blocked(candidates, taken[-1]))
    return {key: np.concatenate([t[key] for t in taken]) for key in candidates} if taken else candidates


def _blocked(a: Cells, b: Cells) -> np.ndarray:
    """(n,) bool: too close to any of `b`."""
    return _conflicts(a, b).any(axis=1)


def _conflicts(a: Cells, b: Cells) -> np.ndarray:
    """(n, m) bool: too close in the elliptic metric of either."""
    dx = (b["x"][None, :] - a["x"][:, None]).astype(np.float32)
    dy = (b["y"][None, :] - a["y"][:, None]).astype(np.float32)
    long = (a["long"][:, None] + b["long"][None, :]).astype(np.float32)
    short = (a["short"][:, None] + b["short"][None, :]).astype(np.float32)
    packing = np.minimum(a["packing"][:, None], b["packing"][None, :]).astype(np.float32) ** 2

    def inside(angle: np.ndarray) -> np.ndarray:
        c, s = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        return ((c * dx + s * dy) / long) ** 2 + ((c * dy - s * dx) / short) ** 2 < packing

    return inside(a["angle"][:, None]) | inside(b["angle"][None, :])
