"""Polygons to pixels, against point-in-polygon of every pixel centre."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from istseg.qc.spans import scan


def brute(polygon, shape):
    yy, xx = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(polygon, xx, yy)


def shapes(rng, n=40):
    for _ in range(n):
        centre = rng.uniform(-5, 45, 2)
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = rng.uniform(2, 12, 12)
        star = shapely.make_valid(shapely.Polygon(np.column_stack([np.cos(angle), np.sin(angle)]) * radius[:, None] + centre))
        yield shapely.union_all([p for p in shapely.get_parts(star) if p.geom_type == "Polygon"])


def test_equals_the_test_of_every_pixel():
    rng = np.random.default_rng(0)
    shape = (37, 41)
    polygons = np.array([*shapes(rng), shapely.Polygon(), shapely.Point(20, 20).buffer(9).difference(shapely.Point(20, 20).buffer(4))], dtype=object)
    image = rng.integers(0, 65536, shape, dtype=np.uint16)
    spans = scan(polygons, shape)
    means = spans.means(image)
    for i, polygon in enumerate(polygons):
        mask = brute(polygon, shape)
        assert spans.area[i] == mask.sum()
        if mask.any():
            assert means[i] == pytest.approx(image[mask].mean(), rel=1e-12)
        else:
            assert np.isnan(means[i])


def test_corners_on_pixel_centres():
    """Edges and corners that lie exactly on pixel centres: each centre belongs to exactly one of two abutting boxes."""
    left, right = shapely.box(1.5, 1.5, 4.5, 6.5), shapely.box(4.5, 1.5, 8.5, 6.5)
    spans = scan(np.array([left, right], dtype=object), (10, 10))
    assert spans.area.tolist() == [15, 20]
    diamond = shapely.Polygon([(4.5, 1.5), (7.5, 4.5), (4.5, 7.5), (1.5, 4.5)])
    assert 12 <= scan(np.array([diamond], dtype=object), (10, 10)).area[0] <= 25


def test_extremes():
    assert len(scan(np.empty(0, dtype=object), (5, 5)).means(np.ones((5, 5), bool))) == 0
    everything = scan(np.array([shapely.box(-100, -100, 100, 100)], dtype=object), (5, 7))
    assert everything.area.tolist() == [35]
    white = np.full((5, 7), 65535, np.uint16)
    assert everything.means(white).tolist() == [65535.0]
    wide = scan(np.array([shapely.box(0, 0, 65536, 1)], dtype=object), (1, 65536))
    assert wide.means(np.full((1, 65536), 65535, np.uint16)).tolist() == [65535.0], "the sum of the widest row fits"
