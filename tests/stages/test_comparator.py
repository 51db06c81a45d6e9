"""comparator: tile-wise methods give the same cells in any tiling; foreign programs get what they need and their answer fits the sample."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import torch
import zarr
from cellpose.resnet_torch import CPnet
from scipy.spatial import cKDTree

import result_fixtures
import tissue_fixtures as made
from istseg.artifacts import cells as cells_file
from istseg.artifacts.labels import TileLabels
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.comparators import Settings
from istseg.errors import InputError
from istseg.stages import assign, calibrate, comparator, preflight
from istseg.teachers.watershed import Sizes

LIMITS = {"density_sigma_um": 1.08, "contain": 0.95, "intersect": 0.05}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """One sample in two tilings: folder → tile folders, taught."""
    folder = tmp_path_factory.mktemp("taught")
    sheet = made.make_sheet(folder, 75, 240)
    tilings = {}
    for name, tile_um in (("small", 90), ("large", 2000)):
        tilings[folder / name] = made.cut(sheet, folder / name, tile_um=tile_um)
        made.teach(tilings[folder / name], folder / name / "labels")
    assert len({len(tiles) for tiles in tilings.values()}) == 2
    return tilings


def run(folder, tiles, method, out, **settings):
    comparator.tiles(method=method, tiles=tiles, out=out / method, settings=Settings(teacher_labels=folder / "labels", **settings), **LIMITS)
    comparator.merge(segmentation=method, tiles_json=folder / "tiles" / "tiles.json", labels=out / method, out=out)
    return cells_file.read(out / f"{method}.cells.parquet"), json.loads((out / f"{method}.merge.json").read_text())


@pytest.mark.parametrize("method", ["watershed", "expansion"])
def test_two_tilings_give_the_same_cells(taught, tmp_path, method):
    results = [run(folder, tiles, method, tmp_path / folder.name) for folder, tiles in taught.items()]
    (one, record), (other, _) = results
    pd.testing.assert_frame_equal(one, other)
    assert len(one) > 50
    assert one["cell_id"].iloc[0] == f"s_{method}_0000001"
    assert record["segmentations"][method]["n"] == len(one)
    images = [zarr.open_group(tmp_path / folder.name / f"{method}.labels.zarr", mode="r")[method][:] for folder in taught]
    assert (images[0] == images[1]).all()
    assert np.unique(images[0]).tolist() == [0, *one["label"]]


def test_the_best_stain_is_chosen_as_the_teachers(taught, tmp_path):
    """`watershed` beside another teacher gives what it gives as the teacher."""
    folder, tiles = next(iter(taught.items()))
    cells, record = run(folder, tiles, "watershed", tmp_path)
    best = calibrate.pool(calibrate.read_sketches([folder / "labels"]), 5, 5).best_layer
    entry = record["segmentations"]["watershed"]
    assert entry["layer"] == best
    assert entry["layer_reason"] == "agrees best with the nuclei of this method"
    assert entry["method"]["teacher"] == "watershed"
    owned = pd.concat([TileLabels.read(folder / "labels" / t.name, [best]).objects for t in tiles]).query("owned")
    assert len(owned) == len(cells)
    assert sorted(owned["area_wpx"]) == pytest.approx(sorted(np.bincount(zarr.open_group(tmp_path / "watershed.labels.zarr")["watershed"][:].ravel())[1:]))


@pytest.mark.slow
def test_cellpose_beside_another_teacher_gives_what_it_gives_as_the_teacher(tmp_path):
    """With weights of a network that was never trained: what counts is that both ways give it the same."""
    torch.manual_seed(0)
    net = CPnet(nbase=[2, 32, 64, 128, 256], nout=3, sz=3, mkldnn=False, conv_3D=False, max_pool=True)
    weights = tmp_path / "weights"
    torch.save(net.state_dict(), weights)
    tiles = made.cut(made.make_sheet(tmp_path, 40, 40, membranes=("Ring",)), tmp_path)
    made.teach(tiles, tmp_path / "teacher", teacher="cellpose", nuclei_weights=weights, cyto_weights=weights, cell_diameter_um=30.0, nucleus_diameter_um=25.0)
    files = {"nuclei": weights, "cyto": weights}
    settings = Settings(sizes=Sizes(nucleus_diameter_um=25.0, cell_diameter_um=30.0), weights=files)
    comparator.tiles(method="cellpose", tiles=tiles, out=tmp_path / "comparator", settings=settings, **LIMITS)
    one, other = (TileLabels.read(tmp_path / folder / tiles[0].name) for folder in ("teacher", "comparator"))
    assert one.method == other.method
    assert list(one.layers) == list(other.layers) == ["nuclei", "cells_Ring"]
    assert all((one.layers[name] == other.layers[name]).all() for name in one.layers)
    assert (tmp_path / "teacher" / tiles[0].name / "sketch.json").read_text() == (tmp_path / "comparator" / tiles[0].name / "sketch.json").read_text()


def test_preflight_expects_no_less_on_the_disk_than_is_written(taught, tmp_path):
    folder, tiles = list(taught.items())[1]
    index = TileIndex.read(folder / "tiles" / "tiles.json")
    for method in ("expansion", "watershed"):
        run(folder, tiles, method, tmp_path / method)
        written = sum(path.stat().st_size for path in (tmp_path / method).rglob("*") if path.is_file())
        expected = preflight.comparator_bytes(method, index.grid["height"] * index.grid["width"], 0) - preflight.comparator_bytes(method, 0, 0)
        assert 0.2 * expected < written < expected, method


def test_a_missing_sketch_is_no_smaller_vote(taught, tmp_path):
    folder, tiles = next(iter(taught.items()))
    run(folder, tiles, "watershed", tmp_path)
    (tmp_path / "watershed" / tiles[1].name / "sketch.json").unlink()
    with pytest.raises(InputError, match=r"sketch\.json"):
        comparator.merge(segmentation="watershed", tiles_json=folder / "tiles" / "tiles.json", labels=tmp_path / "watershed", out=tmp_path / "again")


def test_nuclei_grow_by_the_distance_and_stop_at_each_other(taught, tmp_path):
    folder, (tile,) = list(taught.items())[1]
    comparator.tiles(method="expansion", tiles=[tile], out=tmp_path, settings=Settings(teacher_labels=folder / "labels", expansion_um=6.0), **LIMITS)
    nuclei = TileLabels.read(folder / "labels" / tile.name, ["nuclei"]).layers["nuclei"]
    cells = TileLabels.read(tmp_path / tile.name, ["cells"]).layers["cells"]
    assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all()
    reach = 6.0 / Tile.read(tile).working_um
    inside = np.argwhere(nuclei > 0)
    distance, nearest = cKDTree(inside).query(np.argwhere(np.ones(cells.shape, bool)), distance_upper_bound=reach + 2)
    covered = (cells > 0).ravel()
    assert (covered == (distance <= reach)).all()
    owner = nuclei[tuple(inside[nearest[covered]].T)]
    assert (owner == cells.ravel()[covered]).mean() > 0.99, "only pixels as far from one nucleus as from another may differ"


def test_a_tile_that_is_missing_is_told(taught, tmp_path):
    folder, tiles = next(iter(taught.items()))
    comparator.tiles(method="expansion", tiles=tiles[:-1], out=tmp_path, settings=Settings(teacher_labels=folder / "labels"), **LIMITS)
    with pytest.raises(InputError, match=rf"{tiles[-1].name}: lacks labels.npz"):
        comparator.merge(segmentation="expansion", tiles_json=folder / "tiles" / "tiles.json", labels=tmp_path, out=tmp_path / "out")


def test_no_tissue_gives_no_cells(taught, tmp_path):
    folder = next(iter(taught))
    index = TileIndex.read(folder / "tiles" / "tiles.json")
    index.tiles = []
    index.write(tmp_path / "tiles.json")
    comparator.merge(segmentation="expansion", tiles_json=tmp_path / "tiles.json", labels=tmp_path, out=tmp_path)
    assert cells_file.read(tmp_path / "expansion.cells.parquet").empty


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = result_fixtures.make(tmp_path_factory.mktemp("program"), np.array([[20, 20], [50, 30], [80, 70], [60, 60]]), n_transcripts=6000)
    nuclei = gpd.read_parquet(world.paths["nuclei"]).assign(label=np.arange(1, 5, dtype=np.int32))
    cells_file.write(world.paths["nuclei"], nuclei)
    group = zarr.open_group(world.paths["labels"], mode="a")
    image = result_fixtures.rasterise(list(nuclei.geometry), group["istseg"].shape)
    group.create_array("nuclei", data=image).attrs["micron_to_working"] = group["istseg"].attrs["micron_to_working"]
    return world


def prepare(world, out, method="comseg", **given):
    paths = {"sample_json": world.paths["sample"], "transcripts": world.paths["points"], "nuclei": world.paths["nuclei"], "labels": world.paths["labels"]}
    comparator.prepare(method=method, out=out, **{**paths, **given})
    return pd.read_csv(out / "transcripts.csv"), json.loads((out / "prepared.json").read_text())


def in_nucleus(world, table):
    """Number of the nucleus in whose pixels each transcript lies, by the label image."""
    labels = zarr.open_group(world.paths["labels"], mode="r")["nuclei"][:]
    pixel = np.floor(apply_affine(result_fixtures.affine(result_fixtures.WORKING_UM), table[["x", "y"]].to_numpy())).astype(int)
    inside = ((pixel >= 0) & (pixel < labels.shape[::-1])).all(1)
    number = np.zeros(len(table), int)
    number[inside] = labels[pixel[inside, 1], pixel[inside, 0]]
    return number


def test_programs_get_all_genes_and_no_control_and_the_nuclei(world, tmp_path):
    table, record = prepare(world, tmp_path)
    genes = world.points[~world.points["is_control"]].set_index("transcript_id")
    assert sorted(table["transcript_id"]) == sorted(genes.index)
    there = genes.loc[table["transcript_id"]]
    assert (table["gene"].to_numpy() == there["gene"].astype(str).to_numpy()).all()
    assert np.allclose(table[["x", "y"]], there[["x", "y"]])
    assert (table["z"] == 0).all()
    assert (table["prior"].to_numpy() == in_nucleus(world, table)).all()
    assert record["n_in_prior"] == (table["prior"] > 0).sum() > 20
    centroids = pd.read_csv(tmp_path / "prior.csv").set_index("prior")
    expected = gpd.read_parquet(world.paths["nuclei"])
    assert np.allclose(centroids.loc[range(1, 5), ["x", "y"]], expected[["centroid_x_um", "centroid_y_um"]])


def test_cells_can_be_the_start(world, tmp_path):
    table, record = prepare(world, tmp_path, method="proseg", init=world.paths["cells"])
    cells = gpd.read_parquet(world.paths["cells"])
    for number, polygon in enumerate(cells.geometry, start=1):
        inside = shapely.intersects_xy(polygon, table["x"], table["y"])
        assert (table["prior"].to_numpy()[inside] == number).all()
    assert record["prior"] == "cells"
    assert record["n_in_prior"] > prepare(world, tmp_path / "nuclei")[1]["n_in_prior"]


def test_without_any_nucleus_there_is_no_start(tmp_path):
    world = result_fixtures.make(tmp_path / "w", np.array([[20, 20]]), nuclei=[])
    with pytest.raises(InputError, match="holds no object that comseg could start from"):
        prepare(world, tmp_path / "out")


def answer(folder, table):
    """What run_comseg would write if every transcript of a nucleus were its cell's."""
    folder.mkdir()
    table.loc[table["prior"] > 0, ["transcript_id", "prior"]].to_csv(folder / "assignment.csv", index=False)
    (folder / "comseg.json").write_text('{"program": "comseg 1.8.5"}')
    return folder


def test_the_answer_of_a_program_becomes_cells_and_a_table(world, tmp_path):
    table, _ = prepare(world, tmp_path / "prepared")
    paths = {"sample_json": world.paths["sample"], "transcripts": world.paths["points"]}
    comparator.collect(method="comseg", **paths, prepared=tmp_path / "prepared", raw=answer(tmp_path / "raw", table), out=tmp_path)
    cells = cells_file.read(tmp_path / "comseg.cells.parquet")
    assert cells["cell_id"].tolist() == [f"s1_comseg_000000{n}" for n in (1, 2, 3, 4)]
    assigned = pq.read_table(tmp_path / "comseg.assignment.parquet").to_pandas().astype({"cell_id": str}).set_index("transcript_id")["cell_id"]
    expected = table[table["prior"] > 0].set_index("transcript_id")["prior"]
    assert (assigned.loc[expected.index] == [f"s1_comseg_{n:07d}" for n in expected]).all()
    controls = world.points[world.points["is_control"]].set_index("transcript_id")
    extra = assigned.drop(expected.index)
    assert set(extra.index) <= set(controls.index)
    polygons = dict(zip(cells["cell_id"], cells.geometry, strict=True))
    for transcript, place in controls.iterrows():
        covering = [name for name, polygon in polygons.items() if polygon.covers(shapely.Point(place["x"], place["y"]))]
        assert extra.get(transcript) == (covering[0] if covering else None)
    record = json.loads((tmp_path / "comseg.merge.json").read_text())["segmentations"]["comseg"]
    assert record["method"] == {"comparator": "comseg", "initialised_with": "nuclei", "program": "comseg 1.8.5"}
    assign.run(**paths, cells=tmp_path / "comseg.cells.parquet", segmentation="comseg", out=tmp_path / "a", assignment=tmp_path / "comseg.assignment.parquet")
    assert json.loads((tmp_path / "a" / "assign.json").read_text())["transcripts"]["in_cells"] == len(expected)


def test_an_answer_for_another_sample_or_method_is_refused(world, tmp_path):
    table, _ = prepare(world, tmp_path / "prepared")
    raw = answer(tmp_path / "raw", table)
    paths = {"sample_json": world.paths["sample"], "transcripts": world.paths["points"]}
    with pytest.raises(InputError, match="was prepared for sample and method"):
        comparator.collect(method="proseg", **paths, prepared=tmp_path / "prepared", raw=raw, out=tmp_path)
    record = json.loads((tmp_path / "prepared" / "prepared.json").read_text())
    (tmp_path / "prepared" / "prepared.json").write_text(json.dumps({**record, "sample": "other"}))
    with pytest.raises(InputError, match="was prepared for sample and method"):
        comparator.collect(method="comseg", **paths, prepared=tmp_path / "prepared", raw=raw, out=tmp_path)


def test_no_answer_is_refused_and_leaves_nothing(world, tmp_path):
    prepare(world, tmp_path / "prepared")
    (tmp_path / "raw").mkdir()
    paths = {"sample_json": world.paths["sample"], "transcripts": world.paths["points"]}
    with pytest.raises(InputError, match="Did it end well"):
        comparator.collect(method="comseg", **paths, prepared=tmp_path / "prepared", raw=tmp_path / "raw", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
