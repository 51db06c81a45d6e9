"""The tissue as label images: cells, nuclei and an instrument-like segmentation, block by block at `PIXEL_UM`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from skimage.measure import label as connected

from istseg.grid import Box
from istseg.simulate.randomness import Field
from istseg.simulate.seeds import BLOCK_PX, EXTENT_UM, PIXEL_UM, Cells, Layout, Seeds, block_box, blocks_of, grow

REACH_PX = int(np.ceil(EXTENT_UM / PIXEL_UM)) + 1
_MIN_CELL_UM2 = 12.0
_MIN_NUCLEUS_UM2 = 6.0
_VENDOR_GROW_UM = 2.2
_VENDOR_MISSED = 0.05
_VENDOR_MERGED = 0.06


class Tissue:
    """Label images of the plane.

    Parameters
    ----------
    seed
        Seed of everything.
    width_um, height_um, empty_fraction
        See `Layout`.
    degraded_fraction
        Share of the cells marked `degraded`.
    """

    def __init__(self, seed: int, width_um: float, height_um: float, empty_fraction: float, degraded_fraction: float):
        self.seed = seed
        self.layout = Layout(seed, width_um, height_um, empty_fraction)
        self.seeds = Seeds(seed, self.layout, degraded_fraction)
        self._warps = [
            (Field(seed, "warp_x", 5.0), 0.55),
            (Field(seed, "warp_y", 5.0), 0.55),
            (Field(seed, "warp_fine", 1.8), 0.16),
            (Field(seed, "warp_fine", 1.8, 1), 0.16),
        ]
        self.raw = lru_cache(maxsize=72)(self._raw)
        self.block = lru_cache(maxsize=125)(self._block)
        self.vendor = lru_cache(maxsize=80)(self._vendor)

    def labels(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Cell numbers int32 and nucleus index uint8 (0 none, 1, 2) of a box (y0, x0, y1, x1) in geometry pixels."""
        holds = self.layout.holds
        return _assemble(lambda by, bx: self.block(by, bx)[0], holds, np.int32, box), _assemble(lambda by, bx: self.block(by, bx)[1], holds, np.uint8, box)

    def vendor_labels(self, box: Box) -> np.ndarray:
        """int32 labels of the instrument's own segmentation: nuclei widened by 2.2 µm, some merged, some missed. Numbers are those of a cell of the truth."""
        return _assemble(self.vendor, self.layout.holds, np.int32, box)

    def cells(self, box: Box) -> CellTable:
        """Seeds of all cells that can touch a box in geometry pixels."""
        y0, x0, y1, x1 = blocks_of(grow(box, REACH_PX))
        return CellTable(self.seeds, y0, x0, y1, x1)

    def _raw(self, by: int, bx: int) -> np.ndarray:
        """Every pixel goes to the cell whose lobed ellipse it lies deepest in."""
        y0, x0 = block_box(by, bx)[:2]
        ys, xs = _centres(y0, BLOCK_PX), _centres(x0, BLOCK_PX)
        warps = [field.grid(ys, xs) * np.float32(size) for field, size in self._warps]
        wx = xs.astype(np.float32)[None, :] + warps[0] + warps[2]
        wy = ys.astype(np.float32)[:, None] + warps[1] + warps[3]
        labels = np.zeros((BLOCK_PX, BLOCK_PX), np.int32)
        best = np.full(labels.shape, np.inf, np.float32)
        cells = self.seeds.near(by - 1, bx - 1, by + 2, bx + 2)
        outer = np.minimum(np.maximum(cells["long"], cells["short"]) * cells["reach"] * 1.35 + 1.5, EXTENT_UM)
        top, bottom, left, right = (
            np.clip(np.rint((cells[axis] + sign * outer) / PIXEL_UM) - start, 0, BLOCK_PX).astype(int)
            for axis, sign, start in (("y", -1, y0), ("y", 1, y0), ("x", -1, x0), ("x", 1, x0))
        )
        for i in np.flatnonzero((bottom > top) & (right > left)):
            part = np.s_[top[i] : bottom[i], left[i] : right[i]]
            score = _score(wx[part] - np.float32(cells["x"][i]), wy[part] - np.float32(cells["y"][i]), cells, i)
            win = (score < best[part]) & (score < np.float32(cells["reach"][i]))
            best[part][win] = score[win]
            labels[part][win] = cells["number"][i]
        labels[self.layout.empty_grid(ys, xs)] = 0
        return labels

    def _block(self, by: int, bx: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels without loose pieces and tiny cells; nuclei. A window wide enough holds every cell of the block whole."""
        halo = 2 * REACH_PX
        box = grow(block_box(by, bx), halo)
        raw = _assemble(self.raw, self.layout.holds, np.int32, box)
        table = self.cells(box)
        index = table.index(raw)
        index = _largest_parts(index, table.size, _MIN_CELL_UM2 / PIXEL_UM**2)
        # A nucleus is narrower than REACH_PX: what touches the block lies inside half the halo.
        half = halo - REACH_PX
        nuclei = self._nuclei(index, half, table)[REACH_PX:-REACH_PX, REACH_PX:-REACH_PX]
        return np.append(table["number"], 0).astype(np.int32)[index[halo:-halo, halo:-halo]], nuclei

    def _nuclei(self, index: np.ndarray, trim: int, table: CellTable) -> np.ndarray:
        """uint8 nucleus index of each pixel, `trim` pixels narrower on every side than `index`, which holds rows of `table`, `table.size` for none."""
        n = table.size
        area, cy, cx = _centroids(index, n)
        index = np.ascontiguousarray(index[trim:-trim, trim:-trim])
        border = cv2.dilate(edges_of(index), np.ones((3, 3), np.uint8))
        inside = np.flatnonzero((index < n) & (border == 0))
        key = index.ravel()[inside]
        yy, xx = (v.astype(np.float32) for v in np.divmod(inside, index.shape[1]))
        radius = table["nucleus"] * np.sqrt(area / np.pi)
        double = table["n_nuclei"] == 2
        angle, stretch = table["angle"] + table["nucleus_turn"], np.sqrt(table["nucleus_elongation"])
        size = radius * np.where(double, 0.74, 1.0)
        offset = table["nucleus_offset"] * radius[:, None] * 0.9
        nuclei = np.zeros(index.size, np.uint8)
        for which in (0, 1):
            side = np.where(double, (1 - 2 * which) * 0.85 * radius * 0.74, 0.0)
            has = (table["n_nuclei"] > which) & (area > 1)
            oy = np.where(has, cy - trim + offset[:, 1] + side * np.sin(table["angle"]), -1e6)
            ox = cx - trim + offset[:, 0] + side * np.cos(table["angle"])
            pixels = np.flatnonzero(has[key]) if which else np.arange(len(key))
            k = key[pixels]
            per_cell = np.stack(
                [oy, ox, np.cos(angle) / (size * stretch), np.sin(angle) / (size * stretch), np.cos(angle) / (size / stretch), np.sin(angle) / (size / stretch)]
            )
            py, px, ca, sa, cb, sb = per_cell.astype(np.float32)[:, k]
            dy, dx = yy[pixels] - py, xx[pixels] - px
            hit = (ca * dx + sa * dy) ** 2 + (cb * dy - sb * dx) ** 2 < 1
            target = inside[pixels[hit]]
            nuclei[target[nuclei[target] == 0]] = which + 1
        nuclei = nuclei.reshape(index.shape)
        both = np.where(nuclei > 0, index * 2 + nuclei - 1, 2 * n).astype(np.int32)
        both = _largest_parts(both, 2 * n, _MIN_NUCLEUS_UM2 / PIXEL_UM**2)
        return np.where(both < 2 * n, both % 2 + 1, 0).astype(np.uint8)

    def _vendor(self, by: int, bx: int) -> np.ndarray:
        halo = int(np.ceil(_VENDOR_GROW_UM / PIXEL_UM)) + 2
        box = grow(block_box(by, bx), halo)
        numbers, nuclei = self.labels(box)
        distance, nearest = cv2.distanceTransformWithLabels((nuclei == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        of_pixel = np.zeros(int(nearest.max()) + 1, np.int32)
        of_pixel[nearest[nuclei > 0]] = numbers[nuclei > 0]
        table = self.cells(box)
        renamed = np.append(self._vendor_numbers(table), 0).astype(np.int32)
        labels = renamed[table.index(of_pixel[nearest])]
        labels[(distance > _VENDOR_GROW_UM / PIXEL_UM) | (nuclei.max() == 0)] = 0
        return labels[halo:-halo, halo:-halo]

    def _vendor_numbers(self, table: CellTable) -> np.ndarray:
        """What number the instrument gives to a cell: 0 missed, another cell's where it merges them, else its own."""
        draw, numbers = table["vendor_draw"], table["number"].copy()
        nuclear = table["n_nuclei"] > 0
        steady = nuclear & (draw >= _VENDOR_MISSED + _VENDOR_MERGED)
        for i in np.flatnonzero(nuclear & (draw >= _VENDOR_MISSED) & (draw < _VENDOR_MISSED + _VENDOR_MERGED)):
            distance = np.hypot(table["x"] - table["x"][i], table["y"] - table["y"][i])
            distance[~steady] = np.inf
            j = int(np.argmin(distance)) if len(distance) else i
            if distance[j] < 11.0:
                numbers[i] = table["number"][j]
        numbers[draw < _VENDOR_MISSED] = 0
        return numbers


class CellTable:
    """Attributes of the cells of some blocks and the way from a label image to their rows."""

    def __init__(self, seeds: Seeds, by0: int, bx0: int, by1: int, bx1: int):
        self._columns: Cells = seeds.near(by0, bx0, by1, bx1)
        self.size = len(self._columns["number"])
        self._origin, self._across = (by0, bx0), bx1 - bx0
        counts = [len(seeds.block(by, bx)["number"]) for by in range(by0, by1) for bx in range(bx0, bx1)]
        self._start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    def __getitem__(self, column: str) -> np.ndarray:
        return self._columns[column]

    def index(self, numbers: np.ndarray) -> np.ndarray:
        """Row of each number, `size` where it is 0; int32 of the same shape."""
        block = ((numbers >> 20) - 8 - self._origin[0]) * self._across + ((numbers >> 10) & 1023) - 8 - self._origin[1]
        rows = self._start[np.where(numbers > 0, block, 0)] + (numbers & 1023)
        return np.where(numbers > 0, rows, self.size).astype(np.int32)


def _assemble(part: Callable[[int, int], np.ndarray], holds: Callable[[int, int], bool], dtype: type, box: Box) -> np.ndarray:
    """The box from its blocks; 0 where there are none."""
    y0, x0, y1, x1 = box
    by0, bx0, by1, bx1 = blocks_of(box)
    whole = np.zeros((y1 - y0, x1 - x0), dtype)
    for by in range(by0, by1):
        for bx in range(bx0, bx1):
            if not holds(by, bx):
                continue
            top, left, bottom, right = block_box(by, bx)
            ya, yb, xa, xb = max(y0, top), min(y1, bottom), max(x0, left), min(x1, right)
            whole[ya - y0 : yb - y0, xa - x0 : xb - x0] = part(by, bx)[ya - top : yb - top, xa - left : xb - left]
    return whole


def _centres(start: int, n: int) -> np.ndarray:
    return (start + np.arange(n) + 0.5) * PIXEL_UM


def edges_of(index: np.ndarray) -> np.ndarray:
    """uint8, 1 on both sides of every border between different values."""
    edges = np.zeros(index.shape, np.uint8)
    down = index[1:] != index[:-1]
    across = index[:, 1:] != index[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges


def _centroids(index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of pixels, mean row and mean column of each of the values 0..n−1: (n,) float64; 1, 0, 0 where a value does not occur."""
    flat = index.ravel()
    area = np.maximum(np.bincount(flat, minlength=n + 1), 1)[:n]
    yy, xx = np.divmod(np.arange(index.size, dtype=np.int32), np.int32(index.shape[1]))
    return area, np.bincount(flat, yy, n + 1)[:n] / area, np.bincount(flat, xx, n + 1)[:n] / area


def _largest_parts(index: np.ndarray, background: int, min_pixels: float) -> np.ndarray:
    """Keep of every value only its largest connected part, when that has `min_pixels`; the rest becomes `background`."""
    parts, n = connected(index, background=background, connectivity=1, return_num=True)
    area = np.bincount(parts.ravel(), minlength=n + 1)
    value = np.full(n + 1, background, np.int32)
    value[parts.ravel()] = index.ravel()
    value[0] = background
    order = np.lexsort((np.arange(n + 1), -area, value))
    first = np.ones(n + 1, bool)
    first[1:] = value[order][1:] != value[order][:-1]
    keep = np.zeros(n + 1, bool)
    keep[order[first]] = True
    keep &= (area >= min_pixels) & (value != background)
    return np.where(keep, value, background).astype(np.int32)[parts]


def _score(dx: np.ndarray, dy: np.ndarray, cells: Cells, i: int) -> np.ndarray:
    """Distance from the seed in units of the lobed ellipse's radius in that direction; 1 on its contour."""
    c, s = np.float32(np.cos(cells["angle"][i])), np.float32(np.sin(cells["angle"][i]))
    p = (c * dx + s * dy) / np.float32(cells["long"][i])
    q = (c * dy - s * dx) / np.float32(cells["short"][i])
    rho = np.sqrt(p * p + q * q) + np.float32(1e-4)
    c1, s1 = p / rho, q / rho
    radius = np.float32(1.0)
    ck, sk = c1, s1
    for cosine, sine in zip(cells["lobe_cos"][i].astype(np.float32), cells["lobe_sin"][i].astype(np.float32), strict=True):
        ck, sk = ck * c1 - sk * s1, sk * c1 + ck * s1
        radius = radius + cosine * ck + sine * sk
    return rho / np.maximum(radius, np.float32(0.4))
