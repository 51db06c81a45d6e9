"""The rules of the flags, one by one, and the counts of nuclei."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from istseg.artifacts.metrics import FLAGS
from istseg.qc import flags, nuclei


@pytest.mark.parametrize(
    ("contained", "intersected", "transcripts", "reason", "flag"),
    [
        (1, 1, 0, "ok", "consistent"),
        (0, 0, 10, "no nucleus", "no_nucleus"),
        (0, 0, 9, "no nucleus and < T_spurious transcripts", "spurious"),
        (0, 1, 0, "cuts a nucleus", "inconsistent"),
        (0, 3, 50, "cuts a nucleus", "inconsistent"),
        (1, 2, 50, "contains a nucleus and cuts another", "inconsistent"),
        (2, 2, 50, "contains 2+ nuclei", "inconsistent"),
        (2, 3, 0, "contains 2+ nuclei", "inconsistent"),
    ],
)
def test_rules(contained, intersected, transcripts, reason, flag):
    row = flags.flag(np.array([contained]), np.array([intersected]), np.array([transcripts]), 10.0).iloc[0]
    assert (row["qc_reason"], row["qc_flag"]) == (reason, flag)
    assert row["is_spurious"] == (flag == "spurious") and row["is_inconsistent"] == (flag == "inconsistent")


def test_every_reason_has_a_flag_and_categories_are_complete():
    assert set(flags.FLAG_OF_REASON.values()) == set(FLAGS)
    table = flags.flag(*(np.empty(0, int),) * 3, 10)
    assert len(table) == 0 and tuple(table["qc_reason"].cat.categories) == flags.REASONS and tuple(table["qc_flag"].cat.categories) == FLAGS


def halves(share):
    """A nucleus of 10 × 10 and a cell that covers that share of it."""
    return shapely.box(0, 0, 10, 10), shapely.box(-5, -5, 10 * share, 15)


@pytest.mark.parametrize(("share", "contained", "intersected"), [(1.0, 1, 1), (0.951, 1, 1), (0.949, 0, 1), (0.051, 0, 1), (0.049, 0, 0), (0.0, 0, 0)])
def test_thresholds_are_shares_of_the_nucleus(share, contained, intersected):
    nucleus, cell = halves(share)
    counted = nuclei.count(np.array([nucleus], dtype=object), np.array([cell], dtype=object))
    assert (counted.contained[0], counted.intersected[0]) == (contained, intersected)
    assert (counted.containing_cells[0], counted.intersecting_cells[0]) == (contained, intersected)


def test_against_one_by_one_and_in_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    cells = shapely.buffer(shapely.points(rng.uniform(0, 60, (80, 2))), 5)
    inner = shapely.buffer(shapely.points(rng.uniform(0, 60, (120, 2))), rng.uniform(0.5, 3, 120))
    share = shapely.area(shapely.intersection(cells[:, None], inner[None])) / shapely.area(inner)[None]
    for chunk in (50_000, 7):
        monkeypatch.setattr(nuclei, "_CHUNK", chunk)
        counted = nuclei.count(inner, cells)
        assert np.array_equal(counted.contained, (share >= 0.95).sum(axis=1)) and np.array_equal(counted.intersected, (share > 0.05).sum(axis=1))
        assert np.array_equal(counted.containing_cells, (share >= 0.95).sum(axis=0)) and np.array_equal(counted.intersecting_cells, (share > 0.05).sum(axis=0))


def test_invalid_and_missing_polygons():
    bow_tie = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    repaired = nuclei.valid_polygons(np.array([bow_tie, None, shapely.box(0, 0, 1, 1)], dtype=object))
    assert shapely.is_valid(repaired).all() and repaired[0].area == 8 and repaired[1].is_empty
    assert len(nuclei.valid_polygons(np.empty(0, dtype=object))) == 0
    nothing = nuclei.count(np.empty(0, dtype=object), repaired)
    assert nothing.contained.tolist() == [0, 0, 0] and len(nothing.containing_cells) == 0
