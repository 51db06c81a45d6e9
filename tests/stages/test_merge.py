"""merge: objects of all tiles → one segmentation of the sample."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import zarr

from istseg import merging
from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import read_json, write_json
from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.grid import WindowGrid
from istseg.locate import LabelLocator
from istseg.stages import merge
from network_fixtures import ORIGIN_UM, WORKING_UM, cut, paint

MODEL = {
    "model": "m",
    "model_sha256": "aa",
    "parameters": {"min_flow": 0.0},
    "device": "cpu",
    "precision": "bfloat16",
    "network": "fused",
    "seconds": 1.5,
    "finishing_seconds": 0.25,
}


@pytest.fixture(scope="module")
def painting():
    return paint(300, 420, seed=11)


def label_tiles(tiles: list[Path], layers: dict[str, np.ndarray], out: Path, method: dict) -> None:
    """What segment or teach would write if it saw exactly `layers` (label images of the whole sample)."""
    for folder in tiles:
        tile = Tile.read(folder)
        y0, x0, y1, x1 = tile.region
        mosaic = next(iter(layers.values())).shape
        own = {}
        for name, image in layers.items():
            # Numbers of a tile are its own.
            part = np.unique(image[y0:y1, x0:x1], return_inverse=True)[1].reshape(y1 - y0, x1 - x0)
            own[name] = (part + (image[y0:y1, x0:x1].min() > 0)).astype(np.int32)
        tables = [describe(n, a, tile.core, tile.region, mosaic, mean_flow=np.full(len(np.unique(a[a > 0])), 0.5)) for n, a in own.items()]
        objects = pd.concat(tables, ignore_index=True)
        TileLabels(tile.sample, tile.tile_id, tile.core, tile.region, own, objects, method).write(out / tile.tile_id)


def prepare(folder: Path, painting, per_side: int, cells=None, stains=("Cellbound1",), without=frozenset(), **thresholds) -> dict[str, Path]:
    tiles = cut(painting, folder / "tiles", per_side, without)
    cells = painting.cells if cells is None else cells
    label_tiles(tiles, {"cells": cells}, folder / "cells", MODEL)
    nuclei = np.where(np.arange(cells.shape[1]) % 40 < 25, painting.cells, 0)
    label_tiles(tiles, {"nuclei": nuclei} | {f"cells_{s}": painting.cells for s in stains}, folder / "teach", {"teacher": "truth"})
    limits = {"best_stain": stains[0] if stains else None, "best_layer": f"cells_{stains[0]}" if stains else None} | thresholds
    Thresholds("s1", 0.2, 8.0, n_nuclei=5, n_nucleus_pixels=500, teacher_cells={}, percentiles={}, **limits).write(folder / "thresholds.json")
    return {
        "tiles_json": folder / "tiles" / "tiles.json", "cells": folder / "cells", "teacher": folder / "teach",
        "thresholds": folder / "thresholds.json", "out": folder / "merged",
    }  # fmt: skip


@pytest.fixture(scope="module")
def merged(painting, tmp_path_factory):
    paths = prepare(tmp_path_factory.mktemp("one"), painting, 9)
    merge.run(**paths)
    return paths["out"]


def image_of(out: Path, name: str) -> np.ndarray:
    return zarr.open_group(out / "labels.zarr", mode="r")[name][:]


def test_every_cell_comes_once_with_its_pixels(painting, merged):
    image, cells = image_of(merged, "istseg"), cells_file.read(merged / "istseg.cells.parquet")
    assert len(cells) == len(np.unique(painting.cells)) - 1
    pairs = np.unique(np.stack([image.ravel(), painting.cells.ravel()]), axis=1)
    assert pairs.shape[1] == len(cells) + 1
    assert ((image > 0) == (painting.cells > 0)).all()
    assert cells["label"].tolist() == list(range(1, len(cells) + 1))
    assert cells["cell_id"].iloc[0] == "s1_0000001"
    assert (cells["mean_flow"] == 0.5).all()


@pytest.mark.parametrize("per_side", [1, 2])
def test_the_tiling_does_not_matter(painting, merged, tmp_path, per_side):
    paths = prepare(tmp_path, painting, per_side)
    merge.run(**paths)
    for name, file in (("istseg", "istseg.cells.parquet"), ("teacher", "teacher.cells.parquet"), ("nuclei", "nuclei.parquet")):
        assert np.array_equal(image_of(paths["out"], name), image_of(merged, name)), name
        assert cells_file.read(paths["out"] / file).equals(cells_file.read(merged / file)), file
    record = read_json(paths["out"] / "merge.json", "merge")
    assert record["n_tiles"] > 1
    assert all(s["conflict_pixels"] == 0 for s in record["segmentations"].values())
    method = record["segmentations"]["istseg"]["method"]
    assert (method["seconds"], method["finishing_seconds"]) == (1.5 * record["n_tiles"], 0.25 * record["n_tiles"])


def test_outlines_held_a_few_at_a_time_give_the_same_cells(painting, merged, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "OUTLINES", 7)
    paths = prepare(tmp_path, painting, 2)
    merge.run(**paths)
    for file in ("istseg.cells.parquet", "teacher.cells.parquet", "nuclei.parquet"):
        cells = cells_file.read(merged / file)
        assert len(cells) > 14 and cells_file.read(paths["out"] / file).equals(cells), file
        boxes = [json.loads(pq.read_schema(folder / file).metadata[b"geo"])["columns"]["geometry"]["bbox"] for folder in (merged, paths["out"])]
        assert boxes[0] == boxes[1]
    assert {p.name for p in paths["out"].iterdir()} == {p.name for p in merged.iterdir()}


def test_numbers_follow_the_centroid(painting, merged):
    image = image_of(merged, "istseg")
    y, x = np.nonzero(image)
    n = np.bincount(image[y, x])[1:]
    cy, cx = np.bincount(image[y, x], y)[1:] / n, np.bincount(image[y, x], x)[1:] / n
    assert np.array_equal(np.lexsort((cx, cy)), np.arange(len(n)))


def test_polygons_are_valid_in_microns_and_fit_the_pixels(painting, merged):
    image, cells = image_of(merged, "istseg"), cells_file.read(merged / "istseg.cells.parquet")
    assert cells.geometry.is_valid.all()
    assert (cells.geometry.geom_type == "Polygon").all()
    area = np.bincount(image.ravel())[1:] * WORKING_UM**2
    # The outline cuts the corners of pixels, and holes of the painted cells are filled.
    np.testing.assert_allclose(cells["area_um2"], area, rtol=0.1, atol=0.3)
    y, x = np.nonzero(image == 7)
    assert cells["centroid_x_um"][6] == pytest.approx((x.mean() + 0.5) * WORKING_UM + ORIGIN_UM[0], abs=0.1)
    assert cells["centroid_y_um"][6] == pytest.approx((y.mean() + 0.5) * WORKING_UM + ORIGIN_UM[1], abs=0.1)


def test_a_point_is_found_in_its_cell(painting, merged):
    cells = cells_file.read(merged / "istseg.cells.parquet")
    locate = LabelLocator(merged / "labels.zarr", "istseg", cells["label"].to_numpy())
    points = shapely.get_coordinates(shapely.point_on_surface(cells.geometry.to_numpy()))
    assert (locate(points) == np.arange(len(cells))).mean() > 0.98


def test_nuclei_and_teacher(painting, merged):
    nuclei, teacher = cells_file.read(merged / "nuclei.parquet"), cells_file.read(merged / "teacher.cells.parquet")
    assert nuclei["cell_id"].iloc[0] == "s1_n0000001"
    assert teacher["cell_id"].iloc[0] == "s1_t0000001"
    assert len(teacher) == len(np.unique(painting.cells)) - 1
    assert 0 < (image_of(merged, "nuclei") > 0).sum() < (painting.cells > 0).sum()
    assert read_json(merged / "merge.json", "merge")["teacher_layer"]["layer"] == "cells_Cellbound1"


@pytest.mark.parametrize(
    ("stains", "limits", "layer"),
    [
        (("A", "B"), {"best_layer": "cells_B", "best_stain": "B"}, "cells_B"),
        (("A", "B"), {"best_layer": None, "best_stain": "B"}, "cells_B"),
        (("expansion",), {"best_layer": "cells_expansion", "best_stain": None}, "cells_expansion"),
        ((), {"best_layer": None, "best_stain": None}, "nuclei"),
    ],
)
def test_the_teachers_layer(painting, tmp_path, stains, limits, layer):
    paths = prepare(tmp_path, painting, 9, stains=stains, **limits)
    merge.run(**paths)
    record = read_json(paths["out"] / "merge.json", "merge")
    assert record["teacher_layer"]["layer"] == layer == record["segmentations"]["teacher"]["layer"]
    same = np.array_equal(image_of(paths["out"], "teacher"), image_of(paths["out"], "nuclei"))
    assert same == (layer == "nuclei")


def test_no_cells_at_all(painting, tmp_path):
    empty = type(painting)(painting.stains, painting.transcripts, np.zeros_like(painting.cells))
    paths = prepare(tmp_path, empty, 2)
    merge.run(**paths)
    for file in ("istseg.cells.parquet", "teacher.cells.parquet", "nuclei.parquet"):
        assert len(cells_file.read(paths["out"] / file)) == 0
    assert not image_of(paths["out"], "istseg").any()
    assert read_json(paths["out"] / "merge.json", "merge")["segmentations"]["istseg"]["n"] == 0


def test_skipped_tiles_are_counted_and_stay_empty(tmp_path):
    painting = paint(200, 480, seed=12, empty_from_x=250)
    grid = WindowGrid(200, 480, 64, 192)
    without = {(gy, gx) for gy in range(grid.shape[0]) for gx in range(2, grid.shape[1])}
    paths = prepare(tmp_path, painting, 1, without=without)
    merge.run(**paths)
    assert read_json(paths["out"] / "merge.json", "merge")["n_skipped_tiles"] == len(without)
    assert np.array_equal(image_of(paths["out"], "istseg") > 0, painting.cells > 0)


def test_objects_larger_than_the_halo_are_cut_and_conflicts_counted(tmp_path):
    painting = paint(120, 1100, seed=13)
    huge = np.zeros_like(painting.cells)
    huge[20:100, 10:1090] = 1
    paths = prepare(tmp_path, painting, 1, cells=huge)
    merge.run(**paths)
    record = read_json(paths["out"] / "merge.json", "merge")
    image, cells = image_of(paths["out"], "istseg"), cells_file.read(paths["out"] / "istseg.cells.parquet")
    assert record["n_cut"] == len(cells) > 1
    claims = 0
    for folder in sorted(paths["cells"].iterdir()):
        found = TileLabels.read(folder)
        claims += np.isin(found.layers["cells"], found.objects.loc[found.objects["owned"], "label"]).sum()
    # Pixels that k objects claim are conflicts k − 1 times.
    assert record["segmentations"]["istseg"]["conflict_pixels"] == claims - (image > 0).sum() > 0
    assert len(record["warnings"]) == 2
    # The smaller number has the pixel: the first object keeps all of its own.
    assert (image == 1).sum() * WORKING_UM**2 == pytest.approx(cells["area_um2"].iloc[0], rel=0.01)


def test_all_missing_and_foreign_tiles_are_named(painting, tmp_path):
    paths = prepare(tmp_path, painting, 1)
    shutil.rmtree(paths["cells"] / "y000x001")
    (paths["teacher"] / "y001x001" / "labels.npz").unlink()
    meta = paths["cells"] / "y001x000" / "meta.json"
    write_json(meta, read_json(meta, "") | {"sample": "other"})
    meta = paths["cells"] / "y001x002" / "meta.json"
    record = read_json(meta, "")
    write_json(meta, record | {"method": record["method"] | {"model_sha256": "bb"}})
    with pytest.raises(InputError) as caught:
        merge.run(**paths)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for word in (
        "y000x001: lacks labels.npz, objects.parquet, meta.json",
        "run segment",
        "y001x001: lacks labels.npz",
        "run teach",
        "other",
        "different models",
    ):
        assert word in text
    assert not paths["out"].exists()


@pytest.mark.parametrize(("key", "other"), [("precision", "float32"), ("device", "cuda"), ("network", "plain")])
def test_tiles_of_different_arithmetic_are_refused(painting, tmp_path, key, other):
    paths = prepare(tmp_path, painting, 1)
    meta = paths["cells"] / "y000x001" / "meta.json"
    record = read_json(meta, "")
    write_json(meta, record | {"method": record["method"] | {key: other}})
    with pytest.raises(InputError, match=f"different arithmetic.*{other}.*1 tiles, e.g. y000x001.*set --precision.*run segment again"):
        merge.run(**paths)
    assert not paths["out"].exists()


def test_a_layer_that_a_tile_lacks_is_an_error(painting, tmp_path):
    paths = prepare(tmp_path, painting, 2, best_layer="cells_PolyT")
    with pytest.raises(InputError, match="cells_PolyT") as caught:
        merge.run(**paths)
    assert len(caught.value.problems) == len(list(paths["teacher"].iterdir()))


def test_thresholds_of_another_sample(painting, tmp_path):
    paths = prepare(tmp_path, painting, 9)
    raw = read_json(paths["thresholds"], "")
    write_json(paths["thresholds"], raw | {"sample": "s2"})
    with pytest.raises(InputError, match="s2"):
        merge.run(**paths)


def test_stale_folders_are_not_merged(painting, merged, tmp_path):
    paths = prepare(tmp_path, painting, 9)
    shutil.copytree(paths["cells"] / "y000x000", paths["cells"] / "y005x005")
    merge.run(**paths)
    assert np.array_equal(image_of(paths["out"], "istseg"), image_of(merged, "istseg"))


def test_a_task_asks_for_more_memory_than_it_needs(tmp_path, monkeypatch):
    """By the terms of conf/resources.config; for a slide of 1 cm² a fraction of a node."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    lattice, slide = importlib.import_module("merge"), importlib.import_module("slide")
    memory, _ = slide.estimates()["MERGE"]
    made = lattice.write(tmp_path, 2, 24, tile_um=150.0)
    estimate = slide.total(memory, {"mpx": made.mpx, "tile_plane_mpx": made.tile_plane_mpx})
    peak = lattice.peak(tmp_path)
    assert len(cells_file.read(tmp_path / "merged" / "istseg.cells.parquet", geometry=False)) == made.cells > 4000
    assert 0.4 * estimate < peak < 500 + 1.5 * estimate
    large, _ = slide.measures(92_000, 4, 7, 500.0)
    assert slide.total(memory, large) < 5000
