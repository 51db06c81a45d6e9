"""Cells → export → the reader of another tool → the same cells and counts.

Readers that the locked environment has are used here; `vpt`, `squidpy` and `napari-spatialdata` need environments of their own, named by
`ISTSEG_PEERS` (docs/exports.md tells how to make them), and are left out with a word where they are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import anndata
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

import result_fixtures as fx
from export_fixtures import CENTRES, go, prepare
from istseg.artifacts import shards
from istseg.artifacts.sample import apply_affine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = prepare(tmp_path_factory.mktemp("tools"), CENTRES, nuclei=[fx.circle(*c, 2) for c in CENTRES[:4]])
    go(world, world.root / "out", "spatialdata", "geojson", "vizgen", "cosmx", "ometiff")
    return world


@pytest.fixture(scope="module")
def table(world):
    return anndata.read_h5ad(world.root / "assessed" / "counts.h5ad")


@pytest.fixture(scope="module")
def everything(table):
    """Counts of genes and control probes, cells × names."""
    controls = table.obsm["controls"]
    return pd.DataFrame(np.hstack([table.X.toarray(), controls.toarray()]), index=table.obs_names, columns=[*fx.GENES, *fx.CONTROLS])


def iou(found, expected) -> np.ndarray:
    found, expected = np.array(list(found), object), np.array(list(expected), object)
    return shapely.area(shapely.intersection(found, expected)) / shapely.area(shapely.union(found, expected))


def peers(name: str) -> Path:
    folder = Path(os.environ.get("ISTSEG_PEERS", "/nowhere")) / name / "bin"
    if not folder.is_dir():
        pytest.skip(f"no environment {name} (ISTSEG_PEERS, docs/exports.md)")
    return folder


def python(code: str, name: str, *arguments: object) -> dict:
    """Run code in a foreign environment; its last line is JSON."""
    done = subprocess.run([peers(name) / "python", "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_spatialdata_validates_and_takes_few_files(world):
    import spatialdata

    sdata = spatialdata.read_zarr(world.root / "out" / "s1.zarr")
    sdata.validate_table_in_spatialdata(sdata.tables["table"])
    assert (iou(sdata.shapes["istseg_cells"].geometry, world.cells.geometry) > 0.99).all()
    assert sdata.tables["table"].uns["spatialdata_attrs"] == {"region": "istseg_cells", "region_key": "region", "instance_key": "label"}
    assert sdata.shapes["istseg_cells"].index.tolist() == world.cells["label"].tolist(), "the numbers of the label image"
    assert sdata.shapes["istseg_cells"]["cell_id"].tolist() == sdata.tables["table"].obs_names.tolist()
    store = world.root / "out" / "s1.zarr"
    shapes = [(3, 1000, 1200), (3, 500, 600), (3, 250, 300)]
    files = sum(p.is_file() for p in (store / "images" / "stains").rglob("*"))
    assert files == sum(shards.most_files(s) for s in shapes) + 1, "the formula says what is there"
    assert sum(p.is_file() for part in ("tables", "shapes") for p in (store / part).rglob("*")) < 200


def test_a_square_centimetre_takes_less_than_2000_files():
    """8 stains of 0.108 µm pixels, labels of 0.253 µm; transcripts in bands of 250 µm; the table's parts do not grow in number."""
    side, working = round(1e4 / 0.108), round(1e4 / 0.253)
    image = sum(shards.most_files((8, *level)) for level in shards.pyramid(side, side, 512))
    assert image + shards.most_files((working, working)) + 40 + 200 < 2000


def test_shards_are_those_of_zarr(tmp_path):
    import zarr

    rng = np.random.default_rng(0)
    for number, shape in enumerate([(2, 9000, 700), (513, 8200), (3, 40, 30)]):
        values = rng.integers(0, 60000, shape, dtype=np.uint16)
        values[..., 100:600, :] = 0  # an empty chunk has no bytes
        writer = shards.ShardedWriter(tmp_path / f"{number}", shape, "uint16")
        for y in range(0, shape[-2], 512):
            writer.write(values[..., y : y + 512, :].astype(">u2"))
        stored = zarr.open_array(tmp_path / f"{number}", mode="r")
        np.testing.assert_array_equal(stored[:], values)
        assert sum(p.is_file() for p in (tmp_path / f"{number}").rglob("*")) <= shards.most_files(shape)
        # zarr can go on writing into our shards.
        opened = zarr.open_array(tmp_path / f"{number}", mode="r+")
        opened[..., :5, :5] = 7
        assert (zarr.open_array(tmp_path / f"{number}", mode="r")[..., :5, :5] == 7).all()
    with pytest.raises(ValueError, match="at a time"):
        shards.ShardedWriter(tmp_path / "x", (1024, 10), "uint8").write(np.ones((600, 10), np.uint8))


def test_scanpy_runs_its_steps_on_the_table_as_it_is(tmp_path):
    import scanpy as sc

    rng = np.random.default_rng(0)
    centres = np.array([[x, y] for x in range(6, 116, 9) for y in range(6, 96, 9)], float) + rng.uniform(-1, 1, (130, 2))
    world = prepare(tmp_path, centres, radius=4.0, genes=[f"G{i}" for i in range(12)], n_transcripts=9000)
    table = anndata.read_h5ad(tmp_path / "assessed" / "counts.h5ad")
    assert table.n_obs == len(world.cells)
    sc.pp.filter_cells(table, min_counts=1)
    sc.pp.normalize_total(table)
    sc.pp.log1p(table)
    sc.pp.pca(table, n_comps=5)
    sc.pp.neighbors(table, n_neighbors=8)
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False)
    sc.tl.umap(table, maxiter=20)
    assert np.isfinite(table.obsm["X_umap"]).all() and table.obs["leiden"].nunique() > 1


def test_r_readers_know_every_type_in_the_table(world):
    """anndataR and zellkonverter know vectors of numbers and logicals, strings, factors, sparse matrices and nested lists; nothing nullable, no objects."""
    import h5py

    known = {"array", "string-array", "string", "categorical", "csr_matrix", "dataframe", "dict", "numeric-scalar", "anndata"}
    with h5py.File(world.root / "assessed" / "counts.h5ad") as stored:
        kinds = {}
        stored.visititems(lambda name, item: kinds.setdefault(name, item.attrs.get("encoding-type")))
        leaves = [item for item in (stored[n] for n in kinds) if isinstance(item, h5py.Dataset)]
        assert {k for k in kinds.values() if k} <= known
        assert stored["X"].attrs["encoding-type"] == "csr_matrix" and stored["X/data"].dtype == np.float32
        assert stored["X/indices"].dtype == stored["X/indptr"].dtype == np.int32, "R's sparse matrices have 32-bit indices"
        for item in leaves:
            assert item.dtype.kind in "iufb" or h5py.check_string_dtype(item.dtype), (item.name, item.dtype)
            assert item.dtype != np.int64 or item.size < 10 or np.abs(item[:]).max() < 2**31, item.name


def test_spatialdata_io_reads_the_vizgen_files(world, everything):
    from spatialdata_io import merscope

    sdata = merscope(world.root / "out" / "vizgen", z_layers=None, slide_name="run", region_name="region_0")
    assert set(sdata.shapes) == {"run_region_0_polygons"} and set(sdata.points) == {"run_region_0_transcripts"}
    polygons, table = sdata.shapes["run_region_0_polygons"], sdata.tables["table"]
    assert len(polygons) == len(CENTRES)
    assert (iou(polygons.set_index("Name").geometry.reindex(everything.index), world.cells.geometry) > 0.99).all()
    assert table.obs["cell_id"].tolist() == everything.index.tolist()
    # This reader takes control probes out into obsm by their name.
    assert (np.asarray(table[:, fx.GENES].X.todense() if hasattr(table.X, "todense") else table[:, fx.GENES].X) == everything[fx.GENES].to_numpy()).all()
    assert len(sdata.points["run_region_0_transcripts"]) == len(world.points)


def test_spatialdata_io_reads_the_cosmx_files(world, everything, tmp_path):
    from spatialdata_io import cosmx

    folder = shutil.copytree(world.root / "out" / "cosmx", tmp_path / "cosmx")
    for images in ("CellComposite", "CellLabels"):
        (folder / images).mkdir()  # it asks for them, empty or not
    sdata = cosmx(folder)
    table = sdata.tables["table"]
    assert table.obs["istseg_id"].tolist() == everything.index.tolist()
    assert (table.X.toarray() == everything.to_numpy()).all() and table.var_names.tolist() == everything.columns.tolist()
    assert table.obs["qc_flag"].tolist() == anndata.read_h5ad(world.root / "assessed" / "counts.h5ad").obs["qc_flag"].tolist()
    points = sdata.points["1_points"].compute()
    assert len(points) == len(world.points)
    # Local coordinates lie in the image, downwards, in pixels of a CosMx.
    px = apply_affine(world.sample.affine, world.points.set_index("transcript_id").loc[points["transcript_id"], ["x", "y"]].to_numpy())
    np.testing.assert_allclose(points[["x", "y"]].to_numpy() * 0.120280945 / fx.PIXEL_UM, px, atol=1e-3)


def test_sopa_reads_the_cosmx_files(world, everything):
    from sopa.io.reader.cosmx import COSMX_PIXEL_SIZE, _CosMXReader

    reader = _CosMXReader(world.root / "out" / "cosmx", "s1", None, False, None)
    assert reader.fov_shift, "the positions are those of upper edges, and y runs up"
    height = round(world.sample.height_px * fx.PIXEL_UM / COSMX_PIXEL_SIZE)
    reader._set_fov_locs_bounding_boxes((height, 10))
    cells = reader.read_shapes()["cells_polygons"]
    um = [shapely.transform(p, lambda xy: np.column_stack([xy[:, 0], height - xy[:, 1]]) * COSMX_PIXEL_SIZE + fx.ORIGIN_UM) for p in cells.geometry]
    assert (iou(um, world.cells.geometry) > 0.99).all()
    found = reader.read_tables("cells_polygons")["table"]
    assert (found.X.toarray() == everything.to_numpy()).all()
    points = reader.read_transcripts()["points"].compute()
    counted = points[points["cell_ID"] > 0].groupby(["cell_ID", "target"], observed=False).size().unstack(fill_value=0)
    assert (counted[everything.columns].to_numpy() == everything.to_numpy()).all()
    inside = points["cell_ID"] > 0
    where = [shapely.Point(*xy) for xy in points.loc[inside, ["x", "y"]].to_numpy() / COSMX_PIXEL_SIZE]
    assert shapely.intersects(np.array(where), cells.geometry.to_numpy()[points.loc[inside, "cell_ID"].to_numpy() - 1]).mean() > 0.95, (
        "the label image decides at outlines"
    )


def test_label_image_as_tifffile_and_ome_types_read_it(world):
    import ome_types

    path = world.root / "out" / "s1.labels.ome.tif"
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome and tif.is_bigtiff
        labels = tif.series[0].asarray()
        levels = [level.shape for level in tif.series[0].levels]
    assert levels == [(400, 480), (200, 240)], "half the size at each level"
    facts = ome_types.from_tiff(path).images[0].pixels
    assert facts.physical_size_x == pytest.approx(fx.WORKING_UM) and facts.physical_size_x_unit.value == "µm"
    assert sorted(np.unique(labels)) == [0, *world.cells["label"]]
    for cell in world.cells.itertuples():
        yx = np.argwhere(labels == cell.label)
        assert len(yx) * fx.WORKING_UM**2 == pytest.approx(cell.area_um2, rel=0.02)
        centre = (yx[:, ::-1].mean(0) + 0.5) * fx.WORKING_UM + fx.ORIGIN_UM
        assert np.abs(centre - [cell.centroid_x_um, cell.centroid_y_um]).max() < 0.1


def test_label_image_of_many_tiles(world, tmp_path):
    import dataclasses

    import zarr

    from istseg.export import ometiff
    from istseg.export.result import Result

    result = Result.read(world.paths["sample"], world.paths["store"], world.paths["merged"], world.root / "assessed", world.root / "istseg/transcripts.parquet")
    values = np.random.default_rng(0).integers(0, 2**31 - 1, (1201, 2500), dtype=np.int32)
    group = zarr.open_group(tmp_path / "labels.zarr", mode="w")
    array = group.create_array("istseg", data=values, chunks=(1024, 1024))
    array.attrs["micron_to_working"] = fx.affine(fx.WORKING_UM).tolist()
    ometiff.write(dataclasses.replace(result, labels=tmp_path / "labels.zarr"), tmp_path / "l.ome.tif")
    with tifffile.TiffFile(tmp_path / "l.ome.tif") as tif:
        levels = tif.series[0].levels
        for i, level in enumerate(levels):
            step = 2**i
            np.testing.assert_array_equal(level.asarray(), values[: 1201 // step * step : step, : 2500 // step * step : step])
        assert len(levels) == 3


def test_geojson_as_geopandas_reads_it(world, table):
    found = gpd.read_file(world.root / "out" / "s1.geojson")
    inverse = np.linalg.inv(world.sample.affine)
    assert (iou(shapely.transform(found.geometry.to_numpy(), lambda xy: apply_affine(inverse, xy)), world.cells.geometry) > 0.99).all()
    assert found["name"].tolist() == table.obs_names.tolist()


def test_vpt_counts_the_same(world, everything, tmp_path):
    """The real `vpt` reads boundaries and transcripts and makes its own table of counts and of cells."""
    vpt, folder = peers("vpt") / "vpt", world.root / "out" / "vizgen"
    boundaries = ["--input-boundaries", folder / "cell_boundaries.parquet"]
    counting = ["partition-transcripts", *boundaries, "--input-transcripts", folder / "detected_transcripts.csv", "--output-entity-by-gene", tmp_path / "g.csv"]
    describing = ["derive-entity-metadata", *boundaries, "--input-entity-by-gene", folder / "cell_by_gene.csv", "--output-metadata", tmp_path / "m.csv"]
    for arguments in (counting, describing):
        done = subprocess.run([vpt, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    theirs = pd.read_csv(tmp_path / "g.csv", index_col=0)
    ours = pd.read_csv(folder / "cell_by_gene.csv", index_col=0)
    assert theirs.index.tolist() == ours.index.tolist()
    # vpt asks the polygons, we ask the label image: single molecules at outlines differ.
    assert (theirs[ours.columns] - ours).abs().to_numpy().sum() <= 0.05 * ours.to_numpy().sum()
    described, written = pd.read_csv(tmp_path / "m.csv"), pd.read_csv(folder / "cell_metadata.csv")
    for column in ("EntityID", "volume", "center_x", "center_y", "min_x", "max_y", "anisotropy", "transcript_count", "perimeter_area_ratio", "solidity"):
        np.testing.assert_allclose(described[column], written[column], rtol=1e-3, err_msg=column)


SQUIDPY = """
import json, sys, anndata, squidpy as sq
table = anndata.read_h5ad(sys.argv[1])
sq.gr.spatial_neighbors(table, coord_type="generic", delaunay=True)
cosmx = sq.read.nanostring(sys.argv[2], counts_file="s1_exprMat_file.csv", meta_file="s1_metadata_file.csv", fov_file="s1_fov_positions_file.csv")
vizgen = sq.read.vizgen(sys.argv[3], counts_file="cell_by_gene.csv", meta_file="cell_metadata.csv")
print(json.dumps([table.obsp["spatial_connectivities"].nnz, cosmx.shape, float(cosmx.X.sum()), vizgen.n_obs, float(vizgen.X.sum())]))
"""


def test_squidpy_reads_table_cosmx_and_vizgen(world, everything):
    out = world.root / "out"
    edges, shape, total, n, of_genes = python(SQUIDPY, "peers", world.root / "assessed" / "counts.h5ad", out / "cosmx", out / "vizgen")
    assert edges > 2 * len(CENTRES) and shape == list(everything.shape) and total == everything.to_numpy().sum()
    assert n == len(CENTRES) and of_genes == everything[fx.GENES].to_numpy().sum()


SEURAT = r"""
suppressMessages(library(Seurat))
folder <- commandArgs(trailingOnly = TRUE)
save <- function(counts, centroids, name) {
    write.csv(as.matrix(counts), file.path(folder[3], paste0(name, ".csv")))
    write.csv(centroids, file.path(folder[3], paste0(name, "_centroids.csv")), row.names = FALSE)
}
nano <- ReadNanostring(folder[1], type = c("centroids", "segmentations"))
save(nano$matrix, nano$centroids, "cosmx")
write.csv(nano$segmentations, file.path(folder[3], "cosmx_outlines.csv"), row.names = FALSE)
object <- LoadNanostring(folder[1], fov = "s1")
vizgen <- ReadVizgen(folder[2], type = "centroids", z = 0L)
save(vizgen$transcripts, vizgen$centroids, "vizgen")
cat(ncol(object), length(Cells(object[["s1"]])))
"""


def test_seurat_reads_cosmx_and_vizgen(world, everything, tmp_path):
    rscript = shutil.which("Rscript")
    if (
        not rscript
        or subprocess.run([rscript, "-e", "quit(status = !all(sapply(c('Seurat', 'data.table'), requireNamespace)))"], capture_output=True).returncode
    ):
        pytest.skip("no R with Seurat (Debian, Ubuntu: apt-get install r-cran-seurat)")
    (tmp_path / "read.R").write_text(SEURAT)
    out = world.root / "out"
    done = subprocess.run([rscript, tmp_path / "read.R", out / "cosmx", out / "vizgen", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = everything.iloc[:, 1:]  # its reader leaves out the first gene of every CosMx matrix, and cells without counts
    names = [f"{i + 1}_1" for i in range(len(everything))]
    held = counted.to_numpy().sum(1) > 0
    cosmx = pd.read_csv(tmp_path / "cosmx.csv", index_col=0, keep_default_na=False).T
    assert [str(n).removeprefix("X") for n in cosmx.index] == [n for n, there in zip(names, held, strict=True) if there]
    assert (cosmx.to_numpy() == counted[held].to_numpy()).all() and cosmx.columns.tolist() == counted.columns.tolist()
    assert [int(n) for n in done.stdout.split()[-2:]] == [held.sum()] * 2
    pixel, top = 0.120280945, world.sample.height_px * fx.PIXEL_UM

    def um(xy: np.ndarray) -> np.ndarray:
        return np.column_stack([xy[:, 0] * pixel, top - xy[:, 1] * pixel]) + fx.ORIGIN_UM

    centres = pd.read_csv(tmp_path / "cosmx_centroids.csv")
    assert centres["cell"].tolist() == names
    expected = world.cells.set_index("cell_id").loc[everything.index, ["centroid_x_um", "centroid_y_um"]].to_numpy()
    np.testing.assert_allclose(um(centres[["x", "y"]].to_numpy()), expected, atol=0.1)
    outlines = pd.read_csv(tmp_path / "cosmx_outlines.csv").groupby("cell", sort=False)
    polygons = {name: shapely.Polygon(um(ring[["x", "y"]].to_numpy())) for name, ring in outlines}
    assert (iou([polygons[n] for n in names], world.cells.geometry) > 0.99).all()
    vizgen = pd.read_csv(tmp_path / "vizgen.csv", index_col=0, keep_default_na=False, dtype=str).T
    written = pd.read_csv(out / "vizgen" / "cell_by_gene.csv", dtype=str).set_index("cell")
    assert [n.removeprefix("X") for n in vizgen.index] == written.index.tolist()
    assert (vizgen[fx.GENES].astype(float).to_numpy() == everything[fx.GENES].to_numpy()).all()
    np.testing.assert_allclose(pd.read_csv(tmp_path / "vizgen_centroids.csv")[["x", "y"]], expected, atol=0.1)


NAPARI = """
import json, os, sys, time
os.environ["QT_QPA_PLATFORM"] = "offscreen"
import spatialdata
from napari_spatialdata import Interactive
from qtpy.QtWidgets import QApplication
sdata = spatialdata.read_zarr(sys.argv[1])
shown = Interactive(sdata, headless=True)
for n, name in enumerate(("stains", "istseg_labels", "istseg_cells"), 1):
    shown.add_element(element=name, element_coordinate_system="global")
    end = time.monotonic() + 60
    while len(shown._viewer.layers) < n and time.monotonic() < end:  # layers are made by threads
        QApplication.processEvents()
        time.sleep(0.05)
print(json.dumps({layer.name: type(layer).__name__ for layer in shown._viewer.layers}), flush=True)
os._exit(0)
"""


def test_napari_spatialdata_shows_image_labels_and_cells(world):
    layers = python(NAPARI, "peers", world.root / "out" / "s1.zarr")
    assert sorted(layers.values()) == ["Image", "Labels", "Shapes"], layers
