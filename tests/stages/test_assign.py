"""Every transcript once: by labels, by polygons, by brute force."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

import result_fixtures as fx
from istseg.artifacts import cells as cells_file
from istseg.artifacts.sample import Sample
from istseg.errors import InputError
from istseg.stages import assign

CENTRES = np.array([[20, 20], [50, 30], [80, 70], [118, 50], [60, 34], [30, 80]])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fx.make(tmp_path_factory.mktemp("assign"), CENTRES[[0, 1, 2, 3, 5]])


def go(world, out, labels=True, cells=None):
    assign.run(
        sample_json=world.paths["sample"], transcripts=world.paths["points"], cells=cells or world.paths["cells"], segmentation="istseg", out=out,
        labels=world.paths["labels"] if labels else None,
    )  # fmt: skip
    return anndata.read_h5ad(out / "counts.h5ad"), pq.read_table(out / "transcripts.parquet").to_pandas(), json.loads((out / "assign.json").read_text())


def expected(world, polygons):
    """First polygon that covers each transcript, one by one."""
    points = shapely.points(world.points[["x", "y"]].to_numpy())
    return np.array([next((i for i, p in enumerate(polygons) if p.intersects(q)), -1) for q in points])


def crosstab(world, cell, n_cells):
    matrix = np.zeros((n_cells, len(fx.GENES) + len(fx.CONTROLS)), int)
    inside = cell >= 0
    np.add.at(matrix, (cell[inside], world.points["gene"].cat.codes.to_numpy()[inside]), 1)
    return matrix


def test_polygons_against_brute_force(world, tmp_path):
    adata, table, record = go(world, tmp_path, labels=False)
    truth = expected(world, list(world.cells.geometry))
    ids = world.cells["cell_id"].to_numpy()
    by_id = table.set_index("transcript_id").loc[world.points["transcript_id"]]
    assert [None if pd.isna(c) else c for c in by_id["cell_id"]] == [ids[i] if i >= 0 else None for i in truth]
    wanted = crosstab(world, truth, len(ids))
    assert (adata.X.toarray() == wanted[:, :4]).all()
    assert (adata.obsm["controls"].toarray() == wanted[:, 4:]).all()
    assert list(adata.var_names) == fx.GENES
    assert json.loads(adata.uns["istseg"]["controls"]) == fx.CONTROLS
    assert (adata.obs["n_transcripts"] == wanted[:, :4].sum(1)).all()
    assert (adata.obs["n_genes"] == (wanted[:, :4] > 0).sum(1)).all()
    assert (adata.obs["n_control"] == wanted[:, 4:].sum(1)).all()
    counts = record["transcripts"]
    assert counts["in_cells"] + counts["in_cells_outside_image"] + counts["outside_cells"] == counts["total"] == world.sample.transcripts["genes"]
    assert counts["in_image"] + counts["outside_image"] == counts["total"]
    assert counts["in_cells"] == wanted[:, :4].sum() - counts["in_cells_outside_image"]


def test_labels_are_the_pixels_of_the_label_image(world, tmp_path):
    adata, table, _ = go(world, tmp_path)
    labels = fx.rasterise(list(world.cells.geometry), (400, 480))
    pixel = np.floor((world.points[["x", "y"]].to_numpy() - fx.ORIGIN_UM) / fx.WORKING_UM).astype(int)
    inside = (pixel[:, 0] < 480) & (pixel[:, 1] < 400)
    cell = np.full(len(pixel), -1)
    cell[inside] = labels[pixel[inside, 1], pixel[inside, 0]] - 1
    assert (adata.X.toarray() == crosstab(world, cell, 5)[:, :4]).all()
    assert table["transcript_id"].is_unique and len(table) == len(world.points)
    assert adata.obs["n_transcripts"].sum() > 0


def test_labels_and_polygons_nearly_agree(world, tmp_path):
    a, _, _ = go(world, tmp_path / "a")
    b, _, _ = go(world, tmp_path / "b", labels=False)
    assert abs(a.X - b.X).sum() < 0.05 * a.X.sum()


def test_result_does_not_depend_on_the_batch(world, tmp_path, monkeypatch):
    whole, table, _ = go(world, tmp_path / "a")
    monkeypatch.setattr("istseg.artifacts.spatial.BATCH", 97)
    monkeypatch.setattr("istseg.counts._PENDING", 50)
    monkeypatch.setattr("istseg.locate._BLOCK", 64)
    small, small_table, _ = go(world, tmp_path / "b")
    assert (whole.X != small.X).nnz == 0
    pd.testing.assert_frame_equal(table.astype({"cell_id": str, "gene": str}), small_table.astype({"cell_id": str, "gene": str}))


def test_same_bytes_twice(world, tmp_path):
    for name in ("a", "b"):
        go(world, tmp_path / name)
    for file in ("counts.h5ad", "transcripts.parquet", "assign.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_smallest_index_wins_where_polygons_overlap(tmp_path):
    world = fx.make(tmp_path, np.array([[40, 40], [44, 40], [48, 40]]), radius=6)
    adata, table, _ = go(world, tmp_path / "out", labels=False)
    truth = expected(world, list(world.cells.geometry))
    assert (adata.X.toarray() == crosstab(world, truth, 3)[:, :4]).all()
    assert table["transcript_id"].is_unique


def test_a_shared_border_belongs_to_the_first(tmp_path):
    world = fx.make(tmp_path, np.array([[40, 40]]))
    corner = fx.ORIGIN_UM
    left, right = shapely.box(*corner, *(corner + 10)), shapely.box(*(corner + [10, 0]), *(corner + [20, 10]))
    from istseg.locate import PolygonLocator

    border = np.array([corner + [10, 5], corner + [20, 5], corner + [5, 5], corner + [25, 5]])
    assert PolygonLocator(np.array([left, right], dtype=object))(border).tolist() == [0, 1, 0, -1]
    assert PolygonLocator(np.array([right, None, left, shapely.Polygon()], dtype=object))(border).tolist() == [0, 0, 2, -1]
    assert world.cells is not None


def test_polygons_outside_the_image_are_counted_but_not_in_the_share(tmp_path):
    world = fx.make(tmp_path, np.array([[40, 40], [123, 5]]), outside=50)
    adata, _, record = go(world, tmp_path / "out", labels=False)
    counts = record["transcripts"]
    assert counts["in_cells_outside_image"] > 0
    assert adata.X.sum() == counts["in_cells"] + counts["in_cells_outside_image"]
    assert counts["fraction_in_cells"] == counts["in_cells"] / counts["in_image"]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("centres", [np.empty((0, 2)), np.array([[40, 40]])], ids=["no cell", "one cell"])
def test_few_cells(tmp_path, centres, labels):
    world = fx.make(tmp_path, centres)
    adata, table, record = go(world, tmp_path / "out", labels=labels)
    assert adata.shape == (len(centres), 4)
    assert adata.obsm["spatial"].shape == (len(centres), 2)
    assert table["cell_id"].notna().sum() == adata.X.sum() + adata.obsm["controls"].sum()
    assert record["n_cells"] == len(centres)


def test_no_transcripts(tmp_path):
    world = fx.make(tmp_path, CENTRES[:2], n_transcripts=0, outside=0)
    adata, table, record = go(world, tmp_path / "out")
    assert len(table) == 0 and adata.X.sum() == 0 and adata.n_obs == 2
    assert record["transcripts"]["fraction_in_cells"] is None


def test_cells_without_transcripts_stay(tmp_path):
    world = fx.make(tmp_path, CENTRES[:3], n_transcripts=20, outside=0)
    adata, _, _ = go(world, tmp_path / "out")
    assert list(adata.obs_names) == list(world.cells["cell_id"])
    assert (adata.obs["n_transcripts"] == 0).any()


def test_part_missing(world, tmp_path):
    import shutil

    cut = shutil.copytree(world.paths["points"], tmp_path / "points.parquet")
    (cut / "part.1.parquet").unlink()
    with pytest.raises(InputError, match="not the whole set of transcripts"):
        assign.run(sample_json=world.paths["sample"], transcripts=cut, cells=world.paths["cells"], segmentation="istseg", out=tmp_path / "out")
    assert not (tmp_path / "out" / "counts.h5ad").exists()


def test_unknown_gene(world, tmp_path):
    sample = Sample.read(world.paths["sample"])
    sample.genes = fx.GENES[1:]
    sample.write(tmp_path / "sample.json")
    with pytest.raises(InputError, match="'Actb'"):
        assign.run(sample_json=tmp_path / "sample.json", transcripts=world.paths["points"], cells=world.paths["cells"], segmentation="istseg", out=tmp_path)


def test_gene_that_is_a_control_elsewhere(world, tmp_path):
    sample = Sample.read(world.paths["sample"])
    sample.genes, sample.controls = [*fx.GENES, "Blank-1"], ["Blank-2"]
    sample.write(tmp_path / "sample.json")
    with pytest.raises(InputError, match="'Blank-1' is a control probe in one"):
        assign.run(sample_json=tmp_path / "sample.json", transcripts=world.paths["points"], cells=world.paths["cells"], segmentation="istseg", out=tmp_path)


def test_labels_of_another_run(world, tmp_path):
    fewer = world.cells.iloc[:3]
    cells_file.write(tmp_path / "cells.parquet", fewer)
    with pytest.raises(InputError, match="different runs of merge"):
        go(world, tmp_path, cells=tmp_path / "cells.parquet")
    cells_file.write(tmp_path / "cells.parquet", fewer.assign(label=0))
    with pytest.raises(InputError, match="one positive label each"):
        go(world, tmp_path, cells=tmp_path / "cells.parquet")


def test_no_such_array_and_no_points(world, tmp_path):
    with pytest.raises(InputError, match="no array 'vendor'"):
        assign.run(
            sample_json=world.paths["sample"],
            transcripts=world.paths["points"],
            cells=world.paths["cells"],
            segmentation="vendor",
            out=tmp_path,
            labels=world.paths["labels"],
        )
    with pytest.raises(InputError, match="holds no part"):
        assign.run(sample_json=world.paths["sample"], transcripts=tmp_path, cells=world.paths["cells"], segmentation="istseg", out=tmp_path)


def by_table(world, out, table, **given):
    table.to_parquet(out / "assignment.parquet", index=False)
    paths = {"sample_json": world.paths["sample"], "transcripts": world.paths["points"], "cells": world.paths["cells"]}
    assign.run(**paths, segmentation="istseg", out=out, assignment=out / "assignment.parquet", **given)
    return anndata.read_h5ad(out / "counts.h5ad"), pq.read_table(out / "transcripts.parquet").to_pandas(), json.loads((out / "assign.json").read_text())


def test_a_table_goes_before_polygons(world, tmp_path):
    """Whose a transcript is is what the table says, also far from the cell's outline; what it does not name lies in no cell."""
    ids = world.cells["cell_id"].to_numpy()
    chosen = world.points.sample(700, random_state=3)
    number = np.random.default_rng(0).integers(0, len(ids), len(chosen))
    adata, table, record = by_table(world, tmp_path, pd.DataFrame({"transcript_id": chosen["transcript_id"], "cell_id": ids[number]}))
    cell = pd.Series(-1, world.points["transcript_id"])
    cell.loc[chosen["transcript_id"]] = number
    assert (adata.X.toarray() == crosstab(world, cell.to_numpy(), len(ids))[:, :4]).all()
    assert (adata.obsm["controls"].toarray() == crosstab(world, cell.to_numpy(), len(ids))[:, 4:]).all()
    assert table["cell_id"].notna().sum() == 700
    assert record["assignment"] == "table"


def test_an_empty_table_gives_empty_cells(world, tmp_path):
    adata, table, _ = by_table(world, tmp_path, pd.DataFrame({"transcript_id": np.array([], np.int64), "cell_id": np.array([], str)}))
    assert adata.n_obs == len(world.cells)
    assert adata.X.sum() == 0
    assert table["cell_id"].isna().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"transcript_id": [10, 10], "cell_id": ["FIRST", "FIRST"]}, "names the transcript 10 more than once"),
        ({"transcript_id": [10], "cell_id": ["elsewhere_1"]}, "names the cell 'elsewhere_1'"),
        ({"transcript_id": [10, 10**9], "cell_id": ["FIRST", "FIRST"]}, "names 2 transcripts, the sample has 1 of them"),
        ({"transcript": [10], "cell_id": ["FIRST"]}, "is not a Parquet table with transcript_id and cell_id"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(world, tmp_path, rows, message):
    first = world.cells["cell_id"].iloc[0]
    with pytest.raises(InputError, match=message):
        by_table(world, tmp_path, pd.DataFrame(rows).replace("FIRST", first))
    assert not (tmp_path / "counts.h5ad").exists()


def test_labels_and_table_together_are_refused(world, tmp_path):
    table = pd.DataFrame({"transcript_id": [10], "cell_id": [world.cells["cell_id"].iloc[0]]})
    with pytest.raises(InputError, match="give one of them"):
        by_table(world, tmp_path, table, labels=world.paths["labels"])
