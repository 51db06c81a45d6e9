"""RNA density and percentiles of pooled histograms."""

import numpy as np
import pytest

from istseg.curation import density


def test_density_integrates_to_the_number_of_transcripts():
    counts = np.zeros((200, 200), int)
    counts[100, 100], counts[90, 120] = 3, 2
    result = density.rna_density(counts, 1.08, 0.253)
    assert result.sum() * 0.253**2 == pytest.approx(5, rel=1e-4)
    # The peak of a Gaussian of sigma s is n / (2 pi s²).
    assert result[100, 100] == pytest.approx(3 / (2 * np.pi * 1.08**2), rel=0.02)


def test_uniform_density_is_uniform_up_to_the_mosaics_edge():
    assert np.allclose(density.rna_density(np.ones((50, 60), int), 1.08, 0.25), 16, rtol=1e-5)


def test_a_pixel_has_the_same_density_in_any_cut():
    counts = np.random.default_rng(0).poisson(0.1, (150, 400))
    whole = density.rna_density(counts, 1.08, 0.253)
    reach = density.reach_wpx(1.08, 0.253)
    for left, right in ((0, 200), (13, 301), (150, 400)):
        part = density.rna_density(counts[:, left:right], 1.08, 0.253)
        inner = slice(0 if left == 0 else reach, None if right == 400 else -reach)
        assert np.array_equal(part[:, inner], whole[:, left:right][:, inner])


@pytest.mark.parametrize("percent", [0.5, 5, 50, 95])
def test_percentile_of_the_histogram_errs_by_less_than_one_percent(percent):
    values = np.random.default_rng(0).lognormal(-1, 1.2, 50_000)
    halves = density.density_histogram(values[:20_000]) + density.density_histogram(values[20_000:])
    assert density.percentile(halves, percent) == pytest.approx(np.percentile(values, percent), rel=0.01)


def test_zeros_count_and_an_empty_histogram_is_zero():
    values = np.concatenate([np.zeros(10), np.full(90, 2.0)])
    histogram = density.density_histogram(values)
    assert histogram[0] == 10 and histogram.sum() == 100
    assert density.percentile(histogram, 5) == 0
    assert density.percentile(histogram, 50) == pytest.approx(2, rel=0.01)
    assert density.percentile(density.density_histogram(np.empty(0)), 5) == 0


def test_sparse_and_dense_are_inverse():
    histogram = density.density_histogram(np.random.default_rng(0).uniform(0, 2000, 500))
    assert np.array_equal(density.dense(density.sparse(histogram)), histogram)
    assert density.dense({"bins": [], "counts": []}).sum() == 0


@pytest.mark.parametrize("percent", [0, 5, 33, 100])
def test_percentile_of_counts_equals_numpys(percent):
    values = np.random.default_rng(3).poisson(9, 77)
    pairs = dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
    assert density.count_percentile(pairs, percent) == pytest.approx(np.percentile(values, percent), abs=1e-9)
    assert density.count_percentile({}, percent) == 0
