"""Outlines of all objects of a label image in one pass: marching squares for every label at once, then the pieces are linked by pointer jumping.

The outline of an object runs through the middles between the centres of inside and outside pixels (iso-level 0.5); pixels that touch at a corner only
are apart. Hence outlines of neighbours share their common border and never overlap, and every outline is a simple ring: a point is passed once.

Smoothing takes the steps of the pixels out of the outlines. Each point becomes a binomial mean of itself and its neighbours along the ring, which both
objects at a common border compute alike; points near a place where three objects meet, or pixels touch at a corner, stay. So the border remains a common
one. Then points go that hardly turn the line, about half of all: which of them is settled by their places, again alike for both objects. All of it depends on
the pixels around a point only, in exact arithmetic: tiles give the same outlines.
"""

from __future__ import annotations

import numpy as np
import shapely

_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the corners of a 2 × 2 block, bit by bit."""
_TOP, _LEFT, _RIGHT, _BOTTOM = (0, 1), (1, 0), (1, 2), (2, 1)
"""Middles of the sides of a block, in half pixels."""
_PIECES = {
    0b0001: [(_TOP, _LEFT)],
    0b0010: [(_RIGHT, _TOP)],
    0b0011: [(_RIGHT, _LEFT)],
    0b0100: [(_LEFT, _BOTTOM)],
    0b0101: [(_TOP, _BOTTOM)],
    0b0110: [(_RIGHT, _TOP), (_LEFT, _BOTTOM)],
    0b0111: [(_RIGHT, _BOTTOM)],
    0b1000: [(_BOTTOM, _RIGHT)],
    0b1001: [(_TOP, _LEFT), (_BOTTOM, _RIGHT)],
    0b1010: [(_BOTTOM, _TOP)],
    0b1011: [(_BOTTOM, _LEFT)],
    0b1100: [(_LEFT, _RIGHT)],
    0b1101: [(_TOP, _RIGHT)],
    0b1110: [(_LEFT, _TOP)],
}
"""Corners inside → pieces of the outline (from, to), the inside always on the same hand."""
_SADDLES = (0b0110, 0b1001)
_KERNEL = (1, 4, 6, 4, 1)
"""Weights of the points −2 … 2 along a ring, in sixteenths: a Gaussian of one point, about 0.8 pixels. A disk of 20 pixels loses 0.2 % of its area."""
_REACH = len(_KERNEL) // 2
_ROUNDS = 3
_STRAIGHT_PX = 0.05
"""A point may go that is so near to the line between its neighbours, 0.013 µm at the working resolution; in one round no two neighbours do."""
_MIX = (73_856_093, 19_349_663, 2_654_435_761)
"""Odd numbers that make an order without a pattern of places (Teschner et al. 2003; Knuth)."""


def outlines(labels: np.ndarray, wanted: np.ndarray, offset: tuple[int, int] = (0, 0), smooth: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Outer outline of each wanted object; of an object of several parts that of the largest, holes are filled.

    Parameters
    ----------
    labels
        (y, x) integers ≥ 0; 0 is background.
    wanted
        Labels to outline.
    offset
        (y, x) of the array's origin in the frame of the result; pixel i covers [i, i+1).
    smooth
        Whether the steps of the pixels are taken out, and points with them that the line does not need.

    Returns
    -------
    (n,) labels, ascending, those of `wanted` that are in the image, and their (n,) valid polygons with (x, y) coordinates, exterior counter-clockwise,
    beginning at the first point by rows, or the next one that stays.
    """
    label, start, end, plain = _pieces(labels, wanted)
    if not len(label):
        return np.zeros(0, np.asarray(wanted).dtype), np.zeros(0, object)
    order = np.argsort(start)
    label, start, end, plain = label[order], start[order], end[order], plain[order]
    ring, position = _rings(np.searchsorted(start, end))
    order = np.lexsort((position, ring))
    label, place, ring, plain = label[order], start[order] // 2, ring[order], plain[order]
    row = 2 * labels.shape[1] + 5
    # Half pixels of the array with one ring of background: its pixel centres are at even numbers, −1 for the ring, +0.5 for the pixel's middle.
    half = np.stack((place % row, place // row), 1) + 2 * np.array(offset[::-1])
    xy = half / 2 - 0.5
    first = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))
    length = np.diff(np.append(first, len(ring)))
    number = np.repeat(np.arange(len(first)), length)
    polygons = shapely.polygons(shapely.linearrings(xy, indices=number))
    owner, area = label[first], shapely.area(polygons)
    order = np.lexsort((-area, owner))
    largest = order[np.append(True, owner[order][1:] != owner[order][:-1])]
    if not smooth:
        return owner[largest], polygons[largest]
    xy, free = _smooth(xy, plain, first[number], length[number])
    stays = _turning(xy, free, number, half)
    smoothed = shapely.polygons(shapely.linearrings(xy[stays], indices=number[stays]))
    # A bridge of one pixel can fold; rare, and then the steps stay.
    return owner[largest], np.where(shapely.is_valid(smoothed[largest]), smoothed[largest], polygons[largest])


def _smooth(xy: np.ndarray, plain: np.ndarray, first: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of all rings, those between plain pieces moved, and which these are; `first` and `length` are those of each point's ring."""
    position = np.arange(len(xy)) - first
    total, free = np.zeros_like(xy), np.ones(len(xy), bool)
    for shift, weight in enumerate(_KERNEL, -_REACH):
        neighbour = first + (position + shift) % length
        total += weight / 16 * xy[neighbour]
        if shift < _REACH:
            free &= plain[neighbour]
    return np.where(free[:, None], total, xy), free


def _turning(xy: np.ndarray, free: np.ndarray, ring: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Indices of the points that stay: all that are not free, and of the others those at which the line turns.

    Of neighbours that could go, the one goes that is the first in an order of places (`half`) without a pattern. A free point has its neighbours in common with
    the object at the other side, so both decide alike.
    """
    order = ((half[:, 0] * _MIX[0]) ^ (half[:, 1] * _MIX[1])) * _MIX[2] & 0x7FFF_FFFF
    stays = np.arange(len(xy))
    for _ in range(_ROUNDS):
        own = ring[stays]
        first = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
        last = np.append(first[1:], len(own)) - 1
        at = xy[stays]
        before, after = _neighbours(at, first, last)
        chord, way = after - before, at - before
        # Coordinates are of 32nd parts of a pixel: products are exact, the same from either end.
        off = chord[:, 0] * way[:, 1] - chord[:, 1] * way[:, 0]
        straight = free[stays] & (off**2 <= _STRAIGHT_PX**2 * (chord**2).sum(1))
        rank = np.where(straight, order[stays], -1)
        rank_before, rank_after = _neighbours(rank, first, last)
        stays = stays[~(straight & (rank > rank_before) & (rank > rank_after))]
    return stays


def _neighbours(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of the points before and after each, in rings from `first` to `last`."""
    before, after = np.roll(values, 1, 0), np.roll(values, -1, 0)
    before[first], after[last] = values[last], values[first]
    return before, after


def _pieces(labels: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Directed pieces of all outlines: label, code of the point where it starts, code of the point where it ends, whether the piece is plain: the object on the
    other side has the same one, turned round. A code belongs to one outline only.
    """
    padded = np.pad(labels, 1)
    height, width = (n - 1 for n in padded.shape)
    corners = [padded[dy : dy + height, dx : dx + width] for dy, dx in _CORNERS]
    mixed = np.flatnonzero(((corners[0] != corners[1]) | (corners[0] != corners[2]) | (corners[0] != corners[3])).ravel())
    y, x = np.divmod(mixed, width)
    values = np.stack([padded[y + dy, x + dx] for dy, dx in _CORNERS])
    row = 2 * labels.shape[1] + 5
    # Every block here has two values at least.
    two_objects = ((values == values.min(0)) | (values == values.max(0))).all(0)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for k in range(4):
        # A label that an earlier corner has, too, was seen there.
        new = np.isin(values[k], wanted) & (values[k] > 0) & ~(values[:k] == values[k]).any(0)
        own = values[k, new]
        inside = ((values[:, new] == own) << np.arange(4)[:, None]).sum(0)
        at_y, at_x, both = 2 * y[new].astype(np.int64), 2 * x[new].astype(np.int64), two_objects[new]
        for bits, pieces in _PIECES.items():
            chosen = np.flatnonzero(inside == bits)
            for start, end in pieces:
                codes = [((at_y[chosen] + dy) * row + at_x[chosen] + dx) * 2 + _upper_or_left(bits, dy, dx) for dy, dx in (start, end)]
                found.append((own[chosen], *codes, both[chosen] & (bits not in _SADDLES)))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _upper_or_left(bits: int, dy: int, dx: int) -> bool:
    """Whether of the two pixels beside the middle of a side it is the upper or left one that is inside."""
    first = (dy // 2) * 2 + dx // 2
    return bool(bits >> first & 1)


def _rings(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each element of a permutation the smallest member of its cycle, and how many steps after it the element comes."""
    leader, jump = np.arange(len(following)), following
    while not np.array_equal(leader, leader[following]):
        leader, jump = np.minimum(leader, leader[jump]), jump[jump]
    ends = leader == np.arange(len(following))
    steps = np.where(ends, 0, 1)
    jump = np.where(ends, np.arange(len(following)), following)
    while not ends[jump].all():
        steps, jump = steps + steps[jump], jump[jump]
    length = np.bincount(leader, minlength=len(following))[leader]
    return leader, (length - steps) % length
