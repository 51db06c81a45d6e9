"""Windows blended into one field."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from istseg.artifacts.tiles import Tile
from istseg.grid import WindowGrid
from istseg.network.field import NO_TISSUE_LOGIT, blend_windows, count_window, reflect, stain_window, taper
from network_fixtures import cut, paint


@pytest.fixture(scope="module")
def painting():
    return paint(430, 500, seed=1)


def copy_stain(batch):
    return batch[:, [0, 1, 0]]


def scramble(batch):
    """Depends on every pixel of the window, as a network does."""
    mean = batch.mean((1, 2, 3), keepdim=True)
    return torch.sin(batch[:, [0, 1, 0]] * 3 + mean * 100) + torch.roll(batch[:, [1, 0, 1]], 5, 2)


def test_blending_equal_predictions_changes_nothing(painting, tmp_path):
    (folder,) = cut(painting, tmp_path, 9)
    tile = Tile.read(folder)
    field = blend_windows(tile, copy_stain, batch_size=2)
    np.testing.assert_allclose(field, tile.normalised()[[0, 1, 0]], atol=1e-5)
    assert field.dtype == torch.float32


@pytest.mark.parametrize("per_side", [1, 2])
def test_two_tilings_give_the_same_field_bit_for_bit(painting, tmp_path, per_side):
    (one,) = cut(painting, tmp_path / "one", 9)
    whole = blend_windows(Tile.read(one), scramble)
    assert np.unique(whole).size > 10_000
    grid = Tile.read(one).window_grid
    for folder in cut(painting, tmp_path / "many", per_side):
        tile = Tile.read(folder)
        field = blend_windows(tile, scramble)
        # Core and as much around it as the ring of windows fully covers.
        reach = grid.stride - grid.margin
        y0, x0, y1, x1 = grid.clip((tile.core[0] - reach, tile.core[1] - reach, tile.core[2] + reach, tile.core[3] + reach))
        ry, rx = tile.region[:2]
        assert np.array_equal(field[:, y0 - ry : y1 - ry, x0 - rx : x1 - rx], whole[:, y0:y1, x0:x1]), folder.name


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_have_one_size_and_do_not_change_the_result(painting, tmp_path, batch_size):
    (folder,) = cut(painting, tmp_path, 9)
    tile = Tile.read(folder)
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return scramble(batch)

    field = blend_windows(tile, predict, batch_size=batch_size)
    assert set(sizes) == {batch_size}
    assert np.array_equal(field, blend_windows(tile, scramble))


def test_windows_that_are_predicted_one_by_one_need_no_filling(painting, tmp_path):
    (folder,) = cut(painting, tmp_path, 9)
    tile = Tile.read(folder)
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return scramble(batch)

    field = blend_windows(tile, predict, batch_size=7, fill=False)
    assert sum(sizes) == len(tile.windows) and max(sizes) == 7 > min(sizes)
    assert np.array_equal(field, blend_windows(tile, scramble))


def test_order_of_the_windows_does_not_matter(painting, tmp_path):
    (folder,) = cut(painting, tmp_path, 9)
    tile = Tile.read(folder)
    assert np.array_equal(blend_windows(tile, scramble, tile.windows[::-1]), blend_windows(tile, scramble, tile.windows))


def test_windows_without_tissue_give_nothing(painting, tmp_path):
    grid = WindowGrid(*painting.cells.shape, 64, 192)
    without = {(gy, gx) for gy in range(grid.shape[0]) for gx in range(2, grid.shape[1])} | {(0, 0)}
    (folder,) = cut(painting, tmp_path, 9, without=without)
    field = blend_windows(Tile.read(folder), scramble)
    y0, x0, y1, x1 = grid.core(0, 0)
    edge = grid.core(0, 2)[1]
    assert (field[2, :, edge:] == NO_TISSUE_LOGIT).all()
    assert not field[:2, :, edge:].any()
    assert (field[2, y0:y1, x0:x1] == NO_TISSUE_LOGIT).all()
    assert (field[2, y1:, :edge] > NO_TISSUE_LOGIT).all()


def test_no_windows_at_all(painting, tmp_path):
    (folder,) = cut(painting, tmp_path, 9)
    field = blend_windows(Tile.read(folder), scramble, windows=[])
    assert (field[2] == NO_TISSUE_LOGIT).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (50, 60), (129, 31)])
def test_a_mosaic_smaller_than_a_window_is_reflected(tmp_path, shape):
    painting = paint(*shape, seed=2)
    for folder in cut(painting, tmp_path, 1):
        tile = Tile.read(folder)
        grid = tile.window_grid
        box = grid.window_box(*tile.windows[0])
        reach = 600
        padded = np.pad(painting.stains, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
        low, high = np.asarray(tile.ranges, np.float32).T[:, :, None, None]
        expected = (padded[:, box[0] + reach : box[2] + reach, box[1] + reach : box[3] + reach] - low) / np.maximum(high - low, np.float32(1e-6))
        window = stain_window(tile, box)
        flat = (high <= low)[:, 0, 0]
        np.testing.assert_allclose(window[~flat], expected[~flat], rtol=1e-6)
        assert not window[flat].any()
        assert np.isfinite(blend_windows(tile, copy_stain)).all()


def test_counts_are_reflected_like_stains(painting, tmp_path):
    folder = cut(painting, tmp_path, 1)[-1]
    tile = Tile.read(folder)
    counts = tile.transcript_counts()
    box = tile.window_grid.window_box(*tile.windows[-1])
    window = count_window(tile, counts, box)
    reach = 400
    whole = np.zeros(painting.cells.shape, int)
    genes = painting.transcripts[~painting.transcripts.is_control]
    np.add.at(whole, (genes.y_wpx.astype(int), genes.x_wpx.astype(int)), 1)
    expected = np.pad(whole, reach, mode="symmetric")[box[0] + reach : box[2] + reach, box[1] + reach : box[3] + reach]
    assert np.array_equal(window, expected)
    assert window.sum() > 100


def test_a_window_that_is_not_in_the_tile_is_refused(painting, tmp_path):
    tile = Tile.read(cut(painting, tmp_path, 1)[0])
    with pytest.raises(ValueError, match="not inside the region"):
        blend_windows(tile, copy_stain, windows=[(3, 3)])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_reflect_is_numpys_symmetric_padding(size):
    expected = np.pad(np.arange(size), 20, mode="symmetric")
    assert np.array_equal(reflect(-20, size + 20, size), expected)


@pytest.mark.parametrize("overlap", [0, 64, 128])
def test_weights_of_neighbours_sum_to_one(overlap):
    grid = WindowGrid(900, 900, overlap)
    line = taper(grid)[256]
    assert (line > 0).all()
    if overlap:
        np.testing.assert_allclose(line[:overlap] + line[-overlap:], 1, atol=1e-6)
    assert (line[overlap : 512 - overlap] == 1).all()


def test_an_error_while_reading_is_not_lost(painting, tmp_path):
    tile = Tile.read(cut(painting, tmp_path, 9)[0])

    def broken(tile, box):
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        blend_windows(tile, copy_stain, inputs=broken)
