"""Outlines of label images."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize("smooth", [False, True])
def test_the_array_may_begin_anywhere(smooth):
    labels = image(1)
    cell = labels[30, 30:40].max()
    y, x = np.nonzero(labels == cell)
    top, left = max(y.min() - 3, 0), max(x.min() - 2, 0)
    whole, part = outlines(labels, [cell], smooth=smooth)[1][0], outlines(labels[top:, left:], [cell], (top, left), smooth)[1][0]
    assert shapely.to_wkb(whole) == shapely.to_wkb(part)


def test_smoothed_outlines_lose_the_steps_and_nothing_else():
    y, x = np.mgrid[:60, :60]
    disk = (np.hypot(y - 30, x - 30) < 20).astype(np.int32)
    stepped, smooth = outlines(disk, [1])[1][0], outlines(disk, [1], smooth=True)[1][0]
    assert abs(smooth.area / stepped.area - 1) < 0.0025
    assert shapely.get_num_coordinates(smooth) < 0.55 * shapely.get_num_coordinates(stepped)
    assert stepped.length / (40 * np.pi) > 1.04
    assert abs(smooth.length / (40 * np.pi) - 1) < 0.003


def packed() -> np.ndarray:
    """Cells side by side, with gaps."""
    seeds = np.random.default_rng(4).uniform(0, 200, (60, 2))
    y, x = np.mgrid[:200, :200]
    distance = np.hypot(y[..., None] - seeds[:, 0], x[..., None] - seeds[:, 1])
    return np.where(distance.min(-1) < 17, distance.argmin(-1) + 1, 0)


def test_points_go_alike_wherever_the_array_begins():
    labels = packed()
    inner = labels[40:170, 23:190]
    cells = np.setdiff1d(inner, np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1], [0]]))
    assert len(cells) > 20
    whole, part = outlines(labels, cells, (7, 3), smooth=True)[1], outlines(inner, cells, (47, 26), smooth=True)[1]
    assert shapely.to_wkb(whole).tolist() == shapely.to_wkb(part).tolist()


def test_smoothed_neighbours_still_share_their_border_and_never_overlap():
    labels = packed()
    _, stepped = outlines(labels, np.unique(labels)[1:])
    _, smooth = outlines(labels, np.unique(labels)[1:], smooth=True)
    assert shapely.is_valid(smooth).all()
    a, b = shapely.STRtree(smooth).query(smooth, "intersects")
    pairs = a < b
    assert pairs.sum() > 60
    assert shapely.area(shapely.intersection(smooth[a[pairs]], smooth[b[pairs]])).max() == 0
    # No slit opens between them either.
    assert abs(shapely.union_all(smooth).area / shapely.union_all(stepped).area - 1) < 2e-3
    assert abs(shapely.area(smooth) / shapely.area(stepped) - 1).max() < 0.02


def test_ragged_objects_stay_valid_when_smoothed():
    for seed in range(3):
        labels = image(seed)
        found, polygons = outlines(labels, np.unique(labels)[1:], smooth=True)
        assert found.tolist() == np.unique(labels)[1:].tolist()
        assert shapely.is_valid(polygons).all()
        assert not shapely.is_empty(polygons).any()
