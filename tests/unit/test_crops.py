"""Which cells are shown, and what the pictures are made of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from istseg.artifacts.metrics import FLAGS
from istseg.qc import crops, drawing, embedding, flags


def obs_of(reasons):
    return pd.DataFrame(
        {
            "qc_reason": pd.Categorical(reasons, categories=flags.REASONS),
            "qc_flag": pd.Categorical([flags.FLAG_OF_REASON[r] for r in reasons], categories=FLAGS),
        }
    )


def test_every_flag_and_every_reason_is_shown():
    obs = obs_of(["ok"] * 50 + ["contains 2+ nuclei"] * 40 + ["cuts a nucleus"] * 2 + ["no nucleus"])
    rows = crops.choose(obs, np.zeros(len(obs), int), 4, seed=0)
    shown = obs.iloc[rows]
    assert shown["qc_flag"].value_counts().to_dict() == {"consistent": 4, "no_nucleus": 1, "inconsistent": 4, "spurious": 0}
    assert (shown["qc_reason"] == "cuts a nucleus").sum() == 2, "rare reasons are not drowned"
    assert np.array_equal(rows, crops.choose(obs, np.zeros(len(obs), int), 4, seed=0))
    assert not np.array_equal(rows, crops.choose(obs, np.zeros(len(obs), int), 4, seed=1))


def test_cells_outside_of_tiles_are_not_shown():
    obs = obs_of(["ok"] * 5)
    owner = np.array([-1, 0, -1, 0, 1])
    assert set(crops.choose(obs, owner, 10, seed=0)) == {1, 3, 4}
    assert len(crops.choose(obs, owner, 0, seed=0)) == 0
    assert len(crops.choose(obs.iloc[:0], owner[:0], 3, seed=0)) == 0


@pytest.mark.parametrize("n_membranes", [0, 1, 3])
def test_composite_colours(n_membranes):
    nucleus = np.array([[1.0, 0.0, -1.0, 9.0]], np.float32)
    membranes = np.zeros((n_membranes, 1, 4), np.float32)
    membranes[-1:, 0, 1] = 1
    picture = drawing.composite(nucleus, membranes, np.array([[0, 0, 1, 0]], np.float32)).astype(int)[0]
    assert picture.shape == (4, 3)
    assert picture[0].argmax() == 2 and np.array_equal(picture[0], picture[3]), "blue, clipped"
    assert (picture[1].argmax() == 1 and picture[1].max() > 150) if n_membranes else not picture[1].any()
    assert picture[2, 0] > picture[2, 2] > picture[2, 1], "magenta"


def test_a_contour_runs_where_the_polygon_runs():
    import shapely

    picture = np.zeros((40, 60, 3), np.uint8)
    drawing.contours(picture, np.array([shapely.box(10, 20, 30, 35), shapely.Polygon()], dtype=object), drawing.CELL)
    # The edge at x = 10 is the border between pixels 9 and 10: both are lit by half.
    yx = np.argwhere(picture[..., 0] > 90)
    assert yx.min(axis=0).tolist() == [19, 9] and yx.max(axis=0).tolist() == [35, 30]
    assert not picture[25:30, 15:25].any(), "not filled"
    before = picture.copy()
    drawing.contours(picture, np.empty(0, dtype=object), drawing.CELL)
    assert np.array_equal(before, picture)


@pytest.mark.parametrize(("um_per_px", "length_um"), [(0.083, 5), (0.25, 20), (1.0, 100), (6.7, 500)])
def test_scale_bar_has_its_length(um_per_px, length_um):
    picture = drawing.scale_bar(np.full((300, 400, 3), 90, np.uint8), um_per_px)
    white = (picture == 255).all(axis=2)
    assert white.sum(axis=1).max() == pytest.approx(length_um / um_per_px + 1, abs=1.5)


@pytest.mark.slow
def test_umap_of_more_cells_than_scanpy_takes_by_brute_force():
    """Above 4096 cells scanpy changes how it finds neighbours."""
    from anndata import AnnData
    from scipy import sparse

    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 4100)
    counts = rng.poisson(np.where(kind[:, None] == np.arange(12) % 2, 6, 0.2)).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame({"n_transcripts": counts.sum(axis=1)}, index=[str(i) for i in range(4100)]))
    found = embedding.embed(adata, 10_000, seed=0)
    rows, xy = found.rows, found.xy
    assert found.reason is None and len(rows) == 4100 and np.isfinite(xy).all()
    centres = np.array([np.median(xy[kind[rows] == k], axis=0) for k in (0, 1)])
    spread = max(np.median(np.abs(xy[kind[rows] == k] - centres[k])) for k in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * spread, "two cell types come apart"
    for c in range(found.cluster.max() + 1):
        share = (kind[rows][found.cluster == c] == 0).mean()
        assert min(share, 1 - share) < 0.02, "no cluster mixes the two types"


def test_too_few_for_a_umap():
    from anndata import AnnData
    from scipy import sparse

    adata = AnnData(sparse.csr_matrix(np.ones((29, 9), np.float32)), obs=pd.DataFrame({"n_transcripts": [9] * 29}, index=[str(i) for i in range(29)]))
    found = embedding.embed(adata, 100, seed=0)
    assert len(found.rows) == len(found.cluster) == 0 and found.xy.shape == (0, 2) and "29 cells" in found.reason
    assert embedding.embed(adata, 0, seed=0).reason is None
