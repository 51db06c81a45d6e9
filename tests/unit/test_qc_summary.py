"""Histograms and quantiles for the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from istseg.qc import summary


@pytest.mark.parametrize("top", [0, 1, 3, 250, 40_000])
def test_histograms_hold_every_cell_in_round_bins(top):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({name: rng.integers(0, top + 1, 500) for name in summary.MEASURES})
    obs.loc[0] = 100 * top
    for name, histogram in summary.histograms(obs).items():
        edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
        assert len(edges) == len(counts) + 1 <= 60 and edges[0] == 0
        assert counts.sum() == 500
        below = obs[name] < edges[-2]
        assert np.array_equal(np.histogram(obs[name][below], edges)[0][:-1], counts[:-1])
        decades = np.log10(edges[1] / np.array([1, 2, 5]))
        assert np.abs(decades - decades.round()).min() < 1e-6, "the width is 1, 2 or 5 times a power of ten"


def test_quantiles():
    obs = pd.DataFrame({name: np.arange(101) for name in summary.MEASURES})
    assert summary.quantiles(obs)["n_genes"] == {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100, "mean": 50}
