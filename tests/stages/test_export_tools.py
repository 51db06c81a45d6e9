"""Cells → export → the reader of another tool → the same cells and counts.

Readers that the locked environment has are used here; programs that need environments of their own in `test_export_peers.py`.
"""

from __future__ import annotations

import shutil

import anndata
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

import result_fixtures as fx
from export_fixtures import CENTRES, iou, prepare
from istseg.artifacts import shards
from istseg.artifacts.sample import apply_affine


def test_spatialdata_validates_and_takes_few_files(exported):
    import spatialdata

    sdata = spatialdata.read_zarr(exported.root / "out" / "s1.zarr")
    sdata.validate_table_in_spatialdata(sdata.tables["table"])
    assert (iou(sdata.shapes["istseg_cells"].geometry, exported.cells.geometry) > 0.99).all()
    assert sdata.tables["table"].uns["spatialdata_attrs"] == {"region": "istseg_cells", "region_key": "region", "instance_key": "label"}
    assert sdata.shapes["istseg_cells"].index.tolist() == exported.cells["label"].tolist(), "the numbers of the label image"
    assert sdata.shapes["istseg_cells"]["cell_id"].tolist() == sdata.tables["table"].obs_names.tolist()
    store = exported.root / "out" / "s1.zarr"
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


def test_sopa_counts_the_same_on_the_spatialdata(exported):
    """Its `aggregate`, with our image, transcripts and cells, gives our counts; it asks the polygons, we ask the label image."""
    import sopa
    import spatialdata

    sdata = spatialdata.read_zarr(exported.root / "out" / "s1.zarr")
    sopa.aggregate(sdata, image_key="stains", points_key="transcripts", shapes_key="istseg_cells", gene_column="gene", key_added="again")
    again = sdata.tables["again"]
    controls = [name for name in exported.everything.columns if name.startswith("Blank")]
    assert not set(controls) & set(again.var_names), "sopa leaves control probes out by their names"
    ours = exported.everything.drop(columns=controls)
    counted = pd.DataFrame(again.X.toarray(), columns=again.var_names)[ours.columns]
    assert again.n_obs == len(ours) and np.abs(counted.to_numpy() - ours.to_numpy()).sum() <= 0.05 * ours.to_numpy().sum()
    assert again.obsm["intensities"].columns.tolist() == spatialdata.models.get_channel_names(sdata.images["stains"])


def test_r_readers_know_every_type_in_the_table(exported):
    """anndataR and zellkonverter know vectors of numbers and logicals, strings, factors, sparse matrices and nested lists; nothing nullable, no objects."""
    import h5py

    known = {"array", "string-array", "string", "categorical", "csr_matrix", "dataframe", "dict", "numeric-scalar", "anndata"}
    with h5py.File(exported.root / "assessed" / "counts.h5ad") as stored:
        kinds = {}
        stored.visititems(lambda name, item: kinds.setdefault(name, item.attrs.get("encoding-type")))
        leaves = [item for item in (stored[n] for n in kinds) if isinstance(item, h5py.Dataset)]
        assert {k for k in kinds.values() if k} <= known
        assert stored["X"].attrs["encoding-type"] == "csr_matrix" and stored["X/data"].dtype == np.float32
        assert stored["X/indices"].dtype == stored["X/indptr"].dtype == np.int32, "R's sparse matrices have 32-bit indices"
        for item in leaves:
            assert item.dtype.kind in "iufb" or h5py.check_string_dtype(item.dtype), (item.name, item.dtype)
            assert item.dtype != np.int64 or item.size < 10 or np.abs(item[:]).max() < 2**31, item.name


def test_spatialdata_io_reads_the_vizgen_files(exported):
    from spatialdata_io import merscope

    sdata = merscope(exported.root / "out" / "vizgen", z_layers=None, slide_name="run", region_name="region_0")
    assert set(sdata.shapes) == {"run_region_0_polygons"} and set(sdata.points) == {"run_region_0_transcripts"}
    polygons, table = sdata.shapes["run_region_0_polygons"], sdata.tables["table"]
    assert len(polygons) == len(CENTRES)
    assert (iou(polygons.set_index("Name").geometry.reindex(exported.everything.index), exported.cells.geometry) > 0.99).all()
    assert table.obs["cell_id"].tolist() == exported.everything.index.tolist()
    # This reader takes control probes out into obsm by their name.
    assert (
        np.asarray(table[:, fx.GENES].X.todense() if hasattr(table.X, "todense") else table[:, fx.GENES].X) == exported.everything[fx.GENES].to_numpy()
    ).all()
    assert len(sdata.points["run_region_0_transcripts"]) == len(exported.points)


def test_spatialdata_io_reads_the_cosmx_files(exported, tmp_path):
    from spatialdata_io import cosmx

    folder = shutil.copytree(exported.root / "out" / "cosmx", tmp_path / "cosmx")
    for images in ("CellComposite", "CellLabels"):
        (folder / images).mkdir()  # it asks for them, empty or not
    sdata = cosmx(folder)
    table = sdata.tables["table"]
    assert table.obs["istseg_id"].tolist() == exported.everything.index.tolist()
    assert (table.X.toarray() == exported.everything.to_numpy()).all() and table.var_names.tolist() == exported.everything.columns.tolist()
    assert table.obs["qc_flag"].tolist() == exported.table.obs["qc_flag"].tolist()
    points = sdata.points["1_points"].compute()
    assert len(points) == len(exported.points)
    # Local coordinates lie in the image, downwards, in pixels of a CosMx.
    px = apply_affine(exported.sample.affine, exported.points.set_index("transcript_id").loc[points["transcript_id"], ["x", "y"]].to_numpy())
    np.testing.assert_allclose(points[["x", "y"]].to_numpy() * 0.120280945 / fx.PIXEL_UM, px, atol=1e-3)


def test_sopa_reads_the_cosmx_files(exported):
    from sopa.io.reader.cosmx import COSMX_PIXEL_SIZE, _CosMXReader

    reader = _CosMXReader(exported.root / "out" / "cosmx", "s1", None, False, None)
    assert reader.fov_shift, "the positions are those of upper edges, and y runs up"
    height = round(exported.sample.height_px * fx.PIXEL_UM / COSMX_PIXEL_SIZE)
    reader._set_fov_locs_bounding_boxes((height, 10))
    cells = reader.read_shapes()["cells_polygons"]
    um = [shapely.transform(p, lambda xy: np.column_stack([xy[:, 0], height - xy[:, 1]]) * COSMX_PIXEL_SIZE + fx.ORIGIN_UM) for p in cells.geometry]
    assert (iou(um, exported.cells.geometry) > 0.99).all()
    found = reader.read_tables("cells_polygons")["table"]
    assert (found.X.toarray() == exported.everything.to_numpy()).all()
    points = reader.read_transcripts()["points"].compute()
    counted = points[points["cell_ID"] > 0].groupby(["cell_ID", "target"], observed=False).size().unstack(fill_value=0)
    assert (counted[exported.everything.columns].to_numpy() == exported.everything.to_numpy()).all()
    inside = points["cell_ID"] > 0
    where = [shapely.Point(*xy) for xy in points.loc[inside, ["x", "y"]].to_numpy() / COSMX_PIXEL_SIZE]
    assert shapely.intersects(np.array(where), cells.geometry.to_numpy()[points.loc[inside, "cell_ID"].to_numpy() - 1]).mean() > 0.95, (
        "the label image decides at outlines"
    )


def test_label_image_as_tifffile_and_ome_types_read_it(exported):
    import ome_types

    path = exported.root / "out" / "s1.labels.ome.tif"
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome and tif.is_bigtiff
        labels = tif.series[0].asarray()
        levels = [level.shape for level in tif.series[0].levels]
    assert levels == [(400, 480), (200, 240)], "half the size at each level"
    facts = ome_types.from_tiff(path).images[0].pixels
    assert facts.physical_size_x == pytest.approx(fx.WORKING_UM) and facts.physical_size_x_unit.value == "µm"
    assert sorted(np.unique(labels)) == [0, *exported.cells["label"]]
    for cell in exported.cells.itertuples():
        yx = np.argwhere(labels == cell.label)
        assert len(yx) * fx.WORKING_UM**2 == pytest.approx(cell.area_um2, rel=0.02)
        centre = (yx[:, ::-1].mean(0) + 0.5) * fx.WORKING_UM + fx.ORIGIN_UM
        assert np.abs(centre - [cell.centroid_x_um, cell.centroid_y_um]).max() < 0.1


def test_label_image_of_many_tiles(exported, tmp_path):
    import dataclasses

    import zarr

    from istseg.export import ometiff
    from istseg.export.result import Result

    paths, root = exported.paths, exported.root
    result = Result.read(paths["sample"], paths["store"], paths["merged"], root / "assessed", root / "istseg/transcripts.parquet")
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


def test_geojson_as_geopandas_reads_it(exported):
    found = gpd.read_file(exported.root / "out" / "s1.geojson")
    inverse = np.linalg.inv(exported.sample.affine)
    assert (iou(shapely.transform(found.geometry.to_numpy(), lambda xy: apply_affine(inverse, xy)), exported.cells.geometry) > 0.99).all()
    assert found["name"].tolist() == exported.table.obs_names.tolist()
