"""Every format holds the same cells and counts as the table, read back by the tool's own reader or by its documented form."""

from __future__ import annotations

import json
import os
import uuid

import anndata
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import zarr

import result_fixtures as fx
from export_fixtures import CENTRES, go, prepare
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.stages import export


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("export"), CENTRES, nuclei=[fx.circle(*c, 2) for c in CENTRES[:4]])


@pytest.fixture(scope="module")
def table(world):
    return anndata.read_h5ad(world.root / "assessed" / "counts.h5ad")


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_spatialdata(world, table, tmp_path):
    import shutil

    from spatialdata import read_zarr
    from spatialdata.transformations import get_transformation

    before = tree(world.paths["store"])
    go(world, tmp_path, "spatialdata")
    assert tree(world.paths["store"]) == before, "a stage never changes its inputs"
    shutil.move(tmp_path / "s1.zarr", tmp_path / "moved.zarr")
    sdata = read_zarr(tmp_path / "moved.zarr")
    assert set(sdata.shapes) == {"istseg_cells", "nuclei"} and "stains" in sdata.images and "transcripts" in sdata.points
    found = sdata.tables["table"]
    assert (found.X != table.X).nnz == 0 and found.obs_names.tolist() == table.obs_names.tolist()
    assert found.obs["qc_reason"].tolist() == table.obs["qc_reason"].tolist()
    # The table annotates the shapes: spatialdata's own join finds every cell.
    from spatialdata import join_spatialelement_table

    joined, annotating = join_spatialelement_table(sdata=sdata, spatial_element_names="istseg_cells", table_name="table", how="inner")
    assert len(joined["istseg_cells"]) == annotating.n_obs == len(CENTRES)
    assert sdata.shapes["istseg_cells"].geometry.to_list() == world.cells.geometry.to_list()
    # Label image and shapes lie on each other in the common frame.
    matrix = get_transformation(sdata.labels["istseg_labels"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    labels = np.asarray(sdata.labels["istseg_labels"])
    for row in found.obs.itertuples():
        yx = np.argwhere(labels == row.label)
        centre = apply_affine(matrix, (yx[:, ::-1] + 0.5)).mean(axis=0)
        assert np.abs(centre - [row.centroid_x_um, row.centroid_y_um]).max() < 0.1
    # The image's pixels are the file of convert, not a second copy of it.
    chunk = next(p for p in (world.paths["store"] / "images" / "stains" / "s0" / "c").rglob("*") if p.is_file())
    assert os.path.samefile(chunk, tmp_path / "moved.zarr" / chunk.relative_to(world.paths["store"]))


def test_spatialdata_by_copy_where_links_are_refused(world, tmp_path, monkeypatch):
    from spatialdata import read_zarr

    real = os.link

    def refuse(source, target):
        if str(source).startswith(str(world.paths["store"])):
            raise OSError("cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "link", refuse)
    go(world, tmp_path, "spatialdata")
    assert read_zarr(tmp_path / "s1.zarr").tables["table"].n_obs == len(CENTRES)


def test_geojson(world, table, tmp_path):
    go(world, tmp_path, "geojson")
    content = json.loads((tmp_path / "s1.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    features = content["features"]
    assert [f["properties"]["name"] for f in features] == table.obs_names.tolist()
    assert [f["properties"]["classification"]["name"] for f in features] == table.obs["qc_flag"].tolist()
    assert len({uuid.UUID(f["id"]) for f in features}) == len(features)
    for feature, obs, polygon in zip(features, table.obs.itertuples(), world.cells.geometry, strict=True):
        assert feature["properties"]["measurements"]["n_transcripts"] == obs.n_transcripts
        pixels = shapely.geometry.shape(feature["geometry"])
        assert pixels.is_valid
        assert np.abs(shapely.get_coordinates(pixels) - apply_affine(world.sample.affine, shapely.get_coordinates(polygon))).max() < 0.006
        assert all(0 <= c <= 255 for c in feature["properties"]["classification"]["color"])


def test_vizgen(world, table, tmp_path):
    go(world, tmp_path, "vizgen")
    folder = tmp_path / "vizgen"
    boundaries = gpd.read_parquet(folder / "cell_boundaries.parquet")
    assert list(boundaries.columns) == ["ID", "EntityID", "ZIndex", "Geometry", "Type", "ZLevel", "Name", "ParentID", "ParentType"]
    assert boundaries["EntityID"].dtype == np.int64 and boundaries["ID"].is_unique
    assert sorted(boundaries["ZIndex"].unique()) == [0, 1, 2] and len(boundaries) == 3 * len(CENTRES)
    assert (boundaries.geom_type == "MultiPolygon").all()
    first = boundaries[boundaries["ZIndex"] == 0].set_index("Name").loc[table.obs_names]
    assert np.allclose(first.geometry.area, table.obs["area_um2"])

    genes = pd.read_csv(folder / "cell_by_gene.csv", index_col="cell", dtype={"cell": str})
    assert list(genes.columns) == [*fx.GENES, *fx.CONTROLS]
    ids = first["EntityID"].astype(str).tolist()
    assert genes.index.tolist() == ids
    assert (genes[fx.GENES].to_numpy() == table.X.toarray()).all() and (genes[fx.CONTROLS].to_numpy() == table.obsm["controls"].toarray()).all()

    metadata = pd.read_csv(folder / "cell_metadata.csv", dtype={"EntityID": str})
    needed = ["fov", "volume", "center_x", "center_y", "min_x", "min_y", "max_x", "max_y", "anisotropy", "transcript_count", "perimeter_area_ratio", "solidity"]
    assert list(metadata.columns[:13]) == ["EntityID", *needed]
    assert metadata["EntityID"].tolist() == ids and metadata["qc_flag"].tolist() == table.obs["qc_flag"].tolist()
    assert metadata["solidity"].between(0.99, 1.0001).all() and metadata["anisotropy"].between(1, 1.05).all()
    assert (metadata["transcript_count"] == genes.sum(axis=1).to_numpy()).all()

    transcripts = pd.read_csv(folder / "detected_transcripts.csv", dtype={"cell_id": str})
    assert list(transcripts.columns[1:]) == ["barcode_id", "global_x", "global_y", "global_z", "x", "y", "fov", "gene", "transcript_id", "cell_id"]
    assert sorted(transcripts["transcript_id"]) == sorted(world.points["transcript_id"])
    counted = (
        transcripts[transcripts["cell_id"] != "-1"]
        .groupby(["cell_id", "gene"])
        .size()
        .unstack(fill_value=0)
        .reindex(index=ids, columns=genes.columns, fill_value=0)
    )
    assert (counted.to_numpy() == genes.to_numpy()).all()
    merged = transcripts.merge(world.points, on="transcript_id")
    assert (
        np.allclose(merged["global_x"], merged["x_y"])
        and (merged["global_z"] == merged["z"]).all()
        and (merged["gene_x"] == merged["gene_y"].astype(str)).all()
    )


def test_the_same_bytes_twice(world, tmp_path):
    for name in ("a", "b"):
        go(world, tmp_path / name, "geojson", "vizgen", "cosmx", "ometiff")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with open(tmp_path / "a" / "vizgen" / "detected_transcripts.csv") as stream:
        assert sum(1 for _ in stream) == len(world.points) + 1


@pytest.mark.slow
def test_explorer(world, table, tmp_path):
    import tifffile
    from sopa.io.explorer.utils import int_cell_id

    go(world, tmp_path, "explorer")
    folder = tmp_path / "explorer"
    experiment = json.loads((folder / "experiment.xenium").read_text())
    assert experiment["num_cells"] == len(CENTRES) and experiment["pixel_size"] == fx.PIXEL_UM
    for name in ("morphology.ome.tif", "cells.zarr.zip", "transcripts.zarr.zip", "cell_feature_matrix.zarr.zip", "analysis.zarr.zip"):
        assert (folder / name).stat().st_size > 0

    def opened(name):
        return zarr.open_group(zarr.storage.ZipStore(folder / name, mode="r"), mode="r")

    names = pd.read_csv(folder / "cell_ids.csv")
    assert names["cell_id"].tolist() == table.obs_names.tolist()
    cells = opened("cells.zarr.zip")
    assert cells["cell_id"][:, 0].tolist() == [int_cell_id(i) for i in names["explorer_id"]]
    # Vertices are in µm from the image's corner; a simplified circle keeps its centre.
    outlines = cells["polygon_vertices"][1].reshape(len(CENTRES), -1, 2)
    assert np.abs((outlines.min(axis=1) + outlines.max(axis=1)) / 2 - CENTRES).max() < 0.5
    matrix = opened("cell_feature_matrix.zarr.zip")["cell_features"]
    features = dict(matrix.attrs)["feature_keys"]
    indptr, indices, data = matrix["indptr"][:], matrix["indices"][:], matrix["data"][:]
    for gene in fx.GENES:
        row = features.index(gene)
        counts = np.zeros(len(CENTRES))
        counts[indices[indptr[row] : indptr[row + 1]]] = data[indptr[row] : indptr[row + 1]]
        assert counts.tolist() == table[:, gene].X.toarray().ravel().tolist()
    assert dict(opened("transcripts.zarr.zip").attrs)["number_rnas"] == len(world.points) - world.sample.transcripts["outside_image"]
    with tifffile.TiffFile(folder / "morphology.ome.tif") as image:
        assert image.series[0].shape[-2:] == (world.sample.height_px, world.sample.width_px)
    assert dict(opened("analysis.zarr.zip")["cell_groups"].attrs)["grouping_names"].count("qc_flag") == 1


def test_no_cells_and_no_nuclei(tmp_path):
    from spatialdata import read_zarr

    world = prepare(tmp_path, CENTRES[:0], nuclei=[])
    go(world, tmp_path / "out", "spatialdata", "geojson", "vizgen", "cosmx", "ometiff")
    sdata = read_zarr(tmp_path / "out" / "s1.zarr")
    assert sdata.tables["table"].n_obs == 0 and "istseg_cells" not in sdata.shapes
    assert json.loads((tmp_path / "out" / "s1.geojson").read_text())["features"] == []
    assert len(gpd.read_parquet(tmp_path / "out" / "vizgen" / "cell_boundaries.parquet")) == 0
    assert (pd.read_csv(tmp_path / "out" / "vizgen" / "detected_transcripts.csv")["cell_id"] == -1).all()
    with pytest.raises(InputError, match="has no cells"):
        go(world, tmp_path / "out", "explorer")
    assert not (tmp_path / "out" / "explorer").exists()


def test_unknown_formats_are_all_named(world, tmp_path):
    with pytest.raises(InputError) as error:
        go(world, tmp_path, "geojson", "loom", "csv")
    assert len(error.value.problems) == 2 and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="names no format"):
        go(world, tmp_path)


def test_table_of_another_sample(world, tmp_path):
    other = tmp_path / "sample.json"
    other.write_text(world.paths["sample"].read_text().replace('"sample": "s1"', '"sample": "s2"'))
    with pytest.raises(InputError, match="is of the sample s1, .* of s2"):
        export.run(
            sample_json=other, zarr=world.paths["store"], merged=world.paths["merged"], assessed=world.root / "assessed",
            transcripts=world.root / "istseg" / "transcripts.parquet", out=tmp_path / "out", formats=["geojson"],
        )  # fmt: skip


def test_cells_of_another_run(world, tmp_path):
    import shutil

    from istseg.artifacts import cells as cells_file

    merged = shutil.copytree(world.paths["merged"], tmp_path / "merged")
    cells_file.write(merged / "istseg.cells.parquet", world.cells.iloc[::-1])
    with pytest.raises(InputError, match="are not those of"):
        export.run(
            sample_json=world.paths["sample"], zarr=world.paths["store"], merged=merged, assessed=world.root / "assessed",
            transcripts=world.root / "istseg" / "transcripts.parquet", out=tmp_path / "out", formats=["geojson"],
        )  # fmt: skip
