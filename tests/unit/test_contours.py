"""Outlines of label images."""

from __future__ import annotations

import numpy as np
import shapely
from skimage.measure import find_contours, label

from istseg.artifacts.contours import outlines


def image(seed: int) -> np.ndarray:
    """Ragged parts with holes, corners that touch, parts at the border; some labels have several parts."""
    rng = np.random.default_rng(seed)
    parts = label(rng.integers(0, 3, (60, 70)), connectivity=1)
    return np.where(rng.random(parts.max() + 1) < 0.2, 7, np.arange(parts.max() + 1))[parts] * (parts > 0)


def slow(labels: np.ndarray, number: int, offset: tuple[int, int]) -> shapely.Polygon:
    rings = find_contours(np.pad(labels == number, 1).astype(np.float32), 0.5)
    polygons = [shapely.Polygon(ring[:, ::-1] + np.array(offset)[::-1] - 0.5) for ring in rings]
    return max(polygons, key=lambda p: p.area)


def test_outlines_are_marching_squares_of_each_label_alone():
    for seed in range(2):
        labels = image(seed)
        wanted = np.unique(labels)[1:]
        found, polygons = outlines(labels, wanted, (5, 11))
        assert found.tolist() == wanted.tolist()
        assert shapely.is_valid(polygons).all()
        assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
        for number, polygon in zip(found, polygons, strict=True):
            expected = slow(labels, number, (5, 11))
            if number != 7:
                assert shapely.equals(polygon, expected)
            assert polygon.area == expected.area


def test_neighbours_share_their_border_and_never_overlap():
    labels = np.repeat(np.repeat(np.arange(1, 13).reshape(3, 4), 6, 0), 5, 1)
    labels[7:9, 3:9] = 1
    _, polygons = outlines(labels, np.arange(1, 13))
    tree = shapely.STRtree(polygons)
    a, b = tree.query(polygons)
    pairs = a < b
    assert pairs.sum() > 15
    assert shapely.area(shapely.intersection(polygons[a[pairs]], polygons[b[pairs]])).max() == 0
    assert shapely.length(shapely.intersection(polygons[0], polygons[1])) == 5


def test_only_what_is_wanted_and_there():
    labels = image(0)
    few = np.unique(labels)[[3, 9]]
    found, polygons = outlines(labels, np.append(few, 99_999))
    assert found.tolist() == few.tolist()
    assert shapely.to_wkb(polygons).tolist() == shapely.to_wkb(outlines(labels, np.unique(labels))[1][[2, 8]]).tolist()
    assert [len(part) for part in outlines(np.zeros((4, 5), np.int32), few)] == [0, 0]


def test_the_array_may_begin_anywhere():
    labels = image(1)
    cell = labels[30, 30:40].max()
    y, x = np.nonzero(labels == cell)
    top, left = max(y.min() - 3, 0), max(x.min() - 2, 0)
    whole, part = outlines(labels, [cell])[1][0], outlines(labels[top:, left:], [cell], (top, left))[1][0]
    assert shapely.to_wkb(whole) == shapely.to_wkb(part)
