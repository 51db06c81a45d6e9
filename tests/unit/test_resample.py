"""Area averaging: exact, and the same pixel in any tile."""

import numpy as np
import pytest

from istseg.resample import taps, working_image, working_size


def _reader(image):
    return lambda box: image[box[0] : box[2], box[1] : box[3]]


def _exact(image, factor):
    """Averages by the integral of the image, in float64."""
    integral = np.zeros(np.add(image.shape, 1))
    integral[1:, 1:] = image.astype(float).cumsum(0).cumsum(1)
    edges = [np.minimum(np.arange(working_size(n, factor) + 1) * factor, n) for n in image.shape]
    rows = np.stack([np.interp(edges[0], np.arange(len(integral)), column) for column in integral.T], axis=1)
    both = np.stack([np.interp(edges[1], np.arange(integral.shape[1]), row) for row in rows])
    return np.diff(np.diff(both, axis=0), axis=1) / np.outer(np.diff(edges[0]), np.diff(edges[1]))


@pytest.mark.parametrize("factor", [2.343, 1.0, 2.0, 0.7, 1.0001, 5.5])
def test_average_is_exact_to_rounding(factor):
    image = np.random.default_rng(0).integers(0, 65536, (131, 90)).astype(np.uint16)
    size = tuple(working_size(n, factor) for n in image.shape)
    result = working_image(_reader(image), (0, 0, *size), factor, image.shape)
    assert result.shape == size
    assert np.abs(result - _exact(image, factor)).max() < 0.52


def test_factor_one_changes_nothing():
    image = np.random.default_rng(0).integers(0, 65536, (40, 33)).astype(np.uint16)
    assert np.array_equal(working_image(_reader(image), (0, 0, 40, 33), 1.0, image.shape), image)


def test_partial_pixels_at_the_edge_average_what_is_there():
    image = np.full((5, 5), 1000, np.uint16)
    image[4, :] = 3000
    result = working_image(_reader(image), (0, 0, 3, 3), 2.0, image.shape)
    assert result.tolist() == [[1000] * 3, [1000] * 3, [3000] * 3]


def test_any_box_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr("istseg.resample._STRIP_FULL_ROWS", 37)
    random = np.random.default_rng(1)
    image = random.integers(0, 65536, (300, 260)).astype(np.uint16)
    factor = 0.253 / 0.108
    height, width = (working_size(n, factor) for n in image.shape)
    whole = working_image(_reader(image), (0, 0, height, width), factor, image.shape)
    for _ in range(40):
        y0, x0 = random.integers(0, height), random.integers(0, width)
        y1, x1 = random.integers(y0 + 1, height + 1), random.integers(x0 + 1, width + 1)
        assert np.array_equal(working_image(_reader(image), (y0, x0, y1, x1), factor, image.shape), whole[y0:y1, x0:x1])


@pytest.mark.parametrize("n_full", [1, 7, 100, 8192])
def test_taps_cover_every_full_pixel_once(n_full):
    factor = 0.253 / 0.108
    index, weight = taps(0, working_size(n_full, factor), factor, n_full)
    assert index.min() >= 0 and index.max() == n_full - 1
    assert np.allclose(weight.sum(1), 1, atol=1e-6)
    area = np.minimum((np.arange(len(index)) + 1) * factor, n_full) - np.arange(len(index)) * factor
    covered = np.bincount(index.ravel(), weights=(weight * area[:, None]).ravel(), minlength=n_full)
    assert np.allclose(covered, 1, atol=1e-4)


def test_a_rounding_remainder_makes_no_pixel():
    assert working_size(1000, 1000 / 427) == 427
    assert working_size(3, 10.0) == 1
