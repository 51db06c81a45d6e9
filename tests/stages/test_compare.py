"""The stage `compare` on a small sample: agreement and annotations from files, as assign writes them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import shapely

import result_fixtures as fx
from istseg.artifacts import annotations as annotations_file
from istseg.artifacts import cells as cells_file
from istseg.artifacts.comparison import Comparison
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.stages import assign, compare

CENTRES = np.array([[20, 20], [50, 30], [80, 70], [105, 50], [30, 80]], float)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`istseg`: five round cells. `other`: the first moved by 2 µm, the second too wide, the third missing, the others the same, one more."""
    world = fx.make(tmp_path_factory.mktemp("compare"), CENTRES)
    shapes = [fx.circle(22, 20, 5), fx.circle(50, 30, 9), fx.circle(105, 50, 5), fx.circle(30, 80, 5), fx.circle(60, 80, 4)]
    cells_file.write(world.root / "other.cells.parquet", cells_file.frame([f"o{i}" for i in range(5)], np.array(shapes, object)))
    for name, cells in (("istseg", world.paths["cells"]), ("other", world.root / "other.cells.parquet")):
        assign.run(
            sample_json=world.paths["sample"], transcripts=world.paths["points"], cells=cells, segmentation=name, out=world.root / name,
            labels=world.paths["labels"] if name == "istseg" else None,
        )  # fmt: skip
        world.paths[name] = cells
    return world


def inputs(world, *names):
    return {
        "sample_json": world.paths["sample"],
        "cells": {n: world.paths[n] for n in names},
        "transcripts": {n: world.root / n / "transcripts.parquet" for n in names},
    }


def annotate(world, path, shapes, region=None):
    pixels = [shapely.transform(s, lambda xy: apply_affine(world.sample.affine, xy)) for s in shapes]
    annotations_file.write_geojson(path, [(f"a{i}", p) for i, p in enumerate(pixels)], region)
    return path


def test_agreement_is_counted_on_cells_and_transcripts(world, tmp_path):
    compare.run(**inputs(world, "other", "istseg"), out=tmp_path)
    found = Comparison.read(tmp_path / "comparison.json")
    (pair,) = found.agreement
    assert (pair["first"], pair["second"], pair["n_matched"]) == ("istseg", "other", 3)
    assert pair["matched_first"] == pair["matched_second"] == 3 / 5
    moved = shapely.area(shapely.intersection(fx.circle(20, 20, 5), fx.circle(22, 20, 5)))
    area = fx.circle(0, 0, 5).area
    assert pair["mean_iou"] == pytest.approx((2 + moved / (2 * area - moved)) / 3)
    table = {n: pd.read_parquet(world.root / n / "transcripts.parquet").query("not is_control")["cell_id"].astype(object) for n in ("istseg", "other")}
    both = table["istseg"].notna() & table["other"].notna()
    assert pair["assigned_both"] == pytest.approx(both.mean())
    metrics = pytest.importorskip("sklearn.metrics")
    alone = [t.where(t.notna(), [f"alone {i}" for i in range(len(t))]) for t in table.values()]
    assert pair["ari"] == pytest.approx(metrics.adjusted_rand_score(*alone))
    assert pair["ari_assigned"] == pytest.approx(metrics.adjusted_rand_score(*(t[both] for t in table.values())))
    assert found.annotations is None and not (tmp_path / "annotated_cells.parquet").exists()
    rows = pd.DataFrame(json.loads((tmp_path / "comparison.json").read_text())["rows"])
    assert rows.query("segmentation == 'other' and against == 'istseg' and metric == 'ari'")["value"].item() == pair["ari"]
    assert len(rows) == 2 * 4


def test_annotated_cells_by_pixels_and_transcripts(world, tmp_path):
    shapes = [fx.circle(20, 20, 5), fx.circle(50, 30, 5), fx.circle(80, 70, 5), fx.circle(60, 50, 5)]
    path = annotate(world, tmp_path / "a.geojson", shapes)
    compare.run(**inputs(world, "istseg", "other"), out=tmp_path, annotations=path)
    found = Comparison.read(tmp_path / "comparison.json")
    assert found.annotations == {"n_cells": 4, "region_um2": None}
    ours = found.against["istseg"]
    assert ours["n_annotated"] == 4 and ours["found"] == 0.75 and "dense" not in ours
    assert ours["pixel_iou_mean"] == pytest.approx(0.75, abs=0.001) and ours["pixel_iou_median"] == pytest.approx(1, abs=0.002)
    assert found.against["other"]["found"] == 0.25
    table = pd.read_parquet(tmp_path / "annotated_cells.parquet").set_index(["segmentation", "annotation"])
    assert table.loc[("other", "a1"), "pixel_iou"] == pytest.approx(25 / 81, abs=0.001)
    # By brute force: transcripts in the annotated circle against those of the cell.
    genes = world.points[~world.points["is_control"]]
    inside = set(genes["transcript_id"][shapely.contains_xy(shapes[1], genes["x"], genes["y"])])
    assigned = pd.read_parquet(world.root / "other" / "transcripts.parquet").query("not is_control")
    cell = set(assigned["transcript_id"][assigned["cell_id"].astype(object) == "o1"])
    assert table.loc[("other", "a1"), "rna_match"] == "o1" and table.loc[("other", "a1"), "n_transcripts"] == pytest.approx(len(inside), abs=1)
    assert table.loc[("other", "a1"), "rna_iou"] == pytest.approx(len(inside & cell) / len(inside | cell), abs=0.01)
    assert table.loc[("istseg", "a3"), "pixel_match"] is None and table.loc[("istseg", "a3"), "rna_iou"] == 0


def test_a_region_makes_the_truth_whole(world, tmp_path):
    shapes = [fx.circle(20, 20, 5), fx.circle(50, 30, 5)]
    # In full pixels of 0.1 µm: the upper half of the image, with three of our cells and one that is not annotated.
    path = annotate(world, tmp_path / "a.geojson", shapes, shapely.box(0, 0, 1200, 550))
    compare.run(**inputs(world, "istseg"), out=tmp_path, annotations=path, iou_thresholds=(0.5, 0.75))
    found = Comparison.read(tmp_path / "comparison.json")
    dense = found.against["istseg"]["dense"]
    assert found.annotations["region_um2"] == pytest.approx(120 * 55) and found.agreement == []
    assert (dense["n_truth"], dense["n_predicted"]) == (2, 3)
    assert dense["ap"] == {"0.5": pytest.approx(2 / 3), "0.75": pytest.approx(2 / 3)} and dense["recall"] == 1


def test_same_bytes_whatever_the_order(world, tmp_path):
    path = annotate(world, tmp_path / "a.geojson", [fx.circle(20, 20, 5)])
    compare.run(**inputs(world, "istseg", "other"), out=tmp_path / "1", annotations=path)
    compare.run(**inputs(world, "other", "istseg"), out=tmp_path / "2", annotations=path)
    for name in ("comparison.json", "annotated_cells.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_segmentation_without_cells(world, tmp_path):
    cells_file.write(tmp_path / "none.cells.parquet", cells_file.frame([], np.empty(0, object)))
    assign.run(
        sample_json=world.paths["sample"], transcripts=world.paths["points"], cells=tmp_path / "none.cells.parquet", segmentation="none", out=tmp_path / "none"
    )
    given = inputs(world, "istseg")
    given["cells"]["none"], given["transcripts"]["none"] = tmp_path / "none.cells.parquet", tmp_path / "none" / "transcripts.parquet"
    compare.run(**given, out=tmp_path / "out", annotations=annotate(world, tmp_path / "a.geojson", [fx.circle(20, 20, 5)], shapely.box(0, 0, 1200, 1000)))
    found = Comparison.read(tmp_path / "out" / "comparison.json")
    assert found.agreement[0]["matched_first"] == 0 and found.agreement[0]["matched_second"] is None
    assert found.against["none"]["pixel_iou_mean"] == 0 and found.against["none"]["dense"]["mean_ap"] == 0


def test_files_that_do_not_belong_together(world, tmp_path):
    given = inputs(world, "istseg", "other")
    with pytest.raises(InputError, match="other: needs both"):
        compare.run(**{**given, "transcripts": {"istseg": given["transcripts"]["istseg"]}}, out=tmp_path)
    with pytest.raises(InputError, match="names the cell"):
        compare.run(**{**given, "transcripts": {n: given["transcripts"]["istseg"] for n in ("istseg", "other")}}, out=tmp_path)
    rows = pd.read_parquet(given["transcripts"]["other"])
    rows.iloc[::-1].to_parquet(tmp_path / "turned.parquet", row_group_size=len(rows))
    with pytest.raises(InputError, match="does not hold the same transcripts in the same order"):
        compare.run(**{**given, "transcripts": {**given["transcripts"], "other": tmp_path / "turned.parquet"}}, out=tmp_path)
    with pytest.raises(InputError, match="no such file"):
        compare.run(**{**given, "transcripts": {**given["transcripts"], "other": tmp_path / "none.parquet"}}, out=tmp_path)
    assert not (tmp_path / "comparison.json").exists()
