"""Teacher `watershed`: nuclei and cells by local thresholds and seeded watersheds (scikit-image). Needs no weights.

What it is: a classical method with a handful of sizes in µm. It finds most nuclei of well-stained tissue, cuts or joins some in dense tissue, and draws cells
around nuclei only: a cell without nucleus is never found, and as every cell grows from one nucleus, the nucleus–cell consistency that curation checks is
given. What remains as a check is that it gives a cell only where the stain shows one. Cellpose is the better teacher where its weights are at hand.

Every decision is local: thresholds come from the sample's ranges and from neighbourhoods of a few cell diameters, so labels do not depend on the tiling.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from scipy import ndimage as ndi
from skimage.measure import label as measure_label
from skimage.morphology import remove_small_holes
from skimage.segmentation import expand_labels, watershed

from istseg.artifacts.tiles import Tile
from istseg.teachers.base import CELLS, NUCLEI, Teacher


@dataclass(frozen=True)
class Sizes:
    """Sizes of the objects to find, µm and µm²."""

    nucleus_diameter_um: float = 6.5
    cell_diameter_um: float = 6.5
    min_nucleus_area_um2: float = 8.0
    min_cell_area_um2: float = 12.8


FLOOR = 0.12
"""Smoothed nucleus stain below this share of the sample's range is no nucleus."""
RISE = 0.04
"""How far the smoothed nucleus stain must rise above its surroundings, share of the sample's range."""
LINE = 0.04
"""Depth of the dark lines that part nuclei, share of the stain there."""
CONTRAST = 1.5
"""Weight of the stain's contrast against that of the distance from the rim where nuclei are cut apart."""
HALF = 0.45
"""Height of a nucleus's outline between darkest surroundings and the nucleus's own brightness."""
REACH = 0.75
"""How far cells reach from their nucleus, cell diameters."""
TIE = 1e-5
"""Edge strength per pixel away from the nucleus: on a plateau the order of the flood would depend on the tile."""
EDGE_UM = 0.5
"""Width of the edges that are looked for in membrane stains."""
MIN_STAIN = 0.05
"""Mean of a membrane stain in a cell, share of the sample's range, below which the stain does not show the cell."""
MIN_EDGE = 0.03
"""Least edge strength that shows a piece of outline, likewise."""
TEXTURE = 2.0
"""How many standard deviations above the edges inside a cell an edge must lie to be more than texture."""
MIN_OUTLINE = 0.5
"""Share of a cell's outline that the stain must show."""
EXPANSION_UM = 3.0
"""How far cells reach from their nucleus where no membrane stain says it."""
_SHELL_WPX = 3
"""Thickness of the shell around all reaches that stands for what is no cell."""


class WatershedTeacher(Teacher):
    """See the module."""

    name = "watershed"

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    @property
    def method(self) -> dict[str, Any]:
        """See `Teacher`."""
        return {"teacher": self.name, **asdict(self.sizes)}

    def label(self, tile: Tile) -> dict[str, np.ndarray]:
        """Layers `nuclei` and `cells_<stain>` of each membrane stain; `cells_expansion` without any."""
        stains = tile.normalised()
        um = tile.working_um
        nuclei = label_nuclei(stains[0], um, self.sizes.nucleus_diameter_um, self.sizes.min_nucleus_area_um2)
        layers = {NUCLEI: nuclei}
        for name, stain in zip(tile.stains[1:], stains[1:], strict=True):
            layers[CELLS + name] = label_cells(stain, nuclei, um, self.sizes.cell_diameter_um, self.sizes.min_cell_area_um2)
        if len(tile.stains) == 1:
            layers[f"{CELLS}expansion"] = expand_labels(nuclei, EXPANSION_UM / um).astype(np.int32)
        return layers


def label_nuclei(stain: np.ndarray, um: float, diameter_um: float, min_area_um2: float) -> np.ndarray:
    """Nuclei: brighter than their surroundings, cut at necks by a watershed on distance and brightness.

    Parameters
    ----------
    stain
        float32 (y, x), sample-normalised nucleus stain.
    um
        Size of a pixel, µm.
    diameter_um
        Typical diameter of a nucleus.
    min_area_um2
        Smaller ones are dropped.

    Returns
    -------
    int32 (y, x).

    """
    diameter = diameter_um / um
    # Single bright spots (chromocentres, debris) must not outweigh whole nuclei.
    clipped = np.clip(stain, 0.0, 1.5)
    smooth = ndi.gaussian_filter(clipped, 0.08 * diameter)
    around = ndi.gaussian_filter(clipped, 0.6 * diameter)
    mask = (smooth > FLOOR) & (smooth - around > RISE)
    mask = remove_small_holes(mask, max_size=int(0.2 * diameter**2))
    mask = ndi.binary_opening(mask, _disk(0.1 * diameter))
    # Dark lines, where the stain is curved upwards, part touching nuclei that are one piece in the mask.
    whole = mask & (ndi.gaussian_laplace(clipped, 0.2 * diameter) * (0.2 * diameter) ** 2 < LINE * (smooth + FLOOR))
    depth = ndi.gaussian_filter(ndi.distance_transform_edt(whole).astype(np.float32) / (diameter / 2), 0.08 * diameter)
    # Contrast and not brightness: touching nuclei are parted by a dark line as well in a bright cluster as in a dim one.
    contrast = ndi.gaussian_filter(clipped, 0.25 * diameter) / (np.maximum(around, 0) + FLOOR)
    landscape = depth + CONTRAST * contrast
    labels = watershed(-landscape, _peaks(landscape, mask, 0.45 * diameter), mask=mask)
    return _keep_large(_to_half_height(labels, smooth, int(1.5 * diameter)), min_area_um2 / um**2)


def _to_half_height(labels: np.ndarray, smooth: np.ndarray, reach: int) -> np.ndarray:
    """Cut each nucleus back to where the stain is between its own height and the darkest place in reach; the largest part remains.

    The rise above the surroundings alone would draw a lone nucleus too large: its surroundings are dark.
    """
    height, floor = _heights(labels, smooth, reach)
    limit = floor + HALF * (height - floor)
    return _largest_parts(np.where(smooth >= limit[labels], labels, 0))


def _largest_parts(labels: np.ndarray) -> np.ndarray:
    """int32: each label's largest 4-connected part; the first of equals."""
    parts = measure_label(labels, connectivity=1)
    n = int(parts.max()) + 1
    owner = np.zeros(n, labels.dtype)
    owner[parts] = labels
    area = np.bincount(parts.ravel(), minlength=n)
    # Stable: of equal parts the one that comes first in the image.
    order = np.lexsort((-area, owner))
    first = np.r_[True, owner[order][1:] != owner[order][:-1]]
    keep = np.zeros(n, bool)
    keep[order[first]] = True
    keep[0] = False
    return np.where(keep[parts], labels, 0).astype(np.int32)


def label_cells(stain: np.ndarray, nuclei: np.ndarray, um: float, diameter_um: float, min_area_um2: float) -> np.ndarray:
    """Cells around nuclei, out to the edges of one membrane or cytoplasm stain.

    Nuclei, and everything farther than `REACH` cell diameters from one, flood the edge strength of the stain: its gradient plus its bright ridges. One formula
    serves both kinds of stain: a cell ends where a cytoplasm stain falls off most steeply, or on the ridge of a membrane stain. A cell is given only when the
    stain shows it: its outline must lie on edges and it must be stained.

    Parameters
    ----------
    stain
        float32 (y, x), sample-normalised.
    nuclei
        int32 (y, x); cells get the numbers of their nuclei.
    um
        Size of a pixel, µm.
    diameter_um
        Typical diameter of a cell.
    min_area_um2
        Smaller ones are dropped.

    Returns
    -------
    int32 (y, x).

    """
    reach = max(REACH * diameter_um, 1.0) / um
    distance = ndi.distance_transform_edt(nuclei == 0).astype(np.float32) if nuclei.any() else np.full(nuclei.shape, np.inf, np.float32)
    outside = max(int(nuclei.max()), 0) + 1
    markers = np.where((distance > reach) & (distance <= reach + _SHELL_WPX), outside, nuclei)
    clipped = np.clip(stain, 0.0, 1.5)
    distance[distance > 2 * reach] = 2 * reach
    edges = edge_strength(clipped, distance, EDGE_UM / um)
    flooded = watershed(edges + TIE * distance, markers, mask=distance <= reach + _SHELL_WPX)
    cells = np.where(flooded == outside, 0, flooded).astype(np.int32)
    cells = _trim_filled(cells, nuclei, ndi.gaussian_filter(clipped, EDGE_UM / um), int(2 * reach))
    return _keep_large(_fill_holes(_shown(cells, edges, clipped, EDGE_UM / um)), min_area_um2 / um**2)


def edge_strength(stain: np.ndarray, distance: np.ndarray, sigma: float) -> np.ndarray:
    """Change of a stain over one sigma where a cell may end.

    Parameters
    ----------
    stain
        float32 (y, x).
    distance
        float32 (y, x), from the nearest nucleus. Where the stain rises away from the nucleus, as at the rim of a nucleus that is darker than its cytoplasm,
        no cell ends.
    sigma
        Width of the edges in pixels.

    Returns
    -------
    float32 (y, x): fall of the stain away from the nucleus plus its bright ridges (largest negative curvature); below 0 where it rises and in dark lines.

    """
    order = {name: ndi.gaussian_filter(stain, sigma, order=o) for name, o in (("y", (1, 0)), ("x", (0, 1)), ("yy", (2, 0)), ("xx", (0, 2)), ("xy", (1, 1)))}
    away_y, away_x = (ndi.gaussian_filter(distance, sigma, order=o) for o in ((1, 0), (0, 1)))
    fall = -(order["y"] * away_y + order["x"] * away_x)
    half_trace = (order["yy"] + order["xx"]) / 2
    lowest = half_trace - np.hypot((order["yy"] - order["xx"]) / 2, order["xy"])
    return fall * sigma - lowest * sigma**2


def _trim_filled(cells: np.ndarray, nuclei: np.ndarray, smooth: np.ndarray, reach: int) -> np.ndarray:
    """Cut cells whose nucleus is stained like their brightest parts, i.e. those of a filling stain, back to `HALF` of their own height.

    Where such cells lie close, haze between them is in reach of every nucleus and would go to one of them. In a membrane stain the inside is dark and
    nothing is cut.
    """
    height, floor = _heights(cells, smooth, reach)
    limit = floor + HALF * (height - floor)
    in_nucleus = np.where(nuclei == cells, nuclei, 0)
    limit[_mean(in_nucleus.ravel(), smooth.ravel(), len(limit)) < limit] = -np.inf
    return _largest_parts(np.where((smooth >= limit[cells]) | (in_nucleus > 0), cells, 0))


def _fill_holes(labels: np.ndarray) -> np.ndarray:
    """Labels with the holes filled that touch one label only (and not the image's border)."""
    holes, n = ndi.label(labels == 0)
    least, most = np.full(n + 1, np.iinfo(np.int32).max), np.zeros(n + 1, np.int64)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        for hole, label in ((holes[a], labels[b]), (holes[b], labels[a])):
            touch = (hole > 0) & (label > 0)
            np.minimum.at(least, hole[touch], label[touch])
            np.maximum.at(most, hole[touch], label[touch])
    fill = np.where(least == most, most, 0).astype(labels.dtype)
    fill[np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))] = 0
    return np.where(labels == 0, fill[holes], labels)


def _heights(labels: np.ndarray, smooth: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(n + 1,) each label's mean over its brighter part, and the mean of the darkest value in reach of its pixels."""
    n = int(labels.max()) + 1
    upper = smooth >= _mean(labels.ravel(), smooth.ravel(), n)[labels]
    # A square: its minimum is separable.
    dark = cv2.erode(smooth, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    return _mean(labels[upper], smooth[upper], n), _mean(labels.ravel(), dark.ravel(), n)


def _shown(cells: np.ndarray, edges: np.ndarray, stain: np.ndarray, sigma: float) -> np.ndarray:
    """The cells which are stained and whose outline the stain shows: stronger edges than its texture makes inside the cell.

    Without an edge to follow, a flood ends on the texture of the stain, anywhere between two nuclei.
    """
    rim = np.zeros(cells.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = cells[a] != cells[b]
        rim[a] |= differs
        rim[b] |= differs
    n = int(cells.max()) + 1
    inside = (cv2.dilate(rim.astype(np.uint8), _disk(2 * sigma).astype(np.uint8)) == 0) & (cells > 0)
    texture = np.maximum(edges[inside], 0).astype(np.float64)
    mean = _mean(cells[inside], texture, n)
    spread = np.sqrt(np.maximum(_mean(cells[inside], texture**2, n) - mean**2, 0))
    limit = np.maximum(mean + TEXTURE * spread, MIN_EDGE)
    on_edge = _mean(cells[rim], edges[rim] >= limit[cells[rim]], n)
    good = (_mean(cells.ravel(), stain.ravel(), n) >= MIN_STAIN) & (on_edge >= MIN_OUTLINE)
    good[0] = False
    return np.where(good[cells], cells, 0)


def _mean(labels: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(n,) mean of the values of each label; 0 where it has none."""
    return np.bincount(labels, weights=values, minlength=n) / np.maximum(np.bincount(labels, minlength=n), 1)


def _peaks(landscape: np.ndarray, mask: np.ndarray, radius: float) -> np.ndarray:
    """int32 (y, x): numbered pixels of the mask that are the highest within a radius."""
    highest = mask & (landscape == cv2.dilate(landscape, _disk(radius).astype(np.uint8)))
    return ndi.label(highest, np.ones((3, 3), bool))[0].astype(np.int32)


def _disk(radius: float) -> np.ndarray:
    reach = np.arange(-int(radius), int(radius) + 1)
    return np.hypot(reach[:, None], reach) <= max(radius, 1)


def _keep_large(labels: np.ndarray, min_area: float) -> np.ndarray:
    area = np.bincount(labels.ravel())
    small = area < min_area
    small[0] = True
    return np.where(small[labels], 0, labels).astype(np.int32)
