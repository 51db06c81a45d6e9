"""Flags, measures, pictures and metrics of assess against a sample whose truth is known."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
import shapely
import shapely.affinity
from PIL import Image

import result_fixtures as fx
from istseg.artifacts import cells as cells_file
from istseg.artifacts.metrics import FLAGS, Metrics
from istseg.artifacts.thresholds import Thresholds
from istseg.errors import InputError
from istseg.stages import assess, assign

CENTRES = np.array([[20, 20], [50, 30], [80, 70], [105, 50], [30, 80], [60, 80], [97, 20]], float)


def nuclei_of(centres):
    """ok, two nuclei, cut, contains one and cuts one, none, none, ok."""
    c = centres
    return [
        fx.circle(*c[0], 2.5),
        fx.circle(c[1, 0] - 2, c[1, 1], 1.5), fx.circle(c[1, 0] + 2, c[1, 1], 1.5),
        fx.circle(c[2, 0] + 4, c[2, 1], 2.5),
        fx.circle(c[3, 0] - 2, c[3, 1], 1.5), fx.circle(c[3, 0] + 5, c[3, 1], 1.5),
        fx.circle(c[6, 0], c[6, 1], 2.0),
        fx.circle(10, 60, 2.0),
    ]  # fmt: skip


WANTED = ["ok", "contains 2+ nuclei", "cuts a nucleus", "contains a nucleus and cuts another", "no nucleus", "no nucleus and < T_spurious transcripts", "ok"]


def go(world, out, labels=True, **options):
    assign.run(
        sample_json=world.paths["sample"], transcripts=world.paths["points"], cells=world.paths["cells"], segmentation="istseg", out=out / "assign",
        labels=world.paths["labels"] if labels else None,
    )  # fmt: skip
    arguments = {k: world.paths[k] for k in ("tiles", "cells", "nuclei", "thresholds")} | {"umap_cells": 0, "crops": 2} | options
    assess.run(sample_json=world.paths["sample"], counts=out / "assign", segmentation="istseg", out=out, **arguments)
    return anndata.read_h5ad(out / "counts.h5ad"), Metrics.read(out / "metrics.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """No transcripts lie in cell 5, so that it is spurious."""
    return fx.make(tmp_path_factory.mktemp("assess"), CENTRES, nuclei=nuclei_of(CENTRES), without_rna=[fx.circle(*CENTRES[5], 6.5)])


@pytest.fixture(scope="module")
def result(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    merged = out / "merge.json"
    method = {"name": "base", "sha256": "ab", "params": {"steps": 60, "missing": None}, "list": [{"a": 1}]}
    merged.write_text(json.dumps({"segmentations": {"istseg": {"method": method | {"seconds": 3.1}}, "teacher": {"method": {"name": "other"}}}}))
    return *go(world, out, merge_json=merged), out


def test_flags_and_reasons(result):
    adata, metrics, _ = result
    assert adata.obs["qc_reason"].tolist() == WANTED
    assert adata.obs["qc_flag"].tolist() == ["consistent", "inconsistent", "inconsistent", "inconsistent", "no_nucleus", "spurious", "consistent"]
    assert adata.obs["n_nuclei_contained"].tolist() == [1, 2, 0, 1, 0, 0, 1]
    assert adata.obs["n_nuclei_intersected"].tolist() == [1, 2, 1, 2, 0, 0, 1]
    assert adata.obs["is_spurious"].tolist() == [r.endswith("T_spurious transcripts") for r in WANTED]
    assert adata.obs["is_inconsistent"].tolist() == [f == "inconsistent" for f in adata.obs["qc_flag"]]
    assert {k: metrics.flags[k] for k in FLAGS} == {"consistent": 2, "no_nucleus": 1, "inconsistent": 3, "spurious": 1}
    assert metrics.flags["spurious_rate"] == pytest.approx(1 / 7) and metrics.flags["inconsistent_rate"] == pytest.approx(3 / 7)
    assert metrics.flags["without_nucleus_rate"] == pytest.approx(2 / 7)
    assert {k: v for k, v in metrics.reasons.items() if v} == {r: WANTED.count(r) for r in WANTED}
    assert metrics.nuclei == {"total": 8, "in_one_cell": 5, "fraction_in_one_cell": 5 / 8, "in_no_cell": 1}


def test_stain_means_and_background(result, world):
    adata, _, _ = result
    # In the fixture a cell's membrane stain is 500 inside the cell and the nucleus stain 800 or 50.
    assert adata.obs["Cellbound1_mean"].between(480, 500).all()
    inside = shapely.area(shapely.intersection(shapely.union_all(world.nuclei.geometry.to_numpy()), world.cells.geometry.to_numpy()))
    expected = 50 + 750 * inside / world.cells["area_um2"].to_numpy()
    assert adata.obs["DAPI_mean"].to_numpy() == pytest.approx(expected, rel=0.05)
    background = adata.obs["background_fraction"].to_numpy()
    assert background[5] == 1.0
    assert background[[0, 1, 2, 3, 4, 6]].max() < 0.6


def test_uns_is_json_able_and_says_how(result):
    adata, metrics, _ = result
    record = adata.uns["istseg"]
    json.dumps({k: v.tolist() if hasattr(v, "tolist") else v for k, v in record.items() if k != "method"})
    assert record["thresholds"]["spurious_count"] == 8.0
    assert record["method"]["sha256"] == "ab" and record["method"]["list"] == '[{"a": 1}]' and "missing" not in record["method"]["params"]
    assert metrics.method["params"]["missing"] is None


def test_pictures(result):
    _, metrics, out = result
    assert len(metrics.crops) == 2 + 1 + 2 + 1
    assert sorted(p.name for p in (out / "crops").iterdir()) == sorted(c["file"].removeprefix("crops/") for c in metrics.crops)
    for crop in metrics.crops:
        picture = np.asarray(Image.open(out / crop["file"]))
        yellow = (picture == [255, 214, 10]).all(axis=2)
        assert picture.shape == (432, 432, 3) and yellow.sum() > 200
        # The cell sits in the middle of its picture.
        assert np.abs(np.argwhere(yellow).mean(axis=0) - 216).max() < 12
    overview = np.asarray(Image.open(out / metrics.overview["file"]))
    assert overview.shape[1] * metrics.overview["um_per_px"] == pytest.approx(fx.WIDTH_UM, rel=0.01)
    y, x = (CENTRES[0, ::-1] / metrics.overview["um_per_px"]).astype(int)
    assert overview[y, x, 2] > 150, "the nucleus is blue"
    ring = round(5 / metrics.overview["um_per_px"])
    near = overview[y - 2 : y + 3, x + ring - 3 : x + ring + 4].reshape(-1, 3).astype(int)
    assert ((near[:, 0] > 180) & (near[:, 2] < 90)).any(), "the contour is yellow and in its place"


def test_same_bytes_twice(world, tmp_path):
    for name in ("a", "b"):
        go(world, tmp_path / name)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_measures_do_not_depend_on_the_tiling(tmp_path):
    a, _ = go(fx.make(tmp_path / "a", CENTRES, windows_per_side=1), tmp_path / "a")
    b, _ = go(fx.make(tmp_path / "b", CENTRES, windows_per_side=2), tmp_path / "b")
    assert a.obs.equals(b.obs)


@pytest.mark.parametrize("membranes", [(), ("Cellbound1", "Cellbound2")], ids=["no membrane", "two membranes"])
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("with_nuclei", [True, False])
def test_few_cells_and_stains(tmp_path, membranes, n, with_nuclei):
    world = fx.make(tmp_path, CENTRES[:n], nuclei=None if with_nuclei else [], membranes=membranes)
    adata, metrics = go(world, tmp_path / "out", umap_cells=100)
    assert adata.n_obs == metrics.n_cells == n
    assert all(f"{m}_mean" in adata.obs for m in ("DAPI", *membranes))
    assert (metrics.flags["spurious_rate"] is None) == (n == 0)
    assert bool(metrics.quantiles) == bool(n) and bool(metrics.histograms) == bool(n)
    assert metrics.warnings
    assert (tmp_path / "out" / "crops").is_dir() and len(metrics.crops) == n
    assert metrics.embedding["x"] == []
    if n and not with_nuclei:
        assert any("No nuclei" in w for w in metrics.warnings)
        assert metrics.nuclei["fraction_in_one_cell"] is None


def test_no_transcripts(tmp_path):
    world = fx.make(tmp_path, CENTRES[:3], n_transcripts=0, outside=0)
    adata, metrics = go(world, tmp_path / "out")
    assert metrics.transcripts["fraction_in_cells"] is None and (adata.obs["background_fraction"] == 1).all()
    assert any("No transcripts" in w for w in metrics.warnings)


def test_a_vendors_broken_polygons(tmp_path):
    world = fx.make(tmp_path, CENTRES[:3])
    corner = fx.ORIGIN_UM
    bow_tie = shapely.Polygon([corner + p for p in ([60, 60], [66, 66], [66, 60], [60, 66])])
    parts = shapely.MultiPolygon([fx.circle(30, 50, 3), fx.circle(40, 50, 3)])
    beyond = fx.circle(fx.WIDTH_UM + 20, 10, 4)
    speck = fx.circle(70.06, 40.06, 0.01)
    shapes = [*world.cells.geometry, bow_tie, parts, beyond, speck]
    cells_file.write(world.paths["cells"], cells_file.frame([f"v{i}" for i in range(len(shapes))], np.array(shapes, dtype=object)))
    adata, metrics = go(world, tmp_path / "out", labels=False, crops=10)
    assert adata.n_obs == 7 and metrics.flags["outside_image"] == 1
    assert adata.obs["DAPI_mean"].isna().tolist() == [False] * 5 + [True, True]
    assert metrics.flags["without_nucleus_rate"] == pytest.approx(3 / 6), "the cell outside the image is in no rate"
    assert any("outside the image" in w for w in metrics.warnings) and any("1 cells lie outside the tissue" in w for w in metrics.warnings)
    assert len(metrics.crops) == 6


def test_a_record_of_this_segmentation_alone_brings_its_warnings(world, tmp_path):
    """That of the stage merge speaks of several: its warnings are the sample's."""
    record = tmp_path / "x.merge.json"
    for others, told in (({}, True), ({"teacher": {}}, False)):
        record.write_text(json.dumps({"segmentations": {"istseg": {"method": {}}} | others, "warnings": ["two runs differ"]}))
        _, metrics = go(world, tmp_path, merge_json=record)
        assert ("two runs differ" in metrics.warnings) is told


def test_stale_crops_do_not_stay(world, tmp_path):
    go(world, tmp_path, crops=3)
    _, metrics = go(world, tmp_path, crops=1)
    assert len(list((tmp_path / "crops").iterdir())) == len(metrics.crops) == 4


def test_files_of_different_samples(world, tmp_path):
    limits = Thresholds.read(world.paths["thresholds"])
    limits.sample = "other"
    limits.write(tmp_path / "thresholds.json")
    cells_file.write(tmp_path / "cells.parquet", world.cells.iloc[:2])
    assign.run(sample_json=world.paths["sample"], transcripts=world.paths["points"], cells=world.paths["cells"], segmentation="vendor", out=tmp_path / "a")
    with pytest.raises(InputError) as error:
        assess.run(
            sample_json=world.paths["sample"], tiles=world.paths["tiles"], counts=tmp_path / "a", cells=tmp_path / "cells.parquet",
            nuclei=world.paths["nuclei"],
            thresholds=tmp_path / "thresholds.json", segmentation="istseg", out=tmp_path / "out",
        )  # fmt: skip
    assert len(error.value.problems) == 3, "all problems at once"
    assert not (tmp_path / "out").exists()


def tissue(root, n=12):
    """Cells on a lattice with expression that follows their column."""
    grid = np.array([[x, y] for x in np.linspace(8, 112, n) for y in np.linspace(8, 92, 8)])
    return fx.make(root, grid, radius=3.5, n_transcripts=20000, genes=[f"g{i}" for i in range(12)])


def test_purity_and_reproducibility_are_those_of_the_transcripts(tmp_path):
    """Columns of cells alternate between two kinds, which share no gene."""
    world = tissue(tmp_path)
    kind = (world.cells["centroid_x_um"] - fx.ORIGIN_UM[0]).rank(method="dense").astype(int) % 2
    points = world.points
    owner = shapely.STRtree(world.cells.geometry.to_numpy()).query(shapely.points(points[["x", "y"]].to_numpy()), predicate="intersects")
    cell = np.full(len(points), -1)
    cell[owner[0]] = owner[1]
    gene = points["gene"].cat.codes.to_numpy() % 6 + 6 * np.where(cell >= 0, kind.to_numpy()[cell], 0)
    gene = np.where(points["is_control"], points["gene"].cat.codes, gene)
    table = points.assign(gene=np.array(points["gene"].cat.categories)[gene])
    table["gene"] = table["gene"].astype(points["gene"].dtype)
    for path in world.paths["points"].iterdir():
        path.unlink()
    table.to_parquet(world.paths["points"] / "part.0.parquet", index=False)
    (tmp_path / "markers.csv").write_text("gene,cell_type\ng0,left\ng7,right\nother panel's,left\ng1,left\n")
    adata, metrics = go(world, tmp_path / "a", labels=False, markers=tmp_path / "markers.csv")
    assert metrics.purity["mecr"] == 0 and metrics.purity["n_pairs"] == 36 and metrics.purity["foreign_beside"] == 0
    assert all(int(a[1:]) // 6 != int(b[1:]) // 6 for a, b in metrics.purity["pairs"])
    assert "markers.csv: 1 of 4 markers are left out, as the sample lacks 1 of their genes (other panel's)." in metrics.warnings
    assert metrics.purity["marker_purity"] == 1 and metrics.reproducibility["half_cells"] > 50
    totals = metrics.transcripts
    wanted = (totals["controls_in_cells"] / totals["controls"]) / ((totals["in_cells"] + totals["in_cells_outside_image"]) / totals["total"])
    assert metrics.purity["control_enrichment"] == pytest.approx(wanted)
    assert metrics.reproducibility["half_correlation"] > 0.5 and metrics.reproducibility["nuclear_correlation"] > 0.4
    assert metrics.seams["fov"] is None

    # The same tissue cut half a cell to the right: every cell is a mixture of two kinds.
    shifted = [shapely.affinity.translate(c, (112 - 8) / 11 / 2, 0).buffer(2) for c in world.cells.geometry]
    cells_file.write(world.paths["cells"], cells_file.frame(world.cells["cell_id"].tolist(), np.array(shifted, object)))
    _, mixed = go(world, tmp_path / "b", labels=False, markers=tmp_path / "markers.csv")
    assert mixed.purity["pairs"] == metrics.purity["pairs"], "pairs are of the sample, not of the segmentation"
    assert mixed.purity["mecr"] > 0.2 and mixed.purity["contamination"] != 0 and mixed.purity["marker_purity"] < 0.9
    assert mixed.reproducibility["half_correlation"] < metrics.reproducibility["half_correlation"]
    (tmp_path / "pairs.csv").write_text("gene_a,gene_b\ng0,g6\ng0,other\n")
    _, given = go(world, tmp_path / "c", labels=False, marker_pairs=tmp_path / "pairs.csv")
    assert given.purity["pairs"] == [["g0", "g6"]] and given.purity["n_pairs"] == 1 and "marker_purity" not in given.purity
    assert any(w.startswith("pairs.csv: 1 of 2 pairs are left out") for w in given.warnings)


@pytest.mark.slow
def test_umap_and_scanpy(tmp_path):
    """The UMAP is there, capped and repeatable; scanpy's standard steps run on the file as it is."""
    import scanpy as sc

    world = tissue(tmp_path)
    adata, metrics = go(world, tmp_path / "a", umap_cells=50)
    again, _ = go(world, tmp_path / "b", umap_cells=50)
    assert len(metrics.embedding["x"]) == len(metrics.embedding["y"]) == len(metrics.embedding["flag"]) == 50
    assert all(0 <= f < len(FLAGS) for f in metrics.embedding["flag"])
    shown = np.isfinite(adata.obsm["X_umap"]).all(axis=1)
    assert shown.sum() == 50 and np.array_equal(adata.obsm["X_umap"], again.obsm["X_umap"], equal_nan=True)
    sc.pp.calculate_qc_metrics(adata, inplace=True, percent_top=None)
    assert (adata.obs["total_counts"] == adata.obs["n_transcripts"]).all()
    sc.pp.filter_cells(adata, min_counts=5)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=8)
    sc.pp.pca(adata)
    sc.pp.neighbors(adata)
    sc.tl.rank_genes_groups(adata, "qc_flag", groups=["consistent"]) if adata.obs["qc_flag"].nunique() > 1 else None
    assert adata.X.max() < 12
