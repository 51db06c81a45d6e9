"""The backbones: size, any shape, repeatable, learning; what is special to each."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from istseg.errors import InputError
from istseg.network import training, weights
from istseg.network.dataset import PatchStore, find_patches
from istseg.network.inference import Predictor, open_device
from istseg.network.loss import loss_sums
from istseg.network.mamba import Scan2D
from istseg.network.model import BACKBONES
from istseg.network.scan import selective_scan
from istseg.network.swin import WINDOW, SwinStage, WindowAttention, Windows
from istseg.network.tokens import PatchExpanding, PatchMerging, StochasticDepth
from training_fixtures import write_patches

PARAMETERS = {"cnn": 6_690_104, "swin": 41_483_175, "mamba": 44_364_030}


@pytest.fixture(scope="module", params=BACKBONES)
def named(request):
    """Name of a backbone and an untrained network with it."""
    return request.param, weights.new(3, request.param)[0]


def images(height, width, stains=3, batch=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(batch, stains, height, width, generator=g), torch.rand(batch, 1, height, width, generator=g)


@torch.inference_mode()
def predict(model, stains, rna):
    return model(stains, rna)


def test_number_of_parameters(named):
    name, model = named
    total = sum(p.numel() for p in model.parameters())
    assert total == PARAMETERS[name]
    if name == "swin":
        assert round(total / 1e6, 1) == 41.5
    if name == "mamba":
        # The paper's 44.2 M is the backbone alone, cut: as its 6.6 M of the CNN.
        assert total - 88_611 == 44_275_419


@pytest.mark.slow
def test_a_full_window_in_reduced_precision(named):
    stains, rna = images(512, 512)
    with torch.autocast("cpu", torch.bfloat16):
        out = predict(named[1], stains, rna)
    assert out.shape == (1, 3, 512, 512) and out.dtype == torch.float32 and torch.isfinite(out).all()


@pytest.mark.parametrize("membranes", [0, 1, 3])
def test_a_window_of_odd_size_with_any_number_of_stains(named, membranes):
    out = predict(named[1], *images(136, 248, 1 + membranes))
    assert out.shape == (1, 3, 136, 248) and torch.isfinite(out).all()


@pytest.mark.parametrize("side", [8, 16, 40])
def test_small_windows(named, side):
    assert predict(named[1], *images(side, side + 8, batch=2)).shape == (2, 3, side, side + 8)


def test_gene_colours_go_with_every_backbone(named):
    model, _ = weights.new(3, named[0], "learned", ["A", "B"])
    genes = torch.zeros(1, 1, 32, 40)
    none = predict(model, images(32, 40)[0], genes)
    genes[0, 0, 16, 20] = 2
    assert none.shape == (1, 3, 32, 40) and not torch.equal(predict(model, images(32, 40)[0], genes), none)


def test_two_forwards_are_equal_and_the_order_of_membranes_does_not_matter(named):
    stains, rna = images(72, 96, 4)
    first = predict(named[1], stains, rna)
    assert torch.equal(first, predict(named[1], stains, rna))
    torch.testing.assert_close(predict(named[1], stains[:, [0, 3, 1, 2]], rna), first, atol=1e-4, rtol=0)
    assert (predict(named[1], stains[:, [1, 0, 2, 3]] * 2, rna) - first).abs().max() > 1e-4


def test_a_sample_does_not_depend_on_its_batch(named):
    stains, rna = images(64, 72, batch=3)
    torch.testing.assert_close(predict(named[1], stains, rna)[1:2], predict(named[1], stains[1:2], rna[1:2]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_window_is_the_same_in_every_batch_of_one_size_bit_for_bit(named, precision):
    """What `blend_windows` needs of a network whose results may depend on the size of the batch."""
    card = weights.new(3, named[0])[1]
    predictor = Predictor(copy.deepcopy(named[1]), card, open_device("cpu"), precision)
    assert predictor.one_by_one == (named[0] == "cnn")
    batch = torch.cat(images(64, 72, 2, batch=3), 1)
    together = predictor.predict(batch)
    assert torch.equal(together[[2, 0, 1]], predictor.predict(batch[[2, 0, 1]]))
    alone = batch.clone()
    alone[:2] = 0
    assert torch.equal(together[2], predictor.predict(alone)[2])


def test_reduced_precision_stays_near_float32(named):
    stains, rna = images(64, 96)
    full = predict(named[1], stains, rna)
    with torch.autocast("cpu", torch.bfloat16):
        low = predict(named[1], stains, rna)
    assert (low - full).abs().mean() < 0.02 * full.std()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    write_patches(folder / "p", 1)
    store = PatchStore(folder / "t")
    store.folder.mkdir()
    for ref in find_patches([folder / "p"]):
        store.add(ref)
    return store


def test_some_steps_lower_the_loss(named, stores):
    model = copy.deepcopy(named[1]).train()
    *inputs, flow, cell, teach = (t[..., 40:80, 40:80] for t in training.collate([stores.example(i, 0) for i in (0, 0)], "working", "cpu"))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    torch.manual_seed(0)
    for _ in range(6):
        sums = loss_sums(model(*inputs), flow, cell, teach)
        loss = (sums.flow + sums.cell) / sums.pixels
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize(("backbone", "freeze"), [("swin", False), ("mamba", True)])
def test_training_repeats_itself_whatever_torch_drew_before(backbone, freeze, stores, tmp_path, monkeypatch):
    """No layer has statistics to keep or to measure, but blocks are dropped at random."""
    monkeypatch.setattr(training, "_save", lambda *_: None)
    recipe = training.Recipe(epochs=1, batch_size=4, crop_wpx=32, freeze_norm=freeze, membrane_dropout=0.0)
    monkeypatch.setattr(training, "_batches", lambda store, recipe, epoch: [[(0, 0), (0, 1)]])
    fitted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model, _ = weights.new(5, backbone)
        fitted.append(training.fit(model, stores, stores, recipe, "working", "cpu", tmp_path / "c.pt").state)
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, fitted[1][k]) for k, v in fitted[0].items())


def test_stochastic_depth_drops_whole_samples_in_training_only():
    drop, x = StochasticDepth(0.25), torch.ones(4000, 2, 2, 3)
    assert torch.equal(drop.eval()(x), x)
    torch.manual_seed(1)
    out = drop.train()(x)
    assert (out == out[:, :1, :1, :1]).all() and out.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert out.mean() == pytest.approx(1, abs=0.03)
    torch.manual_seed(1)
    assert torch.equal(drop(x), out)


def test_merging_and_expanding_keep_the_place():
    x = torch.zeros(1, 5, 6, 4)
    x[0, 4, 2] = torch.tensor([1.0, -2, 3, 0])
    merged = PatchMerging(4)(x)
    assert merged.shape == (1, 3, 3, 8)
    elsewhere = merged.abs().sum(3) > 1e-6
    assert elsewhere.nonzero().tolist() == [[0, 2, 1]]
    expanded = PatchExpanding(4, 2, 2)(x)
    assert expanded.shape == (1, 10, 12, 2)
    assert {(y // 2, x // 2) for _, y, x, _ in (expanded.abs() > 1e-3).nonzero().tolist()} == {(4, 2)}


@pytest.mark.parametrize("size", [(16, 24), (12, 20), (7, 30), (8, 8)])
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_is_that_of_all_pairs_in_one_shifted_window(size, shifted):
    torch.manual_seed(0)
    attention = WindowAttention(12, 2)
    x = torch.randn(2, *size, 12)
    padded = torch.nn.functional.pad(x, (0, 0, 0, -size[1] % WINDOW, 0, -size[0] % WINDOW), value=9.0)
    with torch.inference_mode():
        found = attention(padded, Windows.of(size, shifted, x.device))[:, : size[0], : size[1]]
        q, k, v = attention.qkv(x).flatten(1, 2).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        at = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).flatten(1)
        shift = torch.tensor([WINDOW // 2 if shifted and side > WINDOW else 0 for side in size])[:, None]
        window = torch.div(at - shift, WINDOW, rounding_mode="floor")
        together = (window[:, :, None] == window[:, None]).all(0)
        apart = (at[:, :, None] - at[:, None]).clamp(1 - WINDOW, WINDOW - 1) + WINDOW - 1
        bias = attention.position_bias[apart[0] * (2 * WINDOW - 1) + apart[1]].permute(2, 0, 1)
        weight = (q @ k.mT / 6**0.5 + bias).masked_fill(~together, -torch.inf).softmax(-1)
        expected = attention.project((weight @ v).transpose(1, 2).flatten(2)).view(x.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_shifted_windows_join_neighbours():
    stage = SwinStage(12, 2, [0.0, 0.0]).eval()
    x = torch.randn(1, 16, 16, 12, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[0, 7, 7, :6] += 10
    with torch.inference_mode():
        reached = (stage(x) - stage(changed)).abs().sum(3)[0] > 0
        first = (stage.blocks[0](x, Windows.of((16, 16), False, x.device)) != stage.blocks[0](changed, Windows.of((16, 16), False, x.device))).any(3)[0]
    assert first[:8, :8].all() and not first[8:].any() and not first[:, 8:].any()
    assert reached[8:12, 8:12].all()


def test_the_scan_goes_both_ways_along_rows_and_columns():
    torch.manual_seed(0)
    layer = Scan2D(6).eval()
    x = torch.randn(1, 5, 7, 6)
    with torch.inference_mode():
        inner, gate = layer.split(x).chunk(2, 3)
        inner = torch.nn.functional.silu(layer.conv(inner.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        total = torch.zeros_like(inner)
        rows = [(y, x) for y in range(5) for x in range(7)]
        columns = [(y, x) for x in range(7) for y in range(5)]
        for k, path in enumerate((rows, columns, rows[::-1], columns[::-1])):
            ys, xs = map(list, zip(*path, strict=True))
            u = inner[:, ys, xs][:, None]
            step, b, c = (u @ layer.parameters_of[k]).split((layer.rank, 16, 16), 3)
            step = torch.nn.functional.softplus(step @ layer.step[k] + layer.step_bias[k])
            total[:, ys, xs] += (selective_scan(u, step, -layer.log_decay[k : k + 1].exp(), b, c) + u * layer.through[k])[:, 0]
        expected = layer.join(layer.norm(total) * torch.nn.functional.silu(gate))
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_step_sizes_start_in_their_range():
    layer = Scan2D(32)
    steps = torch.nn.functional.softplus(layer.step_bias)
    assert 0.9e-3 < steps.min() < 3e-3 and 0.05 < steps.max() < 0.11


def test_save_and_load(named, tmp_path):
    name, model = named
    digest = weights.save(tmp_path / "m.safetensors", model, replace(weights.new(3)[1], backbone=name))
    back, card = weights.load(tmp_path / "m.safetensors", digest)
    assert card.backbone == name and type(back.model) is BACKBONES[name] and not back.training
    assert all(torch.equal(v, model.state_dict()[k].half().float() if v.is_floating_point() else v) for k, v in back.state_dict().items())
    other = {"cnn": "swin", "swin": "mamba", "mamba": "cnn"}[name]
    record = json.loads(replace(card, sha256="").to_json())
    for wrong, words in ((other, [f"backbone {other}", "another architecture"]), ("resnet", ["'resnet'", "['cnn', 'mamba', 'swin']"]), (["cnn"], ["['cnn']"])):
        save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "w.safetensors", {weights.CARD_KEY: json.dumps(record | {"backbone": wrong})})
        with pytest.raises(InputError) as caught:
            weights.load(tmp_path / "w.safetensors")
        assert all(word in str(caught.value) for word in words)


def test_a_published_file_is_a_cnn(tmp_path):
    torch.save(weights.new(0)[0].state_dict(), tmp_path / "cnn.pt")
    assert weights.load(tmp_path / "cnn.pt")[1].backbone == "cnn"
    torch.save({k: v[:1] for k, v in weights.new(0, "swin")[0].state_dict().items()}, tmp_path / "swin.pt")
    with pytest.raises(InputError, match="network with the backbone cnn"):
        weights.load(tmp_path / "swin.pt")
