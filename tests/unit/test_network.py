"""The network, its weights, its card, the RNA image."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from istseg.artifacts.files import sha256
from istseg.errors import InputError
from istseg.network import weights
from istseg.network.card import ModelCard
from istseg.network.model import Rna2Seg
from istseg.network.rna_image import FORMS, RnaForm, rna_image
from network_fixtures import BASE_MODEL, ROOT, golden


@pytest.fixture(scope="module")
def published():
    stored = golden("net_state.npz")
    model = Rna2Seg()
    model.load_state_dict({k: torch.tensor(v) for k, v in stored.items()}, strict=True)
    return model.eval(), stored


def test_state_dict_is_the_published_one(published):
    model, stored = published
    assert list(model.state_dict()) == list(stored)
    assert sum(p.numel() for p in model.parameters()) == 6_690_104
    assert sum(p.numel() for p in model.model.AdaptorNet.parameters()) == 88_611


@pytest.mark.parametrize("case", ["k3", "k1", "k5", "rect"])
def test_output_equals_the_published_package(published, case):
    io = golden("net_io_eval.npz")
    stains = torch.tensor(np.concatenate([io[f"{case}_dapi"], io[f"{case}_cellbound"]], 1))
    with torch.inference_mode():
        encoded = published[0].model.AdaptorNet(stains).numpy()
        out = published[0](stains, torch.tensor(io[f"{case}_rna"])).numpy()
    np.testing.assert_allclose(encoded, io[f"{case}_encode"], atol=1e-4)
    np.testing.assert_allclose(out, io[f"{case}_out"], atol=1e-4)


def test_order_of_the_stains_does_not_matter_and_no_membrane_works():
    model, _ = weights.new(3)
    generator = torch.Generator().manual_seed(0)
    stains, rna = torch.rand(2, 3, 64, 72, generator=generator), torch.rand(2, 1, 64, 72, generator=generator)
    with torch.inference_mode():
        a, b = model(stains, rna), model(stains[:, [0, 2, 1]], rna)
        alone, doubled = model(stains[:, :1], rna), model(stains[:, [0, 0, 0]], rna)
        others = model(stains[:, :1] * 2, rna)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, doubled, atol=1e-5, rtol=0)
    assert (alone - others).abs().max() > 1e-4
    assert alone.shape == (2, 3, 64, 72)
    assert alone.dtype == torch.float32


def test_new_is_seeded_and_leaves_the_random_state_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, card = weights.new(1)
    assert torch.equal(before, torch.get_rng_state())
    b, c = weights.new(1)[0].state_dict(), weights.new(2)[0].state_dict()
    assert all(torch.equal(v, b[k]) for k, v in a.state_dict().items())
    assert any(not torch.equal(v, c[k]) for k, v in b.items())
    assert card.training["init_seed"] == 1


@pytest.mark.parametrize("half", [True, False])
def test_save_and_load(tmp_path, half):
    model, card = weights.new(5)
    card = replace(card, name="m", logit_threshold=-0.7, min_flow=0.2, notes=["a"])
    digest = weights.save(tmp_path / "a.safetensors", model, card, half=half)
    assert digest == weights.save(tmp_path / "b.safetensors", model, card, half=half) == sha256(tmp_path / "a.safetensors")
    back, read = weights.load(tmp_path / "a.safetensors", digest.upper())
    assert read == replace(card, sha256=digest)
    assert not back.training
    for key, value in model.state_dict().items():
        expected = value.half().float() if half and value.is_floating_point() else value
        assert torch.equal(back.state_dict()[key], expected), key
    assert list(tmp_path.glob(".*")) == []


def test_a_weight_too_large_for_half_stays_whole(tmp_path):
    model, card = weights.new(5)
    model.model.output[0].running_var[0] = 1e6
    weights.save(tmp_path / "a.safetensors", model, card)
    assert weights.load(tmp_path / "a.safetensors")[0].model.output[0].running_var[0] == 1e6


def test_a_diverged_model_is_not_written(tmp_path):
    model, card = weights.new(5)
    with torch.no_grad():
        model.model.output[2].bias[0] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        weights.save(tmp_path / "a.safetensors", model, card)
    assert list(tmp_path.iterdir()) == []


def test_published_pt_gets_the_compatible_card(tmp_path, published):
    torch.save({k: torch.tensor(v) for k, v in published[1].items()}, tmp_path / "rna2seg.pt")
    model, card = weights.load(tmp_path / "rna2seg.pt")
    assert (card.name, card.rna_form, card.logit_threshold) == ("rna2seg", "published", -0.5)
    assert card.sha256 == sha256(tmp_path / "rna2seg.pt")
    assert torch.equal(model.state_dict()["model.output.2.bias"], published[0].state_dict()["model.output.2.bias"])


def _state() -> dict[str, torch.Tensor]:
    return weights.new(0)[0].state_dict()


def _without(*keys):
    return {k: v for k, v in _state().items() if k not in keys}


class _Code:
    def __reduce__(self):
        return print, ("run",)


BAD_WEIGHTS = {
    "missing": (lambda p: None, ["no such file"]),
    "suffix": (lambda p: p.with_suffix(".ckpt").write_bytes(b"x"), [".safetensors"]),
    "cut": (lambda p: p.write_bytes(BASE_MODEL.read_bytes()[:5000]), ["not a safetensors file", "cut off"]),
    "no card": (lambda p: save_file(_state(), p), ["no model card"]),
    "partial": (lambda p: torch.save(_without("model.output.2.bias"), p.with_suffix(".pt")), ["lacks 1 of the 379", "model.output.2.bias"]),
    "unknown": (lambda p: torch.save({**_state(), "head.w": torch.zeros(2)}, p.with_suffix(".pt")), ["does not know", "head.w"]),
    "shape": (
        lambda p: torch.save({**_state(), "model.output.2.bias": torch.zeros(4)}, p.with_suffix(".pt")),
        ["wrong shape", "model.output.2.bias (4,) instead of (3,)"],
    ),
    "nan": (
        lambda p: torch.save({**_state(), "model.output.2.bias": torch.full((3,), torch.nan)}, p.with_suffix(".pt")),
        ["not finite", "model.output.2.bias"],
    ),
    "not a dict": (lambda p: torch.save(torch.zeros(3), p.with_suffix(".pt")), ["not a state dict"]),
    "code": (lambda p: p.with_suffix(".pt").write_bytes(pickle.dumps({"a": _Code()})), ["never run"]),
    "text": (lambda p: p.with_suffix(".pt").write_text("hello"), ["cannot be read"]),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused_by_name(tmp_path, case, capsys):
    make, words = BAD_WEIGHTS[case]
    make(tmp_path / "m.safetensors")
    path = next(tmp_path.iterdir(), tmp_path / "m.safetensors")
    with pytest.raises(InputError) as caught:
        weights.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "run\n" not in capsys.readouterr().out


def test_all_wrong_keys_are_reported_at_once(tmp_path):
    torch.save({**_without("model.output.2.bias"), "head.w": torch.zeros(2), "model.output.2.weight": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(InputError) as caught:
        weights.load(tmp_path / "m.pt")
    assert len(caught.value.problems) == 3


def test_wrong_checksum(tmp_path):
    with pytest.raises(InputError, match="sha256"):
        weights.load(BASE_MODEL, "0" * 64)


BAD_CARDS = {
    "form": ({"rna_form": "spiral"}, "spiral"),
    "normalisation": ({"normalisation": "zscore"}, "zscore"),
    "pixel": ({"working_um": 25.3}, "25.3"),
    "threshold": ({"logit_threshold": "low"}, "low"),
    "format": ({"format": 99}, "99"),
    "RNA input": ({"rna_input": "smell"}, "smell"),
    "no genes": ({"rna_input": "learned"}, "names no genes"),
    "genes without colours": ({"genes": ["A"]}, "names 1 genes"),
    "genes twice": ({"rna_input": "learned", "genes": ["A", "B", "A"]}, "more than once: A"),
    "genes that are no names": ({"rna_input": "learned", "genes": [1, 2]}, "list of names"),
    "unknown entry": ({"colour": "blue"}, "colour"),
}


@pytest.mark.parametrize("case", BAD_CARDS)
def test_a_card_that_cannot_be_honoured_is_refused(case):
    change, word = BAD_CARDS[case]
    record = json.loads(ModelCard("m").to_json()) | change
    with pytest.raises(InputError, match=word):
        ModelCard.from_json(json.dumps(record), "m.safetensors")
    with pytest.raises(InputError, match="incomplete"):
        ModelCard.from_json(json.dumps({"format": 1}), "m.safetensors")


def test_the_resolution_is_enforced():
    card = ModelCard("m", working_um=0.253)
    card.check_tile(0.2531, "tile")
    card.check_tile(0.253 * 1.019, "tile")
    with pytest.raises(InputError, match="0.12"):
        card.check_tile(0.12, "tile")
    with pytest.raises(InputError, match="working"):
        card.check_tile(0.253 * 1.021, "tile")


def test_shipped_weights_are_those_of_the_manifest():
    manifest = json.loads((ROOT / "assets" / "weights.json").read_text())["weights"]
    shipped = [entry for entry in manifest if entry["shipped"]]
    assert [e["name"] for e in shipped] == ["istseg-sim-v2"]
    for entry in shipped:
        path = ROOT / "assets" / entry["file"]
        assert path.stat().st_size == entry["bytes"]
        _, card = weights.load(path, entry["sha256"])
        assert card.name == entry["name"]
        assert (path.parents[1] / entry["card"]).is_file()


def test_rna_image_equals_the_published_package():
    g = golden("rna_image_background.npz")
    counts = g["rna_raw_count"]
    np.testing.assert_allclose(rna_image(counts, RnaForm(2, 0.5)), g["rna_default_k2_s05_add"], atol=2e-6)
    np.testing.assert_allclose(rna_image(counts, RnaForm(2, 2.0)), g["rna_paper_k2_s2_add"], atol=2e-6)
    np.testing.assert_allclose(rna_image(counts > 0, RnaForm(2, 0.5)), g["rna_k2_s05_noadd"], atol=2e-6)


@pytest.mark.parametrize("form", ["paper", "published"])
def test_working_forms_are_the_full_resolution_ones_resized_by_area(form):
    # 1200 full-resolution pixels become 512: compare on the common block size, where rasterising differs least.
    rng = np.random.default_rng(0)
    n = 600
    y, x = rng.uniform(20, 1180, (2, n))
    full = np.zeros((1200, 1200), np.float32)
    np.add.at(full, (y.astype(int), x.astype(int)), 1)
    work = np.zeros((512, 512), np.float32)
    np.add.at(work, ((y * 512 / 1200).astype(int), (x * 512 / 1200).astype(int)), 1)
    sigma = {"paper": 2.0, "published": 0.5}[form]
    reference = rna_image(full, RnaForm(2, sigma))
    ours = rna_image(work, form)
    assert ours.sum() == pytest.approx(reference.sum() * (512 / 1200) ** 2, rel=0.01)
    blocks = reference.reshape(16, 75, 16, 75).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), ours.reshape(16, 32, 16, 32).mean((1, 3)).ravel())[0, 1] > 0.99


def test_rna_image_of_nothing_and_of_one_transcript():
    assert not rna_image(np.zeros((9, 9), np.uint16), "working").any()
    one = np.zeros((41, 41), np.int32)
    one[20, 20] = 1
    image = rna_image(one, "working")
    assert image.dtype == np.float32
    assert image.sum() == pytest.approx(4, rel=1e-3)
    y, x = np.unravel_index(image.argmax(), image.shape)
    assert (y, x) in {(20, 20), (20, 21), (21, 20), (21, 21)}
    assert set(FORMS) == {"working", "paper", "published"}
