"""Halves of cells, nuclei against the rest of cells: counts and correlations by hand and by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy import sparse

import result_fixtures as fx
from istseg.artifacts.assigned import AssignedTranscripts
from istseg.artifacts.genes import draw_order
from istseg.qc import profiles
from istseg.stages import assign


def csr(rows):
    return sparse.csr_matrix(np.array(rows, np.float32))


def test_correlation_is_that_of_log_counts():
    rng = np.random.default_rng(0)
    a, b = rng.poisson(1.0, (6, 40)), rng.poisson(1.0, (6, 40))
    a[3] = 0
    found = profiles.correlations(csr(a), csr(b))
    for i in range(6):
        wanted = np.corrcoef(np.log1p(a[i]), np.log1p(b[i]))[0, 1] if i != 3 else np.nan
        assert found[i] == pytest.approx(wanted, rel=1e-4, nan_ok=True)


def test_transcripts_are_counted_by_half_and_by_nucleus(tmp_path):
    world = fx.make(tmp_path, np.array([[20, 20], [50, 30], [80, 70]], float), radius=8)
    assign.run(sample_json=world.paths["sample"], transcripts=world.paths["points"], cells=world.paths["cells"], segmentation="x", out=tmp_path / "x")
    ids = world.cells["cell_id"].tolist()
    nuclei = world.nuclei.geometry.to_numpy()
    found = profiles.gather(AssignedTranscripts(tmp_path / "x" / "transcripts.parquet", ids, fx.GENES), (3, len(fx.GENES)), nuclei)
    genes = world.points[~world.points["is_control"]]
    first = draw_order(genes["transcript_id"].to_numpy()) < 2**63
    for i, (cell, nucleus) in enumerate(zip(world.cells.geometry, nuclei, strict=True)):
        in_cell, in_nucleus = (shapely.intersects_xy(s, genes["x"], genes["y"]) for s in (cell, nucleus))
        for matrix, rows in ((found.half, in_cell & first), (found.nuclear, in_cell & in_nucleus), (found.nuclei, in_nucleus)):
            assert matrix[i].toarray().ravel().tolist() == genes["gene"][rows].value_counts().reindex(fx.GENES).fillna(0).tolist()
    assert 0.4 < found.half.sum() / sum(shapely.intersects_xy(c, genes["x"], genes["y"]).sum() for c in world.cells.geometry) < 0.6


def test_halves_and_nuclei_by_hand():
    # Cell 0: its halves are the same; cell 1: opposite; cell 2: too few transcripts in one half.
    half = csr([[10, 0, 5, 0], [20, 0, 0, 0], [9, 0, 0, 0]])
    counts = csr([[20, 0, 10, 0], [20, 20, 0, 0], [30, 30, 0, 0]])
    found = profiles.halves(half, counts, 0)
    assert found["half_cells"] == 2 and found["neighbour_consistency"] is None
    assert found["half_correlation"] == pytest.approx((1 - 1 / 3) / 2)
    # Nucleus and rest: cell 0 the same, cell 1 the same but of another gene, cell 2 holds two nuclei.
    nuclear = csr([[10, 0, 5, 0], [0, 10, 0, 0], [15, 15, 0, 0]])
    counts = csr([[20, 0, 10, 0], [0, 30, 0, 0], [30, 30, 0, 0]])
    found = profiles.nuclear(nuclear, counts, np.array([True, True, False]), np.array([[0.0, 0], [10, 0], [1, 0]]))
    assert found["nuclear_cells"] == 2 and found["nuclear_correlation"] == pytest.approx(1)
    log = np.log1p([10, 0, 5, 0])
    other = np.corrcoef(log, [0, 1, 0, 0])[0, 1]
    assert found["nuclear_specificity"] == pytest.approx(1 - other, rel=1e-5)


def test_consistency_is_high_for_real_types_and_low_for_noise():
    rng = np.random.default_rng(3)
    types = rng.gamma(0.3, 2.0, (40, 60))
    own = types[np.repeat(np.arange(40), 10)]
    noise = np.full(own.shape, own.mean())
    scores = []
    for rates in (own, noise):
        half, other = csr(rng.poisson(rates)), csr(rng.poisson(rates))
        scores.append(profiles.halves(half, (half + other).tocsr(), 0)["neighbour_consistency"])
    assert scores[0] > 0.4 and scores[1] < 0.1, "15 neighbours, 9 of the same type; by chance 15 of 399"
    again = profiles.halves(half, (half + other).tocsr(), 0)["neighbour_consistency"]
    assert again == scores[1]


def test_consistency_of_equal_cells_is_a_share():
    half = csr(np.tile([20, 5, 0, 1], (40, 1)))
    assert profiles.halves(half, half * 2, 0)["neighbour_consistency"] == 1, "both halves have the same neighbours, 15 of them"


def test_nothing_to_compare():
    empty = csr(np.zeros((0, 4)))
    assert profiles.halves(empty, empty, 0) == {"half_cells": 0, "half_correlation": None, "neighbour_consistency": None}
    none = profiles.nuclear(empty, empty, np.zeros(0, bool), np.zeros((0, 2)))
    assert none == {"nuclear_cells": 0, "nuclear_correlation": None, "nuclear_specificity": None}
