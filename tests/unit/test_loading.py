"""Windows cut on a device beside those of the CPU's own way. The device is the CPU here: the same torch code; on a GPU: test_gpu.py."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
import torch

from istseg.ahead import ahead
from istseg.artifacts.files import read_json, write_json
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.network import weights
from istseg.network.inference import Predictor
from istseg.network.loading import DeviceTile, load, rna_images
from istseg.network.rna_image import FORMS, RnaForm, rna_image
from istseg.qc.matching import match_labels, scores
from istseg.stages.segment import filter_of, predict_tile
from network_fixtures import BASE_MODEL, cut, paint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(*weights.load(BASE_MODEL), CPU)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> list[Tile]:
    """Of four windows each: regions that begin inside the mosaic, windows that reach beyond it. One stain is bright, one has no range."""
    painting = paint(430, 500, membranes=3, seed=1)
    painting.stains[1] += 60000
    painting.stains[2] = 7
    folders = cut(painting, tmp_path_factory.mktemp("tiles"), 2)
    assert len(folders) == 4
    return [Tile.read(folder) for folder in folders]


def own_way(predictor: Predictor, tile: Tile, boxes) -> np.ndarray:
    return np.stack([predictor.inputs(tile, box) for box in boxes])


def test_windows_are_those_of_the_cpus_own_way(predictor, tiles):
    for tile in tiles:
        boxes = [tile.window_grid.window_box(*at) for at in (*tile.windows, *tile.ring_windows)]
        wanted = own_way(predictor, tile, boxes)
        found = DeviceTile(load(tile, predictor.card, pinned=False), predictor.card, CPU).windows(boxes).numpy()
        assert found.dtype == np.float32 and wanted[:, -1].max() > 0.1
        assert np.array_equal(found[:, :-1], wanted[:, :-1]), "the stains, bit for bit"
        np.testing.assert_allclose(found[:, -1], wanted[:, -1], rtol=1e-5, atol=1e-6 * wanted[:, -1].max())
        assert not found[:, 2].any()


@pytest.mark.parametrize("form", [*FORMS.values(), RnaForm(3, 1.0), RnaForm(1, 0.0, 2.0), RnaForm(2, 0.0)])
def test_rna_images_are_those_of_opencv(form):
    counts = np.random.default_rng(0).poisson(0.05, (3, 96, 130)).astype(np.int32)
    counts[:, :, 0] += 3
    counts[:, -1] += 2
    found = rna_images(torch.from_numpy(counts)[:, None].float(), form)[:, 0].numpy()
    wanted = np.stack([rna_image(image, form) for image in counts])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * wanted.max())


def test_transcripts_beyond_255_in_a_pixel_and_none_at_all(predictor, tmp_path):
    painting = paint(120, 130, seed=2)
    crowd = painting.transcripts.iloc[:1].loc[lambda t: t.index.repeat(70_000)].assign(gene="A", is_control=False)
    for name, transcripts in (("crowd", crowd), ("none", crowd.iloc[:0])):
        painting.transcripts = transcripts
        (folder,) = cut(painting, tmp_path / name, 9)
        tile = Tile.read(folder)
        box = [tile.window_grid.window_box(0, 0)]
        found = DeviceTile(load(tile, predictor.card, pinned=False), predictor.card, CPU).windows(box).numpy()
        np.testing.assert_allclose(found, own_way(predictor, tile, box), rtol=1e-5, atol=0.01)
        assert (found[0, -1].max() > 1000) == (name == "crowd")


def test_gene_maps_are_handed_on_as_they_are(tiles):
    model, card = weights.new(0, rna_input="learned", genes=["B", "A"])
    predictor = Predictor(model, card, CPU)
    boxes = [tiles[1].window_grid.window_box(*at) for at in tiles[1].windows]
    found = DeviceTile(load(tiles[1], card, pinned=False), card, CPU).windows(boxes).numpy()
    assert np.array_equal(found, own_way(predictor, tiles[1], boxes))
    assert set(np.unique(found[:, -1])) == {0, 1, 2}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_cells_of_a_loaded_tile_are_those_of_the_cpus_own_way(predictor, tiles, batch_size):
    tile = tiles[0]
    wanted, _ = predict_tile(tile, predictor, filter_of(predictor.card), 1)
    found, field = predict_tile(tile, predictor, filter_of(predictor.card), batch_size, load(tile, predictor.card, pinned=False))
    assert wanted.max() > 20 and field.shape == (3, *tile.shape)
    assert scores(match_labels(wanted, found), (0.95,))["ap@0.95"] == 1


def test_the_models_resolution_is_checked(predictor, tmp_path):
    (folder,) = cut(paint(70, 60, seed=8), tmp_path, 1)
    write_json(folder / "tile.json", read_json(folder / "tile.json", "tile") | {"working_um": 0.12})
    with pytest.raises(InputError, match="0.12"):
        load(Tile.read(folder), predictor.card, pinned=False)


def test_the_next_is_made_while_one_is_used():
    made, second = [], threading.Event()

    def make(item: int) -> int:
        made.append(item)
        if item == 2:
            second.set()
        return item**2

    pairs = ahead([1, 2, 3, 4], make)
    assert next(pairs) == (1, 1)
    assert second.wait(10), "the second is made while the first is in use"
    assert made == [1, 2], "and no further one"
    assert list(pairs) == [(2, 4), (3, 9), (4, 16)]
    assert list(ahead([], make)) == []


def test_an_error_in_the_thread_comes_where_its_item_is_due():
    pairs = ahead([1, 0, 2], lambda item: 1 // item)
    assert next(pairs) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(pairs)


def test_opencv_is_the_reference_at_the_borders():
    """What `reflected` continues is what OpenCV calls BORDER_REFLECT."""
    counts = np.arange(12, dtype=np.float32).reshape(3, 4)
    wanted = cv2.dilate(counts, np.ones((2, 2), np.uint8), anchor=(1, 1), borderType=cv2.BORDER_REFLECT)
    assert np.array_equal(rna_images(torch.from_numpy(counts)[None, None], RnaForm(2, 0.0))[0, 0].numpy(), wanted)
