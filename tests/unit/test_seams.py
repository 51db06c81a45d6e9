"""Seam figures: 1 without a seam, and the size of a planted one."""

from __future__ import annotations

import numpy as np
import pytest

import result_fixtures as fx
from istseg.artifacts.tiles import TileIndex
from istseg.qc import seams, summary

LINE = 384 * fx.WORKING_UM
"""Tiles of one window: borders 96 µm from the upper and the left edge."""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    world = fx.make(tmp_path_factory.mktemp("seams"), np.empty((0, 2)), n_transcripts=10, outside=0)
    return world.paths["tiles"], TileIndex.read(world.paths["tiles"] / "tiles.json")


def even(n, rng):
    return fx.ORIGIN_UM + rng.uniform(0, 1, (n, 2)) * [fx.WIDTH_UM, fx.HEIGHT_UM]


def test_no_seam(index):
    xy = even(40_000, np.random.default_rng(0))
    found = seams.compare(*index, xy, np.full(len(xy), 50.0))
    assert found["n_border"] + found["n_inside"] == len(xy)
    assert found["density_ratio"] == pytest.approx(1, abs=0.03) and found["area_ratio"] == 1


def test_planted_seam(index):
    xy = even(40_000, np.random.default_rng(1))
    local = xy - fx.ORIGIN_UM
    near = np.abs(local - LINE).min(axis=1) < seams.BORDER_UM
    keep = ~near | (np.arange(len(xy)) % 2 == 0)
    found = seams.compare(*index, xy[keep], np.where(near, 25.0, 50.0)[keep])
    assert found["density_ratio"] == pytest.approx(0.5, abs=0.03) and found["area_ratio"] == pytest.approx(0.5)
    assert found["n_border"] == (near & keep).sum()


def test_no_border_no_ratio(tmp_path):
    world = fx.make(tmp_path, np.empty((0, 2)), n_transcripts=10, outside=0, windows_per_side=2)
    tiles = world.paths["tiles"]
    found = seams.compare(tiles, TileIndex.read(tiles / "tiles.json"), even(10, np.random.default_rng(0)), np.ones(10))
    assert found == {"n_border": 0, "n_inside": 10, "density_ratio": None, "area_ratio": None}


def test_no_cells(index):
    assert seams.compare(*index, np.empty((0, 2)), np.empty(0)) == {"n_border": 0, "n_inside": 0, "density_ratio": None, "area_ratio": None}


def fields(*boxes_um):
    """Boxes y0, x0, y1, x1 in µm from the corner → working pixels."""
    return np.array(boxes_um, float) / fx.WORKING_UM


def test_planted_seam_between_fields(index):
    xy = even(60_000, np.random.default_rng(2))
    local = xy - fx.ORIGIN_UM
    # Two fields that overlap by 8 µm, x 0 to 64 and 56 to 120: within 10 µm of both lies x from 46 to 74.
    near = (local[:, 0] >= 46) & (local[:, 0] < 74)
    keep = ~near | (np.arange(len(xy)) % 4 > 0)
    found = seams.compare_fields(*index, fields([0, 0, 100, 64], [0, 56, 100, 120]), xy[keep], np.where(near, 40.0, 50.0)[keep])
    assert found["density_ratio"] == pytest.approx(0.75, abs=0.04) and found["area_ratio"] == pytest.approx(0.8, abs=0.02)
    assert found["n_border"] + found["n_inside"] == keep.sum() and found["n_border"] == (near & keep).sum()


def test_fields_that_touch_lie_apart_or_are_not_known(index):
    xy = even(60_000, np.random.default_rng(3))
    areas = np.ones(len(xy))
    touching = seams.compare_fields(*index, fields([0, 0, 100, 60], [0, 60, 100, 120]), xy, areas)
    assert touching["density_ratio"] == pytest.approx(1, abs=0.04) and touching["n_border"] == pytest.approx(10_000, rel=0.05)
    apart = seams.compare_fields(*index, fields([0, 0, 100, 40], [0, 80, 100, 120]), xy, areas)
    assert apart == {"n_border": 0, "n_inside": pytest.approx(50_000, rel=0.05), "density_ratio": None, "area_ratio": None}, "the gap is of no field"
    assert seams.compare_fields(*index, fields([0, 0, 100, 60]), xy, areas) is None
    assert seams.compare_fields(*index, np.empty((0, 4)), xy, areas) is None


def test_a_seam_is_said(index):
    import pandas as pd

    obs = pd.DataFrame({"n_transcripts": [5], "background_fraction": [0.0]})
    counts = {"fraction_in_cells": 0.8, "in_cells": 10, "controls_in_cells": 0}
    flags = {"inconsistent_rate": 0.0, "spurious_rate": 0.0, "outside_image": 0}
    nuclei = {"total": 1, "in_no_cell": 0}
    for ratio, said in ((0.5, True), (1.0, False), (1.6, True)):
        border = {"n_border": 200, "n_inside": 900, "density_ratio": ratio, "area_ratio": None}
        assert bool(summary.warnings(obs, counts, flags, nuclei, border, 8)) == said
