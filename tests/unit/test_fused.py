"""The network rearranged for inference on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from istseg.artifacts.tiles import Tile
from istseg.network import weights
from istseg.network.dynamics import labels_from_field
from istseg.network.fused import FusedRna2Seg, fused
from istseg.network.inference import Predictor, open_device, precision_of
from istseg.network.model import Rna2Seg
from istseg.qc.matching import match_labels, scores
from network_fixtures import BASE_MODEL, cut, golden, paint


@pytest.fixture(scope="module")
def published() -> Rna2Seg:
    model = Rna2Seg()
    model.load_state_dict({k: torch.tensor(v) for k, v in golden("net_state.npz").items()}, strict=True)
    return model.eval()


@pytest.mark.parametrize("case", ["k3", "k1", "k5", "rect"])
def test_output_equals_the_published_package(published, case):
    io = golden("net_io_eval.npz")
    stains = torch.tensor(np.concatenate([io[f"{case}_dapi"], io[f"{case}_cellbound"]], 1))
    out = FusedRna2Seg(published, torch.float32)(stains, torch.tensor(io[f"{case}_rna"]))
    np.testing.assert_allclose(out.numpy(), io[f"{case}_out"], atol=1e-4)


def test_negative_and_zero_scales_of_batch_norm():
    model, _ = weights.new(2)
    generator = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.normal_(0, 1, generator=generator)
            module.weight.data[0] = 0
            module.bias.data.normal_(0, 1, generator=generator)
            module.running_mean.normal_(0, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    stains, rna = torch.rand(1, 2, 48, 64, generator=generator), torch.rand(1, 1, 48, 64, generator=generator)
    with torch.inference_mode():
        expected = model(stains, rna)
    torch.testing.assert_close(FusedRna2Seg(model, torch.float32)(stains, rna), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_gene_colours():
    model, _ = weights.new(1, rna_input="learned", genes=["A", "B"])
    generator = torch.Generator().manual_seed(1)
    stains, genes = torch.rand(2, 2, 32, 40, generator=generator), torch.randint(0, 3, (2, 1, 32, 40), generator=generator).float()
    with torch.inference_mode():
        expected = model(stains, genes)
    torch.testing.assert_close(FusedRna2Seg(model, torch.float32)(stains, genes), expected, atol=1e-4, rtol=0)


def test_a_window_is_the_same_in_every_batch_bit_for_bit():
    model, card = weights.load(BASE_MODEL)
    predictor = Predictor(model, card, open_device("cpu"))
    batch = torch.rand(3, 4, 128, 160, generator=torch.Generator().manual_seed(0))
    together = predictor.predict(batch.clone())
    assert torch.equal(together, torch.cat([predictor.predict(window[None]) for window in batch]))
    assert torch.equal(together[[2, 0]], predictor.predict(batch[[2, 0]]))


@pytest.mark.skipif(precision_of(torch.device("cpu")) == torch.float32, reason="this processor computes in float32 only")
def test_bfloat16_gives_the_cells_of_float32(tmp_path):
    painting = paint(512, 512, membranes=2, seed=11)
    (folder,) = cut(painting, tmp_path, 9, window=512, overlap=128)
    tile = Tile.read(folder)
    model, card = weights.load(BASE_MODEL)
    labels = []
    for precision in (torch.float32, torch.bfloat16):
        predictor = Predictor(model, card, open_device("cpu"), precision)
        field = predictor.predict(torch.from_numpy(predictor.inputs(tile, (0, 0, 512, 512)))[None])[0]
        labels.append(labels_from_field(field, card.logit_threshold, card.min_flow))
    assert labels[0].max() > 100
    assert scores(match_labels(*labels), (0.9,))["ap@0.9"] >= 0.99


def test_other_backbones_are_left_alone():
    model, _ = weights.new(0)
    assert fused(model, torch.float32) is not None
    model.model = torch.nn.Identity()
    assert fused(model, torch.float32) is None
