"""The rules of curation, against hand-made cases and the published package's sets."""

import json

import numpy as np
import pytest
import shapely

from istseg.curation import rules


@pytest.fixture(scope="session")
def golden(real_data):
    folder = real_data.parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"the golden data are not here ({folder})")
    return folder


def _square(x, y, side):
    return shapely.box(x, y, x + side, y + side)


def _select(nuclei, cells, **options):
    return rules.select(rules.from_polygons(nuclei, cells), **options)


def test_each_rule_by_hand():
    cells = [_square(0, 0, 10), _square(20, 0, 10), _square(40, 0, 10), _square(60, 0, 10), _square(80, 0, 10)]
    nuclei = [
        _square(2, 2, 4),  # inside cell 0
        _square(21, 1, 3), _square(25, 5, 3),  # two in cell 1
        _square(48, 2, 4),  # half in cell 2
        _square(100, 0, 4),  # in no cell
    ]  # fmt: skip
    found = _select(nuclei, cells)
    assert found.cell_rule.tolist() == ["kept_one_nucleus", "dropped_several_nuclei", "dropped_partial_nucleus", "kept_without_nucleus", "kept_without_nucleus"]
    assert found.nucleus_rule.tolist() == ["in_kept_cell", "kept_stand_in", "kept_stand_in", "kept_stand_in", "kept_stand_in"]
    assert found.nucleus_of_cell.tolist() == [0, -1, -1, -1, -1]


def test_a_cell_with_one_nucleus_and_part_of_another_is_dropped():
    found = _select([_square(1, 1, 3), _square(9, 1, 3)], [_square(0, 0, 10)])
    assert found.cell_rule.tolist() == ["dropped_partial_nucleus"]
    assert found.nucleus_rule.tolist() == ["kept_stand_in", "kept_stand_in"]


def test_a_nucleus_between_two_cells_is_dropped():
    found = _select([_square(8, 2, 4)], [_square(0, 0, 10), _square(10, 0, 10)])
    assert found.cell_rule.tolist() == ["dropped_partial_nucleus"] * 2
    assert found.nucleus_rule.tolist() == ["dropped_several_cells"]


@pytest.mark.parametrize(
    ("inside", "rule"), [(95, "kept_one_nucleus"), (94, "dropped_partial_nucleus"), (6, "dropped_partial_nucleus"), (5, "kept_without_nucleus")]
)
def test_thresholds_at_least_and_more_than(inside, rule):
    nuclei, cells = np.zeros((1, 300), int), np.zeros((1, 300), int)
    nuclei[0, 100:200] = 7
    cells[0, : 100 + inside] = 3
    table, nucleus_ids, cell_ids = rules.from_label_images(nuclei, cells)
    assert nucleus_ids.tolist() == [7] and cell_ids.tolist() == [3]
    assert rules.select(table).cell_rule.tolist() == [rule]


@pytest.mark.parametrize("seed", range(3))
def test_label_images_and_polygons_give_one_table(seed):
    random = np.random.default_rng(seed)
    boxes = {"nuclei": [], "cells": []}
    images = {"nuclei": np.zeros((120, 120), int), "cells": np.zeros((120, 120), int)}
    for name, size in (("nuclei", 8), ("cells", 20)):
        for k, (y, x) in enumerate(random.integers(0, 100, (12, 2)), 1):
            part = images[name][y : y + size, x : x + size]
            if part.any():
                continue
            part[:] = k
            boxes[name].append(shapely.box(x, y, min(x + size, 120), min(y + size, 120)))
    from_images, *_ = rules.from_label_images(images["nuclei"], images["cells"])
    from_shapes = rules.from_polygons(boxes["nuclei"], boxes["cells"])
    order = np.lexsort((from_shapes.cell, from_shapes.nucleus))
    assert np.array_equal(from_images.nucleus, from_shapes.nucleus[order])
    assert np.array_equal(from_images.cell, from_shapes.cell[order])
    assert np.allclose(from_images.area, from_shapes.area[order])
    assert np.allclose(from_images.cell_area, from_shapes.cell_area)
    assert rules.select(from_images).nucleus_rule.tolist() == rules.select(from_shapes).nucleus_rule.tolist()


def test_nothing_at_all():
    empty = np.zeros((4, 4), int)
    table, *_ = rules.from_label_images(empty, empty)
    found = rules.drop_background(rules.select(table), np.empty(0), np.empty(0))
    assert found.kept_cells.tolist() == [] and found.stand_ins.tolist() == []
    assert len(rules.from_polygons([], []).area) == 0
    cells = np.ones((4, 4), int)
    table, *_ = rules.from_label_images(empty, cells)
    assert rules.select(table).cell_rule.tolist() == ["kept_without_nucleus"]
    assert rules.curated_labels(empty, empty, np.array([], int), np.array([], int)).max() == 0


def test_background_drops_only_what_has_no_partner():
    nuclei = [_square(2, 2, 4), _square(60, 0, 4)]
    found = _select(nuclei, [_square(0, 0, 10), _square(20, 0, 10)])
    found = rules.drop_background(found, np.array([0.9, 0.06]), np.array([0.9, 0.05]))
    assert found.cell_rule.tolist() == ["kept_one_nucleus", "dropped_background"]
    assert found.nucleus_rule.tolist() == ["in_kept_cell", "kept_stand_in"]
    assert rules.drop_background(found, np.zeros(2), np.array([0, 0.051])).nucleus_rule[1] == "dropped_background"
    assert rules.drop_background(found, np.zeros(2), np.array([0, 0.3]), max_background_nuclei=0.5).nucleus_rule[1] == "kept_stand_in"


def test_ids_never_collide_and_cells_win():
    cells, nuclei = np.zeros((6, 6), int), np.zeros((6, 6), int)
    cells[:3], nuclei[2:4] = 5, 5
    labels = rules.curated_labels(cells, nuclei, np.array([5]), np.array([5]))
    assert labels[2].tolist() == [5] * 6 and labels[3].tolist() == [10] * 6


def test_teaching_pixels_leave_out_every_label_that_was_not_kept():
    curated = np.array([[1, 0, 0, 0]])
    dropped, background = np.array([[0, 4, 0, 0]]), np.array([[True, True, True, False]])
    assert rules.teaching_pixels(curated, background, [curated, dropped]).tolist() == [[True, False, True, False]]


def test_golden_sets_of_the_published_package(golden):
    import geopandas as gpd

    shapes = [gpd.read_parquet(golden / f"curation_{name}.parquet").geometry.values for name in ("nuclei", "cells")]
    expected = json.loads((golden / "curation_expected.json").read_text())
    table = rules.from_polygons(*shapes)
    found = rules.select(table, count_containing=False)
    assert np.flatnonzero(found.cell_rule == "kept_one_nucleus").tolist() == expected["cell_consistent_with_nuclei"]
    assert np.flatnonzero(found.cell_rule == "kept_without_nucleus").tolist() == expected["cell_consistent_without_nuclei"]
    assert np.flatnonzero(~found.kept_cells).tolist() == expected["cell_unconsistent"]
    assert np.flatnonzero(found.nucleus_rule == "in_kept_cell").tolist() == expected["nuclei_consistent_with_cell"]
    assert np.flatnonzero(found.stand_ins).tolist() == expected["nuclei_consistent_not_in_cell"]
    contained = {str(c): [] for c in range(expected["n_cells"])}
    for nucleus, cell in zip(*(a[table.fraction >= 0.95] for a in (table.nucleus, table.cell)), strict=True):
        contained[str(cell)].append(int(nucleus))
    assert {c: sorted(n) for c, n in contained.items()} == expected["nuclei_of_kept_cell"]
    # Two nuclei lie in one cell and intersect another: the paper's rule 3 leaves them out.
    paper = rules.select(table)
    assert sorted(set(np.flatnonzero(found.stand_ins)) - set(np.flatnonzero(paper.stand_ins))) == [38, 130]
    assert paper.cell_rule.tolist() == found.cell_rule.tolist()


def test_golden_removal_of_background(golden):
    with np.load(golden / "remove_background.npz") as stored:
        given = {name: stored[name].astype(int) for name in stored.files}
    with_nucleus, without, nuclei = given["cells_with_nucleus"], given["cells_without_nucleus"], given["nuclei_not_in_cell"]
    background = given["background"] > 0
    n_with, n_without, n_nuclei = (int(image.max()) for image in (with_nucleus, without, nuclei))
    cells = np.where(with_nucleus > 0, with_nucleus, np.where(without > 0, without + n_with, 0))
    cell_rule = np.array(["kept_one_nucleus"] * n_with + ["kept_without_nucleus"] * n_without)
    before = rules.Selection(cell_rule, np.full(n_nuclei, "kept_stand_in"), np.full(len(cell_rule), -1))
    cell_ids, nucleus_ids = np.arange(1, len(cell_rule) + 1), np.arange(1, n_nuclei + 1)
    shares = rules.share_in(cells, cell_ids, background), rules.share_in(nuclei, nucleus_ids, background)
    package = rules.drop_background(before, *shares, max_background=0.05, max_background_nuclei=0.5)
    labels = rules.curated_labels(cells, nuclei, cell_ids[package.kept_cells], nucleus_ids[package.stand_ins])
    # The package numbers nuclei after the last cell that is kept, here after the last cell of all.
    last_kept = int(given["labels"][cells > 0].max())
    assert np.array_equal(np.where(labels > cells.max(), labels - cells.max() + last_kept, labels), given["labels"])
    # Its background is what neither a nucleus nor a kept label covers; the paper's leaves out dropped teacher labels as well.
    free = rules.teaching_pixels(np.zeros_like(labels), background, [labels, given["all_nuclei"]])
    assert np.array_equal(free, given["background_out"] > 0)
    paper = rules.drop_background(before, *shares, max_background=0.05)
    assert paper.stand_ins.sum() < package.stand_ins.sum()
