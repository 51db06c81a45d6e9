"""Degradations, the region as a tile, and the judgement of a degraded segmentation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_dilation

from istseg.artifacts.genes import draw_shares
from istseg.artifacts.sample import Sample
from istseg.artifacts.tiles import Tile
from istseg.converted import Points, StainImage
from istseg.stress import degrade
from istseg.stress.judge import Clean, Molecules
from istseg.stress.region import cut, densest
from tissue_fixtures import cut as tile_of
from tissue_fixtures import make_sheet

UM = 0.25


@pytest.fixture(scope="module")
def disks():
    """Four cells of 20 px radius with bright rims in two stains."""
    yy, xx = np.indices((120, 120))
    labels, stain = np.zeros((120, 120), np.int32), np.full((120, 120), 100.0)
    for i, (y, x) in enumerate([(30, 30), (30, 90), (90, 30), (90, 90)], 1):
        distance = np.hypot(yy - y, xx - x)
        labels[distance < 20] = i
        stain[distance < 20] = 500
        stain += 3000 * np.exp(-0.5 * ((distance - 20) / 1.2) ** 2)
    return labels, np.stack([stain, stain]).astype(np.uint16)


def rims(labels: np.ndarray, stain: np.ndarray, label: int) -> float:
    """Share of a cell's outline that is still bright."""
    mine = labels == label
    rim = mine & binary_dilation(~mine)
    return float((stain[rim] > 1500).mean())


def test_the_share_of_the_contour_that_was_asked_for_is_gone(disks):
    labels, stains = disks
    for share in (0.1, 0.5, 0.9):
        broken = degrade.break_contours(stains, labels, np.array([2, 3]), share, UM, seed=4)
        for k in (0, 1):
            for label in (2, 3):
                # The soft ends and the width of the pen take a little more.
                assert 1 - share - 0.1 < rims(labels, broken[k], label) / rims(labels, stains[k], label) <= 1 - share + 0.03
            assert rims(labels, broken[k], 1) == rims(labels, stains[k], 1)
    whole = degrade.break_contours(stains, labels, np.array([2]), 1.0, UM, seed=4)
    assert rims(labels, whole[0], 2) == 0
    # What is left of it looks like the inside.
    mine = labels == 2
    rim = mine & binary_dilation(~mine)
    assert np.percentile(whole[0][rim], [5, 95]) == pytest.approx([500, 500], rel=0.2)


def test_only_rims_change_and_each_stain_loses_its_own_part(disks):
    labels, stains = disks
    less, more = (degrade.break_contours(stains, labels, np.array([1]), share, UM, seed=0) for share in (0.3, 0.6))
    gone = [(stains.astype(int) - broken) > 100 for broken in (less, more)]
    mine = labels == 1
    outline = mine & binary_dilation(~mine)
    near = binary_dilation(outline, np.ones((3, 3)), iterations=7)
    assert not (less != stains)[:, ~near].any() and (less <= stains).all()
    assert (gone[0] <= gone[1]).all() and gone[1].sum() > 1.5 * gone[0].sum()
    all_cells = (stains.astype(int) - degrade.break_contours(stains, labels, np.arange(1, 5), 0.3, UM, seed=0)) > 100
    assert (all_cells[0] & all_cells[1]).sum() < 0.7 * all_cells[0].sum()
    other = degrade.break_contours(stains, labels, np.array([1]), 0.3, UM, seed=1)
    assert not np.array_equal(other, less)
    assert np.array_equal(degrade.break_contours(stains, labels, np.array([1]), 0.0, UM, seed=0), stains)


def test_draws_are_nested_and_know_no_order():
    ids = np.arange(20_000)
    shares = draw_shares(ids, 3)
    assert shares.min() >= 0 and shares.max() < 1 and abs(np.corrcoef(shares, draw_shares(ids, 4))[0, 1]) < 0.03
    np.testing.assert_allclose(np.histogram(shares, 10, (0, 1))[0], 2000, atol=200)
    table = pd.DataFrame({"transcript_id": ids})
    half = degrade.fewer_transcripts(table, 0.5, 3)["transcript_id"]
    most = degrade.fewer_transcripts(table.sample(frac=1, random_state=0), 0.9, 3)["transcript_id"]
    assert abs(len(half) - 10_000) < 300 and abs(len(most) - 18_000) < 300 and set(half) < set(most)
    assert degrade.fewer_transcripts(table, 1.0, 3).equals(table)
    labels = np.arange(1, 401).reshape(20, 20)
    few, many = (set(degrade.affected(labels, share, 0)) for share in (0.3, 0.6))
    assert few < many and 85 < len(few) < 155


def test_dimmed_and_blurred_stains(disks):
    _, stains = disks
    dimmed = degrade.dim(stains, [100, 0], 0.5)
    assert dimmed[0].min() == 100 and dimmed[1].min() == 50
    assert dimmed[0].max() == pytest.approx((stains[0].max() - 100) / 2 + 100, abs=1)
    assert np.array_equal(degrade.dim(stains, [100, 0], 1.0), stains) and np.array_equal(degrade.blur(stains, 0), stains)
    soft = degrade.blur(stains, 4)
    assert soft.max() < 0.6 * stains.max() and soft.mean() == pytest.approx(stains.mean(), rel=0.01)


def test_the_densest_box_is_found(tmp_path):
    rng = np.random.default_rng(0)
    sheet = make_sheet(tmp_path, 200, 300, per_cell=1)
    squares = rng.poisson(5, (9, 13))
    sums = {(r, c): squares[r : r + 4, c : c + 4].sum() for r in range(6) for c in range(10)}
    row, column = max(sums, key=lambda at: (sums[at], -at[0], -at[1]))
    assert densest(squares, 96, sheet.sample)[:2] == (row * 24, column * 24)
    assert densest(squares, 1000, sheet.sample) == pytest.approx((0, 0, 200, 300), abs=0.3)
    assert densest(np.zeros((9, 13)), 96, sheet.sample) == (0, 0, 96, 96)


@pytest.mark.parametrize("side", [50, 60, 110, 190])
def test_the_densest_box_has_the_side_that_was_asked_for(tmp_path, side):
    sheet = make_sheet(tmp_path, 200, 300, per_cell=1)
    height, width = sheet.sample.size_um
    for square in ((0, 0), (4, 6), (8, 12)):
        squares = np.zeros((9, 13))
        squares[square] = 1
        y0, x0, y1, x1 = densest(squares, side, sheet.sample)
        assert (y1 - y0, x1 - x0) == pytest.approx((side, side), abs=1e-9)
        assert 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width
        middle_y, middle_x = min((square[0] + 0.5) * 24, height), min((square[1] + 0.5) * 24, width)
        assert y0 <= middle_y <= y1 and x0 <= middle_x <= x1
    # As high as the mosaic is, no less wide than asked for.
    y0, x0, y1, x1 = densest(np.ones((9, 13)), 250, sheet.sample)
    assert (y0, y1) == (0, height) and x1 - x0 == 250


def test_a_region_has_the_pixels_and_transcripts_of_the_samples_tiles(tmp_path):
    sheet = make_sheet(tmp_path, pixel_um=0.108)
    tile = Tile.read(tile_of(sheet, tmp_path / "tiles")[0])
    sample = Sample.read(sheet.sample_json)
    points = Points(sheet.store, sample)
    region, stains, transcripts = cut(sample, StainImage(sheet.store, sample), points, (20.0, 30.0, 60.0, 80.0), 0.253, points.survey()[1])
    y0, x0 = int(20 / 0.253), int(30 / 0.253)
    assert np.array_equal(stains, tile.raw_stains()[:, y0 : y0 + region.shape[0], x0 : x0 + region.shape[1]])
    assert region.ranges == tile.ranges and region.stains == tile.stains
    table = tile.transcripts().set_index("transcript_id")[["x_wpx", "y_wpx"]]
    inside = table[table["y_wpx"].between(y0, y0 + region.shape[0], "left") & table["x_wpx"].between(x0, x0 + region.shape[1], "left")]
    mine = transcripts.set_index("transcript_id")
    assert set(mine.index) == set(inside.index)
    np.testing.assert_allclose(mine.loc[inside.index, ["x_wpx", "y_wpx"]], inside - [x0, y0], atol=1e-6)
    there = region.affine @ np.append(sheet.transcripts.set_index("transcript_id").loc[mine.index[0], ["x", "y"]].to_numpy(float), 1)
    np.testing.assert_allclose(there[:2], mine.iloc[0][["x_wpx", "y_wpx"]].to_numpy(float), atol=1e-6)


def test_figures_of_a_small_case_by_hand():
    """Cell 1 keeps 3 of 4 columns, cell 2 is lost, cell 3 stays; a new cell 9 without nucleus and transcripts appears."""
    clean, worse, nuclei = np.zeros((3, 8, 20), np.int32)
    clean[0:4, 0:4], clean[0:4, 6:10], clean[0:4, 12:16] = 1, 2, 3
    worse[0:4, 0:3], worse[0:4, 12:16], worse[6:8, 0:4] = 5, 7, 9
    nuclei[1:3, 1:4], nuclei[1:3, 7:9], nuclei[1:3, 13:15] = 1, 2, 3
    flat = np.array([0, 0, 3, 3, 1 * 20 + 13, 1 * 20 + 14, 1 * 20 + 2, 1 * 20 + 7, 1 * 20 + 7, 3 * 20 + 19])
    judge = Clean(clean, nuclei, Molecules(flat), 0.95, 0.05, 5.0)
    figures = judge.judge(worse, Molecules(flat), affected=np.array([1, 3]))
    assert figures["cells"] == 3 and figures["pixel_iou"] == pytest.approx((0.75 + 0 + 1) / 3)
    # Cell 1 has five transcripts, two of which lie in the column that is lost.
    assert figures["rna_iou"] == pytest.approx((3 / 5 + 0 + 1) / 3)
    assert figures["ap50"] == pytest.approx(2 / 4) and figures["ap75"] == pytest.approx(2 / 4)
    assert figures["lost"] == pytest.approx(1 / 3) and figures["new"] == pytest.approx(1 / 3)
    assert figures["spurious"] == pytest.approx(1 / 3) and figures["inconsistent"] == pytest.approx(1 / 3)
    assert figures["transcripts_in_cells"] == pytest.approx(5 / 10)
    assert figures["affected_pixel_iou"] == pytest.approx(0.875) and figures["affected_rna_iou"] == pytest.approx(0.8)
    same = judge.judge(clean, Molecules(flat))
    assert all(same[name] == 1 for name in ("pixel_iou", "rna_iou", "ap50", "ap75")) and same["lost"] == same["new"] == 0
    nothing = judge.judge(np.zeros_like(clean), Molecules(np.empty(0, np.int64)))
    assert nothing["pixel_iou"] == 0 and nothing["ap50"] == 0 and nothing["new"] is None and nothing["spurious"] is None
    assert nothing["transcripts_in_cells"] is None
