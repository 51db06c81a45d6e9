"""Tissue on the coarse grid."""

import numpy as np
import pytest

from istseg.tissue import count_in_squares, find_tissue, grid_shape, stained_squares


def _read(image):
    return lambda box: image[box[0] : box[2], box[1] : box[3]]


def test_counts_fall_into_their_squares_and_points_outside_are_left_out():
    counts = count_in_squares(np.array([0.0, 23.99, 24.0, -0.1, 48.0]), np.array([0.0, 1.0, 30.0, 5.0, 5.0]), (2, 2))
    assert counts.tolist() == [[2, 0], [0, 1]]


def test_tissue_grows_by_one_square_and_windows_see_it():
    counts = np.zeros((5, 5), int)
    counts[2, 2] = 3
    tissue = find_tissue(counts, np.zeros((5, 5), bool), 3, (120.0, 110.0))
    assert tissue.mask.sum() == 9 and tissue.own.sum() == 1
    assert tissue.fraction == pytest.approx(24 * 24 / (120 * 110))
    assert tissue.touches((95, 95, 100, 100), 0.253)
    assert not tissue.touches((0, 0, 94, 94), 0.253)
    assert not find_tissue(counts, np.zeros((5, 5), bool), 4, (120.0, 110.0)).own.any()


def _noise(level=300.0, size=(400, 400), seed=0):
    return np.random.default_rng(seed).normal(level, 20, size)


def _squares(image, um_per_px, high=None):
    size_um = tuple(n * um_per_px for n in image.shape)
    return stained_squares(_read(image), image.shape, size_um, float(np.percentile(image[image > 0], 99)) if high is None else high)


def test_a_nucleus_makes_its_square_tissue_and_noise_does_not():
    assert not _squares(_noise(), 0.25).any()
    image = _noise()
    y, x = np.mgrid[:400, :400]
    for cy, cx in ((60, 60), (60, 300)):
        image[np.hypot(y - cy, x - cx) < 6] += 2000
    found = _squares(image, 0.5, high=2000.0)
    assert [tuple(p) for p in np.argwhere(found)] == [(1, 1), (1, 6)]


def test_hot_pixels_unimaged_areas_and_flat_images_are_no_tissue():
    image = _noise()
    image[::97, ::89] = 5000
    image[:, 200:] = 0
    assert not _squares(image, 0.5, high=2000.0).any()
    assert not _squares(np.full((100, 100), 7.0), 0.5).any()
    assert not stained_squares(_read(np.zeros((50, 50))), (50, 50), (25.0, 25.0), 1.0).any()


def test_a_mosaic_smaller_than_a_square():
    image = np.full((10, 10), 100.0)
    image[2:8, 2:8] = 3000
    assert grid_shape((5.0, 5.0)) == (1, 1)
    assert _squares(image, 0.5, high=3000.0).shape == (1, 1)


def test_tissue_everywhere_is_found_everywhere():
    image = _noise()
    image[np.logical_and.outer(np.arange(400) % 20 < 10, np.arange(400) % 20 < 10)] += 2000
    assert _squares(image, 0.5).all()
