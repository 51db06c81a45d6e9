"""Gene maps, their picture in colours, and colours by co-expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from istseg.artifacts.genes import draw_order, places
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.network import weights
from istseg.network.augment import quarter_turns, rotate
from istseg.network.card import ModelCard
from istseg.network.coexpression import GREY, MIN_MOLECULES, Molecules, _molecules, coexpression, colours
from istseg.network.dataset import PatchStore, find_patches
from istseg.network.field import blend_windows
from istseg.network.gene_image import GeneImage, draw_squares
from istseg.network.inference import Predictor, open_device
from istseg.network.model import BACKBONES
from istseg.network.rna_image import FORMS, RnaForm, rna_image
from network_fixtures import cut, golden, paint
from tissue_fixtures import genes_of
from training_fixtures import GENES, patch_of, tissue, write_patches


@pytest.fixture(scope="module")
def crowded():
    """Two or more transcripts in many pixels, a few of them control probes."""
    painting = paint(300, 340, seed=3)
    painting.transcripts[["x_wpx", "y_wpx"]] = painting.transcripts[["x_wpx", "y_wpx"]] // 4 * 4 + 1.5
    painting.transcripts["gene"] = painting.transcripts["gene"].cat.add_categories("unseen")
    return painting


def test_the_hash_is_splitmix64():
    # First outputs of the reference generator seeded with 0: its state grows by the constant that the hash adds.
    step = 0x9E3779B97F4A7C15
    ids = np.array([0, step - (1 << 64)], np.int64)
    assert draw_order(ids).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_a_pixel_shows_one_of_its_molecules_whatever_the_tiling_and_the_order(crowded, tmp_path):
    whole = Tile.read(cut(crowded, tmp_path / "one", 9)[0])
    genes = ["B", "A"]
    expected = whole.gene_map(genes)
    y0, x0 = whole.region[:2]
    table = crowded.transcripts[~crowded.transcripts["is_control"]]
    pixel = (table["y_wpx"] - y0).astype(int) * whole.shape[1] + (table["x_wpx"] - x0).astype(int)
    first = table.assign(pixel=pixel, rank=draw_order(table["transcript_id"].to_numpy())).sort_values("rank").drop_duplicates("pixel")
    assert (table.groupby(pixel)["gene"].nunique() > 1).mean() > 0.2
    by_hand = np.zeros(whole.shape[0] * whole.shape[1], int)
    by_hand[first["pixel"]] = first["gene"].map({"A": 2, "B": 1}).astype(int)
    assert np.array_equal(expected.ravel(), by_hand)
    # As at random: neither gene wins.
    share = (table["gene"] == "A").mean()
    assert abs((expected[expected > 0] == 2).mean() - share) < 0.05
    crowded.transcripts = crowded.transcripts.sample(frac=1, random_state=4)
    for folder in cut(crowded, tmp_path / "many", 1):
        tile = Tile.read(folder)
        ty, tx, by, bx = tile.region
        assert np.array_equal(tile.gene_map(genes), expected[ty - y0 : by - y0, tx - x0 : bx - x0])
    assert genes_of(whole.folder) == {"A": (table["gene"] == "A").sum(), "B": (table["gene"] == "B").sum(), "Blank-1": 0, "unseen": 0}
    assert not whole.gene_map(["C"]).any() and set(np.unique(whole.gene_map(["x", "A"]))) == {0, 2}


def test_names_are_translated():
    assert places(["A", "B", "C"], ["C", "x", "A"]).tolist() == [0, 3, 0, 1]
    assert places([], ["A"]).tolist() == [0] and places(["A"], []).tolist() == [0, 0]


def test_the_picture_equals_the_published_package():
    """Where molecules share a pixel the package takes the last of the list; the maps here are made so. Its picture is continued by another reflection than
    our RNA image, hence not the outermost pixel. Its index 0 paints black over its neighbours, here as a gene of that colour: our maps have no such gene."""
    g = golden("gene_embedding.npz")
    colour = g["weight"]
    maps = np.zeros((2, 1, *g["image"].shape[2:]))
    for one, gene, at in zip(maps, g["list_gene"], g["array_coord_yx"], strict=True):
        one[0, at[:, 0], at[:, 1]] = np.where(gene > 0, gene, len(colour))
    drawn = GeneImage(len(colour), RnaForm(3, 0.5, radius=1), learned=False)
    drawn.table[1:-1] = torch.from_numpy(colour[1:])
    drawn.table[-1] = 0
    image = drawn(torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(image[..., 1:-1, 1:-1], g["image"][..., 1:-1, 1:-1], atol=1e-5)
    assert np.abs(g["image"][..., 1:-1, 1:-1]).max() > 1.5


@pytest.mark.parametrize("form", FORMS)
def test_white_genes_give_the_rna_image_of_one_molecule_per_pixel(form):
    genes = np.random.default_rng(0).integers(0, 4, (40, 56)) * (np.random.default_rng(1).random((40, 56)) < 0.1)
    drawn = GeneImage(3, FORMS[form], learned=False)
    drawn.table[1:] = 1
    with torch.autocast("cpu", torch.bfloat16):
        image = drawn(torch.from_numpy(genes)[None, None].float())[0].numpy()
    for channel in image:
        np.testing.assert_allclose(channel, rna_image(genes > 0, form), atol=1e-6)


def test_the_upper_left_molecule_lies_on_top():
    genes = torch.zeros(1, 1, 5, 6, dtype=torch.int32)
    genes[0, 0, 2, 2], genes[0, 0, 2, 3], genes[0, 0, 3, 2] = 1, 2, 3
    assert draw_squares(genes, 1).equal(genes)
    assert draw_squares(genes, 2)[0, 0, 2:5, 2:5].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 0]]


def test_gradients_reach_the_colours_of_the_genes_that_are_there():
    model, _ = weights.new(0, rna_input="learned", genes=GENES)
    genes = torch.zeros(1, 1, 32, 32)
    genes[..., 4::8, 4::8], genes[..., ::8, ::8] = 1, 3
    model(torch.rand(1, 2, 32, 32), genes).square().sum().backward()
    per_gene = model.gene_image.table.grad.abs().sum(1)
    assert (per_gene > 0).tolist() == [False, True, False, True, False]
    fixed, _ = weights.new(0, rna_input="coexpression", genes=GENES)
    assert not any("table" in name for name, _ in fixed.named_parameters()) and "gene_image.table" in fixed.state_dict()


def test_a_model_with_colours_is_written_and_read(tmp_path):
    model, card = weights.new(1, rna_input="learned", genes=GENES)
    weights.save(tmp_path / "m.safetensors", model, card, half=False)
    loaded, read = weights.load(tmp_path / "m.safetensors")
    assert (read.rna_input, read.genes, read.image_form) == ("learned", GENES, None)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_fields_do_not_depend_on_the_tiling(crowded, tmp_path):
    model, card = weights.new(2, rna_input="coexpression", genes=["A", "B"])
    model.gene_image.table[1:] = torch.tensor([[0.1, 0.9, 0.4], [0.8, 0.0, 0.6]])
    predictor = Predictor(model, card, open_device("cpu"))

    def field(folder):
        tile = Tile.read(folder)
        return tile.region, blend_windows(tile, predictor.predict, inputs=predictor.inputs)

    (one,) = cut(crowded, tmp_path / "one", 9)
    (y0, x0, *_), expected = field(one)
    for folder in cut(crowded, tmp_path / "many", 1)[:4]:
        tile = Tile.read(folder)
        ty, tx, by, bx = tile.core
        (ry, rx, *_), found = field(folder)
        assert np.array_equal(found[:, ty - ry : by - ry, tx - rx : bx - rx], expected[:, ty - y0 : by - y0, tx - x0 : bx - x0])
    model.gene_image.table[1] = 0
    assert not np.array_equal(field(one)[1], expected), "the colours reach the prediction"


def test_examples_hold_gene_maps_that_turn_with_the_picture(tmp_path):
    write_patches(tmp_path / "p", 1)
    (ref,) = find_patches([tmp_path / "p"])
    store = PatchStore(tmp_path, genes=["x", "B", "A"])
    assert store.add(ref) and ref.genes == tuple(GENES)
    example = store.example(0, 0)
    assert set(np.unique(example.counts)) == {0, 2, 3}
    assert np.array_equal(quarter_turns(example, 1, False).counts, np.rot90(example.counts))
    turned = rotate(example, 0.5, (0, 0), example.shape).counts
    assert turned.dtype == np.float32 and set(np.unique(turned)) == {0, 2, 3}


def scattered(kinds: int, n_genes: int, seed: int, shift: float = 0.0) -> Molecules:
    """Cells of several kinds, each with genes of its own; the last gene is rare."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 300, (400, 2))
    cell = rng.integers(0, 400, 12000)
    gene = (cell % kinds) + kinds * rng.integers(0, n_genes // kinds, len(cell))
    gene[:3] = n_genes
    return Molecules(centre[cell] + rng.normal(0, 1.5, (len(cell), 2)) + shift, gene, np.ones(len(cell), bool))


def test_genes_of_one_kind_of_cell_get_like_colours():
    area = scattered(2, 12, seed=0)
    matrix, molecules = coexpression([area], 13, 5000, seed=0)
    assert np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1) and np.abs(matrix).max() < 1 + 1e-9
    rgb = colours(matrix, molecules)
    assert rgb.min() >= 0 and rgb.max() <= 1 and molecules[12] < MIN_MOLECULES and (rgb[12] == GREY).all()
    apart = np.linalg.norm(rgb[:12, None] - rgb[None, :12], axis=2)
    same = np.equal.outer(np.arange(12) % 2, np.arange(12) % 2)
    first = np.abs(rgb[:12, None, 0] - rgb[None, :12, 0])
    assert apart[same & (apart > 0)].mean() < 0.8 * apart[~same].mean() and first[same].max() < 0.3 < 0.7 < first[~same].min()
    assert np.array_equal(rgb, colours(*coexpression([area], 13, 5000, seed=0)))
    moved = Molecules(area.xy_um + 1000, area.gene, area.centre)
    assert np.abs(rgb - colours(*coexpression([moved], 13, 5000, seed=0))).max() < 1e-4


def test_areas_do_not_see_each_other_and_margins_count_as_neighbours_only():
    at = np.array([[0.0, 0], [1, 0], [9, 0]])
    ones = np.ones(3, bool)
    a, b = Molecules(at, np.array([0, 1, 0]), ones), Molecules(at, np.array([0, 0, 1]), ones)
    # Centres: gene 0 sees gene 1 at 1 µm (weight 1 - 1/4), gene 1 sees gene 0, the third nothing; then the genes 0 see each other.
    near = np.array([[0, 0.75], [0.75, 0], [0, 0], [0.75, 0], [0.75, 0], [0, 0]])
    matrix, molecules = coexpression([a, b], 2, 10, seed=0, radius_um=4)
    assert matrix == pytest.approx(np.corrcoef(near.T)) and molecules.tolist() == [4, 2]
    margin = Molecules(at, a.gene, np.array([True, False, False]))
    matrix, molecules = coexpression([margin, b], 2, 10, seed=0, radius_um=4)
    assert matrix == pytest.approx(np.corrcoef(near[[0, 3, 4, 5]].T)) and molecules.tolist() == [3, 1]


def test_the_cores_of_windows_share_no_molecule_at_the_border_either():
    t = tissue(250, 230)
    areas = [_molecules(patch_of(t, gy, gx), GENES) for gy in range(3) for gx in range(3)]
    assert sum(area.centre.sum() for area in areas) == (t.genes > 0).sum()
    assert len(areas[8].centre) == (t.genes[176:, 176:] > 0).sum(), "no neighbour is a reflection"


def test_colours_of_hardly_anything_are_grey():
    assert (colours(*coexpression([], 3, 10, seed=0)) == GREY).all()
    assert (colours(np.eye(1), np.array([99])) == GREY).all()
    assert np.isfinite(colours(np.eye(2), np.array([99, 99]))).all()


def test_another_panel_is_refused_with_figures(caplog):
    card = ModelCard("m", rna_input="learned", genes=list("ABCD"))
    card.check_panel({"A": 500, "B": 500, "C": 500, "D": 0}, "s1")
    assert not caplog.text
    card.check_panel({"A": 500, "B": 500, "x": 1000}, "s1")
    assert "s1: 2 of the 4 genes of the model m are in the sample" in caplog.text and "1000 of its 2000 transcripts (50.0%)" in caplog.text
    for transcripts in ({"A": 2000}, {"A": 1, "B": 1, "C": 1, "D": 1, "x": 2000}):
        with pytest.raises(InputError, match="made for one panel"):
            card.check_panel(transcripts, "s1")
    # A tile with a few transcripts proves nothing, and the density knows no genes.
    card.check_panel({"A": 1, "x": 3}, "s1")
    ModelCard("m").check_panel({"x": 5000}, "s1")


def test_an_empty_tile_has_an_empty_map(tmp_path):
    painting = paint(100, 100)
    painting.transcripts = painting.transcripts.iloc[:0]
    tile = Tile.read(cut(painting, tmp_path, 9)[0])
    assert not tile.gene_map(["A"]).any() and sum(genes_of(tile.folder).values()) == 0
    assert isinstance(painting.transcripts["gene"].dtype, pd.CategoricalDtype)


def test_axes_of_large_panels_are_those_of_small_ones(monkeypatch):
    rng = np.random.default_rng(3)
    groups = np.arange(90) % 3
    matrix = np.corrcoef(rng.normal(size=(90, 40)) + 3 * rng.normal(size=(3, 40))[groups])
    molecules = np.full(90, 100)
    exact = colours(matrix, molecules)
    monkeypatch.setattr("istseg.network.coexpression._DENSE", 10)
    assert np.allclose(colours(matrix, molecules), exact, atol=1e-4)
    assert np.array_equal(colours(matrix, molecules), colours(matrix, molecules))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_base_with_another_rna_input_has_its_layers_and_sees_no_rna_at_first(backbone):
    base, card = weights.new(3, backbone)
    stains, rna = torch.rand(1, 2, 64, 64), torch.rand(1, 1, 64, 64)
    genes = torch.randint(0, 3, (1, 1, 64, 64)).float()
    shown = []
    for kind, names, image in (("density", [], rna), ("coexpression", ["a", "b"], genes), ("learned", ["a", "b"], genes)):
        model, changed = weights.with_rna_input(base, card, kind, names, seed=0)
        assert (changed.rna_input, changed.genes, changed.backbone) == (kind, names, backbone)
        with torch.inference_mode():
            shown.append(model(stains, image))
            assert torch.allclose(model(stains, torch.zeros_like(image)), shown[-1], atol=1e-5)
    assert torch.allclose(shown[0], shown[1], atol=1e-5) and torch.allclose(shown[0], shown[2], atol=1e-5)
    back, _ = weights.with_rna_input(model, changed, "density", [], seed=0)
    with torch.inference_mode():
        assert torch.allclose(back(stains, rna), shown[0], atol=1e-5), "from colours to density as well"
        assert not torch.allclose(base(stains, rna), shown[0], atol=1e-3), "the base does see it"
