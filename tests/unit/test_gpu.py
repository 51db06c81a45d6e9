"""What runs on a GPU only, beside the same on the CPU. Skipped where torch sees no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.measure import label as connected

from istseg.artifacts.labels import TileLabels
from istseg.artifacts.tiles import Tile
from istseg.network import kernels, weights
from istseg.network.dataset import PatchStore, find_patches
from istseg.network.dynamics import labels_from_field, tidy
from istseg.network.flows import flow_targets
from istseg.network.inference import Predictor, open_device
from istseg.network.loading import DeviceTile, load
from istseg.network.training import Recipe, fit
from istseg.qc.matching import match_labels, scores
from istseg.stages import segment
from network_fixtures import cut, paint
from training_fixtures import write_patches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

MODEL = Path(__file__).resolve().parents[2] / "assets" / "models" / "istseg-sim-v2.safetensors"


@pytest.fixture(scope="module")
def device() -> torch.device:
    return open_device("cuda")


@pytest.fixture(scope="module")
def tissue():
    """Labels (int32) of drawn tissue, painted stains and RNA image, on the CPU."""
    from istseg.pretrain.lessons import make_lesson
    from istseg.pretrain.randomness import Draw
    from istseg.pretrain.tissue import make_tissues

    draw = Draw(5, torch.device("cpu"))
    tissues = make_tissues(draw, 2, 512)
    lesson = make_lesson(draw, tissues, 4, 3, 384)
    return tissues.labels.int(), torch.cat((lesson.stains, lesson.rna), 1)


def channels_last(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zoom", [1, 2])
@pytest.mark.parametrize("per_sample", [False, True])
def test_activation_is_torchs(device, dtype, zoom, per_sample):
    x = channels_last(3, 40, 10, 14, dtype=dtype, device=device)
    sign = torch.where(torch.rand(40, device=device) < 0.5, -1.0, 1.0)
    shift = torch.randn(3, 40, device=device) if per_sample else torch.randn(40, device=device)
    wanted = torch.relu(x.float() * sign[:, None, None] + (shift[..., None, None] if per_sample else shift[None, :, None, None])).to(dtype)
    wanted = wanted.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    assert torch.equal(kernels.activate(x, sign, shift, zoom), wanted)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_sum_is_torchs(device, half, relu):
    x = channels_last(2, 24, 12, 8, dtype=torch.bfloat16, device=device)
    other = channels_last(2, 24, *((6, 4) if half else (12, 8)), dtype=torch.bfloat16, device=device)
    sign, shift = torch.where(torch.rand(24, device=device) < 0.5, -1.0, 1.0), torch.randn(2, 24, device=device)
    large = other.repeat_interleave(2, 2).repeat_interleave(2, 3) if half else other
    wanted = x.float() + large.float() * sign[:, None, None] + shift[..., None, None]
    wanted = (torch.relu(wanted) if relu else wanted).bfloat16()
    assert torch.equal(kernels.add(x.clone(memory_format=torch.preserve_format), other, sign, shift, relu), wanted)


def test_components_are_those_of_skimage(device):
    image = torch.randint(1, 4, (211, 307), dtype=torch.int32)
    image[:, 100:200] = 1
    first = kernels.components(image.to(device)).cpu().numpy()
    wanted = connected(image.numpy(), background=0, connectivity=1)
    pairs = np.unique(np.stack((first.ravel(), wanted.ravel())), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    assert all(np.flatnonzero(first.ravel() == root)[0] == root for root in pairs[0, :50])


def test_flow_targets_have_the_bits_of_the_cpu(device, tissue):
    labels = tissue[0]
    flow, heat = flow_targets(labels)
    on_gpu, heat_on_gpu = flow_targets(labels.to(device))
    assert torch.equal(heat, heat_on_gpu.cpu())
    assert float((flow - on_gpu.cpu()).abs().max()) < 1e-5


def test_tidy_is_that_of_the_cpu(device):
    labels = torch.randint(0, 4, (300, 200), dtype=torch.int32)
    assert torch.equal(tidy(labels, 3), tidy(labels.to(device), 3).cpu())


def test_cells_of_a_field_are_those_of_the_cpu(device, tissue):
    labels = tissue[0][0]
    flow, _ = flow_targets(labels[None])
    field = torch.cat((flow[0], torch.where(labels > 0, 4.0, -4.0)[None]))
    field[:2] += 0.3 * torch.randn(field[:2].shape, generator=torch.Generator().manual_seed(1))
    on_cpu, on_gpu = (labels_from_field(field, min_flow=0.2, device=place) for place in ("cpu", device))
    assert on_cpu.max() > 50
    assert scores(match_labels(on_cpu, on_gpu), (0.95,))["ap@0.95"] > 0.99


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_rearranged_network_is_near_the_plain_one(device, tissue, precision):
    batch = tissue[1]
    model, card = weights.load(MODEL)
    exact = Predictor(model, card, device, torch.float32)
    rearranged = Predictor(model, card, device, precision)
    assert (exact.method["network"], rearranged.method["network"]) == ("plain", "fused")
    wanted, found = exact.predict(batch), rearranged.predict(batch)
    # bfloat16 has 8 bits: a logit of 10 is known to 0.04.
    assert float((found - wanted).abs().mean()) < (0.03 if precision == torch.bfloat16 else 0.003)
    assert float((found[:, :2] - wanted[:, :2]).abs().mean()) < (0.006 if precision == torch.bfloat16 else 0.0006)
    assert torch.equal(found, rearranged.predict(batch))
    turned = rearranged.predict(torch.cat((batch[:, :1], batch[:, 1:-1].flip(1), batch[:, -1:]), 1))
    assert torch.allclose(turned, found, atol=1e-2)


def test_bright_windows_are_computed_in_float32(device, tissue, caplog):
    model, card = weights.load(MODEL)
    exact, half = Predictor(model, card, device, torch.float32), Predictor(model, card, device)
    assert half.method["precision"] == "float16"
    batch = tissue[1].clone()
    batch[0, :-1] *= 30 / batch[0, :-1].max()
    batch[1, :-1] *= 500 / batch[1, :-1].max()
    with caplog.at_level("INFO", "istseg"):
        found, wanted = half.predict(batch), exact.predict(batch)
    assert "1 windows are too bright for float16" in caplog.text
    assert torch.equal(found[1], wanted[1])
    assert not torch.equal(found[0], wanted[0])
    assert float((found[0] - wanted[0]).abs().mean() / wanted[0].abs().mean()) < 0.01


@pytest.mark.parametrize("backbone", ["swin", "mamba"])
def test_other_backbones_predict_and_learn(device, tissue, backbone):
    """Near the CPU in float32; a training step lowers the loss."""
    from istseg.network.training import backward

    model, card = weights.new(3, backbone=backbone)
    batch = tissue[1][:2, :, :256, :256].contiguous()
    on_cpu = Predictor(model, card, torch.device("cpu"), torch.float32).predict(batch)
    on_gpu = Predictor(model, card, device, torch.float32).predict(batch).cpu()
    assert float((on_cpu - on_gpu).abs().max()) < 1e-2
    cell = tissue[0][:2, :256, :256] > 0
    example = tuple(t.to(device) for t in (batch[:, :-1], batch[:, -1:], torch.zeros(2, 2, 256, 256), cell, torch.ones_like(cell)))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    model.train()
    for _ in range(6):
        losses.append(float(backward(model, example, "cuda").loss))
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0]


def test_windows_cut_on_the_gpu_are_those_of_the_cpu(device, tmp_path):
    painting = paint(430, 500, membranes=3, seed=1)
    painting.stains[1] += 60000
    model, card = weights.load(MODEL)
    predictor = Predictor(model, card, torch.device("cpu"), torch.float32)
    for folder in cut(painting, tmp_path, 2):
        tile = Tile.read(folder)
        boxes = [tile.window_grid.window_box(*at) for at in (*tile.windows, *tile.ring_windows)]
        wanted = np.stack([predictor.inputs(tile, box) for box in boxes])
        found = DeviceTile(load(tile, card, pinned=True), card, device).windows(boxes)
        assert found.is_cuda
        assert np.array_equal(found.cpu()[:, :-1], wanted[:, :-1]), "the stains, bit for bit"
        np.testing.assert_allclose(found.cpu()[:, -1], wanted[:, -1], rtol=1e-5, atol=1e-6 * wanted[:, -1].max())


@pytest.mark.parametrize("cpus", [1, 4])
def test_the_stage_gives_the_cells_of_the_cpu_and_again_the_same(device, tmp_path, monkeypatch, cpus):
    """With files written by a thread and by processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(cpus))
    tiles = cut(paint(300, 700, membranes=2, seed=4), tmp_path / "tiles", 2)
    assert len(tiles) > 2
    filters = {"logit_threshold": None, "min_flow": None, "flow_error": 0.9, "min_cell_area_um2": 12.8, "flow_steps": 60}
    found = {}
    for name, place, precision in (("cpu", "cpu", "float32"), ("first", "cuda", "auto"), ("second", "cuda", "auto")):
        out = tmp_path / name
        segment.run(tiles=tiles, model=MODEL, out=out, model_sha256=None, batch_size=4, device=place, precision=precision, **filters)
        found[name] = [TileLabels.read(out / tile.name) for tile in tiles]
    for on_cpu, first, second in zip(*found.values(), strict=True):
        assert on_cpu.layers["cells"].max() > 10
        assert scores(match_labels(on_cpu.layers["cells"], first.layers["cells"]), (0.9,))["ap@0.9"] > 0.95
        assert np.array_equal(first.layers["cells"], second.layers["cells"])
        assert first.objects["geometry"].equals(second.objects["geometry"])
        assert first.method["device"] == "cuda"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_learns_on_the_gpu(device, tmp_path, frozen):
    write_patches(tmp_path / "p", 2)
    refs = find_patches([tmp_path / "p"])
    train, validation = PatchStore(tmp_path / "t", "cuda"), PatchStore(tmp_path / "v", "cuda")
    for store, some in ((train, refs[:2]), (validation, refs[3:])):
        store.folder.mkdir()
        for ref in some:
            store.add(ref)
    recipe = Recipe(epochs=4, batch_size=2, crop_wpx=64, seed=1, freeze_norm=frozen, learning_rate=3e-4 if frozen else 1e-3)
    model, _ = weights.load(MODEL) if frozen else weights.new(5)
    fitted = fit(model, train, validation, recipe, "working", "cuda", tmp_path / "c.pt")
    assert min(epoch["validation_loss"] for epoch in fitted.epochs) < fitted.start["validation_loss"]
