"""The comparator GeneSegNet: network, weights, maps, cells, tiling."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from istseg.artifacts.files import sha256
from istseg.artifacts.tiles import Tile
from istseg.comparators import genesegnet
from istseg.comparators.genesegnet import GeneSegNet, GeneSegNetLabeller, labels_from_centres, location_map, offset_targets
from istseg.errors import InputError
from istseg.network import weights
from istseg.pretrain import evaluate, kinds
from istseg.pretrain.fit import Recipe
from istseg.pretrain.kinds import KINDS
from istseg.stages import pretrain
from network_fixtures import BASE_MODEL, best_iou, cut, paint


@pytest.fixture(scope="module")
def painting():
    return paint(420, 450, membranes=1, seed=7)


def truth_field(labels: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """What a perfect network gives for cells, and a less perfect one."""
    maps = offset_targets(torch.from_numpy(labels.astype(np.int64))[None])[0].numpy()
    field = np.stack([maps[0], maps[1], np.where(labels > 0, 5.0, -5.0), maps[2]]).astype(np.float32)
    scale = np.array([3.0, 3.0, 0.0, 0.03])[:, None, None]
    return field + (noise * scale * np.random.default_rng(0).normal(size=field.shape)).astype(np.float32)


def saved(folder: Path, seed: int = 3) -> Path:
    model, card = genesegnet.new(seed)
    weights.save(folder / "g.safetensors", model, replace(card, name="test", logit_threshold=-0.25))
    return folder / "g.safetensors"


def test_published_network_has_the_published_parameters():
    """As the published RNA2seg (6,690,104): no stain encoder, two pictures less (2 · 9 · 32 + 8 + 64), one output more (32 + 1), diameters not counted."""
    published = GeneSegNet(membranes=False)
    assert sum(p.numel() for p in published.parameters() if p.requires_grad) == 6_690_104 - 88_611 - 648 + 33 - 2
    keys = published.state_dict()
    assert keys["downsample.down.res_down_0.conv.conv_0.2.weight"].shape == (32, 2, 3, 3)
    assert keys["upsample.up.res_up_3.conv.conv_1.full.weight"].shape == (256, 256)
    assert keys["output.2.weight"].shape == (4, 32, 1, 1)
    assert not any("gains" in key for key in keys)


def test_output_of_any_number_of_stains():
    model, _ = genesegnet.new(0)
    stains, rna = torch.rand(2, 4, 64, 72, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 1, 64, 72)
    with torch.inference_mode():
        out = model(stains, rna)
        shuffled, nucleus = model(stains[:, [0, 3, 1, 2]], rna), model(stains[:, :1], rna)
        zeros = model(torch.cat((stains[:, :1], 0 * stains[:, :1]), 1), rna)
    assert out.shape == (2, 4, 64, 72) and out.dtype == torch.float32
    assert torch.equal(out, shuffled), "the maximum does not know an order"
    assert torch.equal(nucleus, zeros) and not torch.equal(nucleus, out)


def test_seeded_weights_come_back_from_a_file(tmp_path):
    path = saved(tmp_path)
    model, card = genesegnet.load(path)
    (tmp_path / "again").mkdir()
    again, _ = genesegnet.load(saved(tmp_path / "again"))
    assert (card.name, card.logit_threshold, card.membranes) == ("test", -0.25, True) and len(card.sha256) == 64
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.rounded(genesegnet.new(3)[0].state_dict()).items())


def test_weights_of_the_published_package_are_read(tmp_path):
    state = GeneSegNet(membranes=False).state_dict()
    path = tmp_path / "GeneSegNet_residual_on_style_on_concatenation_off.929131_epoch_499"
    torch.save(state, path)
    model, card = genesegnet.load(path)
    assert (card.gene_map, card.membranes, model.gains.flatten().tolist()) == ("location", False, [1, 1, 1, 1])
    assert torch.equal(model.state_dict()["output.2.weight"], state["output.2.weight"])


def test_wrong_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="RNA2seg network, not of GeneSegNet"):
        genesegnet.load(BASE_MODEL)
    with pytest.raises(InputError, match="architecture"):
        weights.load(saved(tmp_path))
    with pytest.raises(InputError, match="sha256"):
        genesegnet.load(saved(tmp_path), "0" * 64)
    torch.save(GeneSegNet(membranes=True).state_dict(), tmp_path / "three.pt")
    with pytest.raises(InputError, match="wrong shape"):
        genesegnet.load(tmp_path / "three.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        genesegnet.load(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no such file"):
        genesegnet.load(tmp_path / "none.pt")


def test_card_values_that_make_no_sense_are_refused(tmp_path):
    model, card = genesegnet.new(0)
    with pytest.raises(ValueError, match=r"gene map 'x'(.|\n)*centre_threshold -1"):
        weights.save(tmp_path / "g.safetensors", model, replace(card, gene_map="x", centre_threshold=-1))


def test_location_map_is_the_highest_of_a_gaussian_at_each_transcript():
    counts = np.zeros((60, 70), np.uint8)
    counts[10, 20], counts[14, 30] = 1, 5
    y, x = np.mgrid[:60, :70]
    each = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 7.0**2)) for cy, cx in ((10, 20), (14, 30))]
    expected = np.maximum(*each)
    np.testing.assert_allclose(location_map(counts), np.where(expected < 0.01, 0, expected), atol=1e-6)
    assert not location_map(np.zeros_like(counts)).any()


def test_targets_lead_to_a_pixel_of_the_cell(painting):
    labels = torch.from_numpy(painting.cells[:200, :200].astype(np.int64))
    maps = offset_targets(torch.stack((labels, torch.zeros_like(labels))))
    y, x = torch.nonzero(labels, as_tuple=True)
    target = torch.stack((y, x)) - maps[0, :2, y, x]
    assert torch.equal(target, target.round())
    assert torch.equal(labels[tuple(target.long())], labels[y, x])
    assert (maps[0, 2][labels > 0] > 0).any() and float(maps[0, 2].max()) == 1
    assert (maps[0, :, labels == 0] == 0).all() and (maps[1] == 0).all()
    centre = torch.unique(target[:, labels[y, x] == 5], dim=1)
    assert centre.shape[1] == 1, "one centre per cell"


@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.99), (1.0, 0.9)])
def test_cells_come_back_from_their_field(painting, noise, least):
    found = labels_from_centres(truth_field(painting.cells, noise), 0.0, 0.1, 50)
    whole = np.setdiff1d(painting.cells[6:-6, 6:-6], np.concatenate([painting.cells[e] for e in (0, -1)] + [painting.cells[:, e] for e in (0, -1)]))
    truth = np.where(np.isin(painting.cells, whole), painting.cells, 0)
    assert np.mean(best_iou(truth, found) > 0.9) >= least
    assert found.dtype == np.int32 and set(np.unique(found)) == set(range(found.max() + 1))


def test_no_cells_where_there_are_no_centres_or_no_foreground(painting):
    field = truth_field(painting.cells)
    assert not labels_from_centres(field * np.array([1, 1, 1, 0], np.float32)[:, None, None], 0.0, 0.1, 50).any()
    assert not labels_from_centres(field, 6.0, 0.1, 50).any()


def test_a_cell_is_the_same_in_every_array_also_with_ties(painting):
    """Rounded to 8 bits, as bfloat16 does, many pixels lie equally far from two centres."""
    field = torch.from_numpy(truth_field(painting.cells, 1.0)).bfloat16().float().numpy()
    field[3] = np.maximum(field[3], 0.04)
    whole = labels_from_centres(field, 0.0, 0.1, 50)
    part = labels_from_centres(field[:, 37:, 53:], 0.0, 0.1, 50)
    a, b = whole[37 + 100 : -20, 53 + 100 : -20], part[100:-20, 100:-20]
    pairs = np.unique(np.stack((a, b), -1).reshape(-1, 2), axis=0)
    assert len(np.unique(pairs[:, 0])) == len(pairs) == len(np.unique(pairs[:, 1])) > 20


def test_two_tilings_give_the_same_cells(painting, tmp_path):
    """With random weights: whatever the network says, it says the same in every tile."""
    labeller = GeneSegNetLabeller(saved(tmp_path), None, True, 3.0)
    labeller.card = replace(labeller.card, logit_threshold=-10.0, centre_threshold=1e-3)
    (one,) = cut(painting, tmp_path / "one", 9)
    whole = labeller.label(Tile.read(one))["cells"]
    assert whole.max() > 10
    assert np.array_equal(whole, labeller.label(Tile.read(one))["cells"])
    for folder in cut(painting, tmp_path / "many", 1):
        tile = Tile.read(folder)
        found = labeller.label(tile)["cells"]
        (y0, x0, y1, x1), (ry, rx) = tile.core, tile.region[:2]
        a, b = whole[y0:y1, x0:x1], found[y0 - ry : y1 - ry, x0 - rx : x1 - rx]
        pairs = np.unique(np.stack((a, b), -1).reshape(-1, 2), axis=0)
        assert len(np.unique(pairs[:, 0])) == len(pairs) == len(np.unique(pairs[:, 1])), folder.name


def test_nucleus_stain_alone_does_not_see_membranes(painting, tmp_path):
    (folder,) = cut(painting, tmp_path, 9)
    changed = replace(painting, stains=np.concatenate((painting.stains[:1], painting.stains[1:, ::-1])))
    (other,) = cut(changed, tmp_path / "other", 9)
    path = saved(tmp_path)
    fields = {}
    for membranes in (True, False):
        labeller = GeneSegNetLabeller(path, None, membranes, 3.0)
        assert labeller.method["membranes"] is membranes and labeller.method["model_sha256"] == labeller.card.sha256
        window = [torch.from_numpy(labeller._predictor.inputs(Tile.read(f), (0, 0, 192, 192)))[None] for f in (folder, other)]
        fields[membranes] = [labeller._predict(w) for w in window]
    assert not torch.equal(*fields[True]) and torch.equal(*fields[False])


def test_published_weights_get_the_location_map(painting, tmp_path):
    torch.save(GeneSegNet(membranes=False).state_dict(), tmp_path / "published")
    labeller = GeneSegNetLabeller(tmp_path / "published", None, True, 3.0)
    (folder,) = cut(painting, tmp_path, 9)
    rna = labeller._predictor.inputs(Tile.read(folder), (0, 0, 192, 192))[-1]
    assert rna.max() == 1 and 0 < rna.mean() < 1
    assert labeller.method["membranes"] is False


def test_painted_tissue_teaches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "CONDITIONS", {f"random stains, {k} beside DAPI": evaluate.Condition(k) for k in (0, 1, 2, 3)})
    monkeypatch.setattr(evaluate, "NAMES", evaluate.NAMES[:1])
    monkeypatch.setattr(evaluate, "LOGIT_THRESHOLDS", (0.0,))
    monkeypatch.setattr(kinds, "CENTRE_THRESHOLDS", (0.05, 0.1))
    recipe = Recipe(steps=1, batch_size=2, side=128, n_tissues=2, tissue_side=160, warmup=1, seed=5)
    pretrain.run(
        out=tmp_path / "out", name="taught", base=str(BASE_MODEL), base_sha256=None, recipe=recipe, pictures_per_family=1, picture_wpx=128, device="cpu",
        network="genesegnet",
    )  # fmt: skip
    _, card = genesegnet.load(tmp_path / "out" / "model.safetensors")
    assert card.parent == "istseg-sim-v2" and card.training["tensors_of_parent"] == 301 and card.training["crops"] == 2
    tried = json.loads((tmp_path / "out" / "heldout.json").read_text())["filter"]
    assert [(t["logit_threshold"], t["centre_threshold"]) for t in tried] == [(0.0, 0.05), (0.0, 0.1)]
    model, go_on, facts = KINDS["genesegnet"].start(str(tmp_path / "out" / "model.safetensors"), None, 0)
    assert go_on.name == "taught" and facts == {}


def test_published_weights_are_no_base(tmp_path):
    torch.save(GeneSegNet(membranes=False).state_dict(), tmp_path / "published")
    with pytest.raises(InputError, match="another gene map"):
        KINDS["genesegnet"].start(str(tmp_path / "published"), None, 0)


def test_the_shipped_weights_are_those_of_the_card():
    models = Path(__file__).parents[2] / "assets" / "models"
    path = models / "genesegnet-sim-v1.safetensors"
    assert sha256(path) in (models / "genesegnet_card.md").read_text()
    _, card = genesegnet.load(path, sha256(path))
    assert card.name == "genesegnet-sim-v1"
