"""segment: tiles + model → cells."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from istseg import finishing
from istseg.artifacts.files import read_json, sha256, write_json
from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.tiles import Tile
from istseg.errors import DeviceError, InputError
from istseg.grid import WindowGrid
from istseg.network import weights
from istseg.network.card import PANEL_MIN_TRANSCRIPTS
from istseg.network.fused import FusedRna2Seg
from istseg.network.inference import Predictor, choose_precision, open_device
from istseg.stages import segment
from network_fixtures import BASE_MODEL, best_iou, cut, paint
from tissue_fixtures import genes_of

DEFAULTS = {
    "model": BASE_MODEL, "model_sha256": None, "logit_threshold": None, "min_flow": None, "flow_error": 0.9, "min_cell_area_um2": 12.8,
    "flow_steps": 60, "batch_size": 1, "device": "cpu", "precision": "auto",
}  # fmt: skip


def run(tiles, out, **changes):
    segment.run(tiles=tiles, out=out, **(DEFAULTS | changes))
    return {Tile.read(t).tile_id: TileLabels.read(out / Path(t).name) for t in tiles}


@pytest.fixture(scope="module")
def painting():
    return paint(300, 340, seed=3)


@pytest.fixture(scope="module")
def one(painting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    tiles = cut(painting, folder / "tiles", 9)
    return tiles, run(tiles, folder / "out"), folder / "out"


def whole_image(results: dict[str, TileLabels], shape) -> np.ndarray:
    """Owned cells on the mosaic, named by their centroid."""
    image = np.zeros((*shape, 2))
    for found in results.values():
        y0, x0, y1, x1 = found.region
        for row in found.objects[found.objects["owned"]].itertuples():
            mask = found.layers["cells"] == row.label
            assert not image[y0:y1, x0:x1][mask].any(), "two owned cells share a pixel"
            image[y0:y1, x0:x1][mask] = row.centroid_y_wpx, row.centroid_x_wpx
    return image


def test_the_base_model_finds_the_painted_cells(painting, one):
    (found,) = one[1].values()
    complete = painting.cells.copy()
    for edge in (complete[0], complete[-1], complete[:, 0], complete[:, -1]):
        complete[np.isin(complete, edge)] = 0
    iou = best_iou(complete, found.layers["cells"])
    assert len(iou) > 30
    assert (iou > 0.5).mean() > 0.9
    assert found.objects["owned"].all()
    assert not found.objects["cut"].any()
    assert found.objects["mean_flow"].between(0.35, 1.5).all()
    assert (found.objects["mean_logit"] > 0).all()


@pytest.mark.parametrize("per_side", [1, 2])
def test_the_tiling_does_not_matter(painting, one, tmp_path, per_side):
    shape = painting.cells.shape
    many = run(cut(painting, tmp_path / "tiles", per_side), tmp_path / "out")
    assert len(many) > 1
    expected, found = whole_image(one[1], shape), whole_image(many, shape)
    assert np.array_equal(found, expected)
    # Cells at the mosaic's edge are there too.
    assert len(np.unique(expected[[0, -1]].reshape(-1, 2), axis=0)) > 10
    a = next(iter(one[1].values())).objects
    b = [r.objects for r in many.values()]
    outlines = sorted(g for objects in b for g in objects.loc[objects["owned"], "geometry"])
    assert outlines == sorted(a["geometry"])


def test_windows_without_tissue_hold_no_cells_in_any_tiling(tmp_path):
    painting = paint(200, 480, seed=5)
    grid = WindowGrid(200, 480, 64, 192)
    without = {(gy, gx) for gy in range(grid.shape[0]) for gx in range(2, grid.shape[1])}
    edge = grid.core(0, 2)[1]
    images = []
    for per_side in (9, 1):
        tiles = cut(painting, tmp_path / f"{per_side}", per_side, without)
        images.append(whole_image(run(tiles, tmp_path / f"out{per_side}"), painting.cells.shape))
    assert np.array_equal(*images)
    assert images[0][:, :edge].any()
    assert not images[0][:, edge:].any()


@pytest.mark.slow
def test_the_tiling_does_not_matter_with_windows_of_full_size(tmp_path):
    painting = paint(300, 800, seed=9)
    images = []
    for per_side in (9, 1):
        tiles = cut(painting, tmp_path / f"{per_side}", per_side, window=512, overlap=128)
        images.append(whole_image(run(tiles, tmp_path / f"out{per_side}"), painting.cells.shape))
    assert len(np.unique(images[0].reshape(-1, 2), axis=0)) > 120
    assert np.array_equal(*images)


def test_a_failure_while_writing_is_not_lost(one, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="out"):
        run(one[0], tmp_path / "out")


def test_files_written_by_processes_are_those_of_a_thread(one, tmp_path, monkeypatch):
    """As beside a GPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (folder,), results, _ = one
    (expected,) = results.values()
    tile, objects = Tile.read(folder), expected.objects.sort_values("label")
    means = objects["mean_flow"].to_numpy(), objects["mean_logit"].to_numpy()
    with finishing.finisher(tmp_path, apart=True) as finisher:
        for name in ("a", "b", "c"):
            finisher.add(replace(tile, tile_id=name), expected.layers["cells"], means, {"model": "m"}, 2.5)
    for name in ("a", "b", "c"):
        found = TileLabels.read(tmp_path / name)
        assert np.array_equal(found.layers["cells"], expected.layers["cells"])
        pd.testing.assert_frame_equal(found.objects, expected.objects, check_exact=True)
        assert found.method["prediction_seconds"] == 2.5 and found.method["model"] == "m"


def test_same_input_same_bytes_and_the_record_says_how(painting, one, tmp_path):
    tiles, results, out = one
    run(tiles, tmp_path)
    (name,) = results
    assert sha256(tmp_path / name / "objects.parquet") == sha256(out / name / "objects.parquet")
    with np.load(tmp_path / name / "labels.npz") as a, np.load(out / name / "labels.npz") as b:
        assert np.array_equal(a["cells"], b["cells"])
    method = read_json(out / name / "meta.json", "meta")["method"]
    assert method["model"] == "istseg-sim-v2"
    assert method["model_sha256"] == sha256(BASE_MODEL)
    assert method["parameters"] == {"logit_threshold": 0.0, "min_flow": 0.5, "flow_error": 0.9, "min_cell_area_um2": 12.8, "flow_steps": 60}
    assert (method["device"], method["network"], method["windows"]) == ("cpu", "fused", 9)
    assert method["seconds"] == pytest.approx(method["prediction_seconds"] + method["finishing_seconds"], abs=0.002)


def test_batch_size_does_not_matter(painting, one, tmp_path):
    (found,) = run(one[0], tmp_path, batch_size=4).values()
    (expected,) = one[1].values()
    assert np.array_equal(found.layers["cells"], expected.layers["cells"])


def test_parameters_reach_the_cells(one, tmp_path):
    (expected,) = one[1].values()
    large = float(expected.objects["area_wpx"].median()) * 0.253**2
    (found,) = run(one[0], tmp_path / "a", min_cell_area_um2=large).values()
    assert 0 < len(found.objects) < len(expected.objects)
    assert found.objects["area_wpx"].min() * 0.253**2 >= large
    (none,) = run(one[0], tmp_path / "b", logit_threshold=100.0).values()
    assert len(none.objects) == 0
    assert not none.layers["cells"].any()


@pytest.mark.parametrize("membranes", [0, 3])
def test_any_number_of_membrane_stains(tmp_path, membranes):
    painting = paint(180, 180, membranes=membranes, seed=6)
    (found,) = run(cut(painting, tmp_path / "tiles", 9), tmp_path / "out").values()
    assert len(found.objects) >= 10


def test_no_transcripts_and_a_blank_stain(tmp_path):
    painting = paint(120, 130, seed=7)
    painting.transcripts = painting.transcripts.iloc[:0]
    painting.stains[:] = 100
    (found,) = run(cut(painting, tmp_path / "tiles", 9), tmp_path / "out").values()
    assert len(found.objects) == 0


def test_a_tile_without_windows_is_empty(painting, tmp_path):
    (folder,) = cut(painting, tmp_path / "tiles", 9)
    record = read_json(folder / "tile.json", "tile")
    write_json(folder / "tile.json", record | {"windows": []})
    (found,) = run([folder], tmp_path / "out").values()
    assert found.layers["cells"].shape == painting.cells.shape
    assert not found.layers["cells"].any()
    assert len(found.objects) == 0


def test_a_mosaic_smaller_than_a_window(tmp_path):
    painting = paint(70, 60, spacing=30, seed=8)
    (found,) = run(cut(painting, tmp_path / "tiles", 1), tmp_path / "out").values()
    assert found.layers["cells"].shape == (70, 60)
    assert len(found.objects) >= 1


def test_a_gpu_that_is_not_there_is_an_error(one, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="cuda"):
        run(one[0], tmp_path, device="cuda")
    with pytest.raises(DeviceError, match="tpu"):
        open_device("tpu")
    assert list(tmp_path.iterdir()) == []


def test_all_unusable_tiles_are_named_before_any_work(painting, tmp_path):
    tiles = cut(painting, tmp_path / "tiles", 1)[:4]
    write_json(tiles[0] / "tile.json", read_json(tiles[0] / "tile.json", "") | {"working_um": 0.12})
    (tiles[1] / "stains.npy").unlink()
    np.save(tiles[2] / "stains.npy", np.zeros((2, 5, 5), np.uint16))
    with pytest.raises(InputError) as caught:
        run([*tiles, tiles[3]], tmp_path / "out")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for word in ("0.12", "stains.npy: no such file", "has the shape (2, 5, 5)", "more than once"):
        assert word in text
    assert not (tmp_path / "out").exists()


def test_wrong_weights_are_refused(one, tmp_path):
    shutil.copy(BASE_MODEL, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="sha256"):
        run(one[0], tmp_path / "out", model=tmp_path / "m.safetensors", model_sha256="ab" * 32)
    with pytest.raises(InputError, match="no such file"):
        run(one[0], tmp_path / "out", model=tmp_path / "none.safetensors")


def test_predictions_that_are_not_finite_are_an_error():
    model, card = weights.new(0)
    with torch.no_grad():
        model.model.output[2].bias[0] = float("inf")
    with pytest.raises(Exception, match="not finite"):
        Predictor(model, card, open_device("cpu")).predict(torch.zeros(1, 3, 64, 64))


def test_reduced_precision_stays_near_float32(painting, one):
    tile = Tile.read(one[0][0])
    model, card = weights.load(BASE_MODEL)
    predictor = Predictor(model, card, open_device("cpu"))
    window = torch.from_numpy(predictor.inputs(tile, tile.window_grid.window_box(1, 1)))[None]
    low = predictor.predict(window)
    full = Predictor(model, card, open_device("cpu"), torch.float32).predict(window)
    assert (low - full)[:, :2].abs().mean() < 0.05
    assert ((low[:, 2] > -0.5) == (full[:, 2] > -0.5)).float().mean() > 0.98


@pytest.mark.parametrize(("precision", "expected"), [("bf16", "bfloat16"), ("float32", "float32")])
def test_the_same_precision_on_every_processor(painting, tmp_path, monkeypatch, caplog, precision, expected):
    """With and without AMX: what is asked for is used, and `auto` is as fast as the processor."""
    tiles = cut(painting, tmp_path / "tiles", 9)
    found = []
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert choose_precision("auto", torch.device("cpu")) == (torch.bfloat16 if amx else torch.float32)
        (labels,) = run(tiles, tmp_path / f"{amx}", precision=precision).values()
        assert labels.method["precision"] == expected
        found.append(labels.layers["cells"])
        assert ("does not multiply bfloat16 fast" in caplog.text) == (precision == "bf16" and not amx)
    assert np.array_equal(*found)
    with pytest.raises(InputError, match="--precision half: must be one of"):
        run(tiles, tmp_path / "out", precision="half")


def test_the_panel_is_judged_by_the_sample_and_not_by_the_tiles_of_a_task(tmp_path):
    painting = paint(200, 480, seed=5)
    # Few transcripts on the left: alone they say nothing about the panel.
    painting.transcripts = painting.transcripts[painting.transcripts["x_wpx"] > 250]
    tiles = cut(painting, tmp_path / "tiles", 1)
    model, card = weights.new(0, rna_input="learned", genes=["C", "D", "E"])
    weights.save(tmp_path / "m.safetensors", model, card)
    few = [sum(genes_of(t).values()) < PANEL_MIN_TRANSCRIPTS for t in tiles]
    assert any(few) and not all(few)
    for task in (tiles, *([t] for t in tiles)):
        with pytest.raises(InputError, match="s1: 0 of the 3 genes of the model .* 0 of its"):
            run(task, tmp_path / "out", model=tmp_path / "m.safetensors")
    (tiles[0] / "genes.json").unlink()
    with pytest.raises(InputError, match="run tile again"):
        run(tiles[:1], tmp_path / "out", model=tmp_path / "m.safetensors")


def test_seconds_of_a_tile_are_those_of_its_own_work(tmp_path, monkeypatch):
    tiles = cut(paint(70, 300, seed=5), tmp_path / "tiles", 1)[:2]
    slow = iter([3.0, 0.0])

    def describe_slowly(*arguments):
        time.sleep(next(slow))
        return describe(*arguments)

    monkeypatch.setattr(finishing, "describe", describe_slowly)
    first, second = (found.method for found in run(tiles, tmp_path / "out").values())
    assert first["finishing_seconds"] >= 3 and first["seconds"] >= first["prediction_seconds"] + 3 - 0.01
    assert second["seconds"] < 3, "the outlines of the first tile are waited for, but not its own work"


def test_batches_of_the_fused_network_are_not_filled(one, monkeypatch, tmp_path):
    computed = []
    window = FusedRna2Seg._windows
    monkeypatch.setattr(FusedRna2Seg, "_windows", lambda self, stains, rna: computed.append(1) or window(self, stains, rna))
    (found,) = run(one[0], tmp_path, batch_size=8).values()
    assert len(computed) == found.method["windows"] == 9
