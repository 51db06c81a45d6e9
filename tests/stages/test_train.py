"""train: from patches to a model and a decision."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.segmentation import expand_labels

from istseg.artifacts.files import sha256
from istseg.artifacts.labels import TileLabels
from istseg.artifacts.patches import Patch
from istseg.errors import DeviceError, InputError
from istseg.network import tally, training, weights
from istseg.network.inference import PRECISIONS, Predictor, precision_of
from istseg.stages import segment, train
from network_fixtures import BASE_MODEL, cut, paint
from training_fixtures import GENES, write_patches

SETTINGS = dict(
    name="tuned", base=str(BASE_MODEL), base_sha256=None, backbone=None, rna_input=None, epochs=3, patience=None, learning_rate=5e-4, batch_size=4,
    membrane_dropout=0.25, validation_fraction=0.1, holdout_fraction=0.25, max_patches=100, crop_wpx=128, device="cpu", precision="auto", seed=0,
)  # fmt: skip


def run(patches, out, **changes):
    train.run(patches=[patches] if isinstance(patches, Path) else patches, out=out, **(SETTINGS | changes))
    return {name: json.loads((out / f"{name}.json").read_text()) for name in ("model_card", "curves", "decision")}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_patches(folder / "patches", 4)
    return folder, run(folder / "patches", folder / "out")


def test_fine_tuning_helps_and_is_accepted(good):
    _, written = good
    decision, curves = written["decision"], written["curves"]
    assert decision["accepted"], decision["reason"]
    assert decision["finetuned"]["ap50"] > decision["base"]["ap50"] or decision["finetuned"]["boundary_iou"] > decision["base"]["boundary_iou"]
    assert min(e["validation_loss"] for e in curves["epochs"]) < curves["validation_loss_before"]
    assert decision["samples"] == curves["samples"] == ["s"] and decision["name"] == curves["name"] == "tuned"
    assert len(decision["holdout_patches"]) == 4 and decision["stand_ins_and_nuclei_known"]


def test_a_shifted_domain_is_learnt_and_accepted(tmp_path):
    """Specks that outshine the nuclei too, which the base has never seen: labels of four fifths of the cells are enough to learn better."""
    write_patches(tmp_path / "patches", 4, granules=2.0)
    decision = run(tmp_path / "patches", tmp_path / "out")["decision"]
    base, tuned = decision["base"], decision["finetuned"]
    assert base["ap50"] < 0.6, base
    assert decision["accepted"] and tuned["ap50"] > 0.9 and tuned["cells_without_nucleus"] < 0.1, decision


def test_the_card_tells_where_the_model_comes_from(good):
    folder, written = good
    card = written["model_card"]
    model, loaded = weights.load(folder / "out" / "model.safetensors", card["sha256"])
    assert loaded.name == "tuned" and loaded.parent_sha256 == sha256(BASE_MODEL) and loaded.rna_form == weights.load(BASE_MODEL)[1].rna_form
    assert loaded.training["patches"] == {"found": 16, "train": 10, "validation": 2, "holdout": 4} and loaded.training["samples"] == {"s": 16}
    assert list(loaded.training["stains"]) == ["s"] and len(loaded.training["stains"]["s"]) >= 1
    assert len(loaded.training["data_sha256"]) == 64 and loaded.training["figures"] == written["decision"]["finetuned"]
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["curves.json", "decision.json", "model.safetensors", "model_card.json"]


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(good, tmp_path):
    folder, _ = good
    run(folder / "patches", tmp_path / "again")
    assert sha256(tmp_path / "again" / "model.safetensors") == sha256(folder / "out" / "model.safetensors")


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL, as a scheduler sends it: nothing can be tidied up."""
    write_patches(tmp_path / "patches", 2)
    changes = {"epochs": 3, "patience": 0, "crop_wpx": 64, "batch_size": 2, "holdout_fraction": 0.5}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(tmp_path / "patches", undisturbed, **changes)
    command = [str(Path(sys.executable).with_name("istseg")), "train", "--patches", str(tmp_path / "patches")]
    for name, value in (SETTINGS | changes).items():
        command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    first = subprocess.Popen([*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and not (killed / "decision.json").exists() and (killed / "checkpoint.pt").exists()
    again = subprocess.run([*command, "--out", str(killed)], check=True, capture_output=True, text=True)
    assert "going on after epoch" in again.stderr
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
    for name in ("model_card.json", "decision.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    weights_of = [next(folder / n for n in ("refused.safetensors", "model.safetensors") if (folder / n).exists()) for folder in (undisturbed, killed)]
    assert sha256(weights_of[0]) == sha256(weights_of[1]) != sha256(BASE_MODEL)


def shifted(tissue):
    """Every cell moved by its radius: what a misregistered teacher would give."""
    return np.roll(tissue.cells, (12, 12), (0, 1))


def scrambled(tissue):
    """Cells that have nothing to do with the picture."""
    rng = np.random.default_rng(4)
    labels = np.zeros_like(tissue.cells)
    for i in range(1, 200):
        y, x = rng.integers(0, tissue.cells.shape[0] - 20, 2)
        labels[y : y + rng.integers(10, 20), x : x + rng.integers(10, 20)] = i
    return labels


def nucleus_sized(tissue):
    """Consistent, and wrong: each cell is its nucleus and a rim."""
    return expand_labels(tissue.nuclei, 2)


@pytest.mark.parametrize("poison", [shifted, scrambled, nucleus_sized])
def test_poisoned_labels_are_refused_and_the_base_is_kept(poison, tmp_path):
    write_patches(tmp_path / "patches", 4, cells=poison)
    written = run(tmp_path / "patches", tmp_path / "out")
    decision = written["decision"]
    assert not decision["accepted"] and "the base is kept" in decision["reason"]
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(BASE_MODEL) == written["model_card"]["sha256"]
    assert weights.load(tmp_path / "out" / "refused.safetensors")[1].parent_sha256 == sha256(BASE_MODEL)
    assert written["model_card"]["decision"]["finetuned"]["curated_cells"] >= 10 and len(written["curves"]["epochs"]) == 3


def displaced(tissue):
    """Every cell 1.3 µm beside its place: its nucleus is still inside."""
    return np.roll(tissue.cells, 5, 1)


def test_what_base_and_labels_forbid_is_not_trained(tmp_path, caplog):
    write_patches(tmp_path / "patches", 4, cells=displaced)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"of an earlier try")
    caplog.set_level("WARNING", "istseg")
    written = run(tmp_path / "patches", tmp_path / "out")
    decision = written["decision"]
    assert caplog.text.count("the base is kept") == decision["reason"].count("the base is kept") == 1
    assert not decision["accepted"] and "beside their nuclei" in decision["reason"] and written["curves"]["epochs"] == []
    assert decision["finetuned"] == {} and decision["base"]["label_offset_um"] == pytest.approx(1.3, abs=0.3) and len(decision["holdout_patches"]) == 4
    assert decision["by_sample"] == {"s": {"base": decision["base"], "finetuned": {}}}
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(BASE_MODEL) == written["model_card"]["sha256"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curves.json", "decision.json", "model.safetensors", "model_card.json"]


def test_from_scratch_is_taken_with_its_figures(tmp_path):
    write_patches(tmp_path / "patches", 2)
    written = run(tmp_path / "patches", tmp_path / "out", base="scratch", epochs=1, crop_wpx=64)
    assert written["decision"]["accepted"] and written["decision"]["base"] == {} and "scratch" in written["decision"]["reason"]
    assert "ap50" in written["decision"]["finetuned"] and written["model_card"]["parent"] == ""


@pytest.mark.parametrize("rna_input", ["coexpression", "learned"])
def test_gene_colours_from_scratch_to_cells_and_on_from_there(rna_input, tmp_path):
    write_patches(tmp_path / "patches", 2)
    written = run(tmp_path / "patches", tmp_path / "out", base="scratch", rna_input=rna_input, epochs=2, crop_wpx=64, batch_size=1)
    path = tmp_path / "out" / "model.safetensors"
    model, card = weights.load(path, written["model_card"]["sha256"])
    table = model.gene_image.table.detach()
    assert (card.rna_input, card.genes) == (rna_input, GENES) and not table[0].any() and len(table.unique(dim=0)) > 3
    if rna_input == "coexpression":
        a, b, c, d = table[1:, 0]
        assert abs(a - b) < 0.2 > abs(c - d) and min(abs(a - c), abs(b - d)) > 0.8, "A and B share cells, C and D others"
    # Genes A and B are there, C and D are not.
    painting = paint(200, 250, seed=3)
    found = []
    for per_side in (9, 1):
        tiles = cut(painting, tmp_path / f"tiles{per_side}", per_side)
        segment.run(
            tiles=tiles, model=path, out=tmp_path / f"cells{per_side}", model_sha256=None, logit_threshold=None, min_flow=None, flow_error=0.9,
            min_cell_area_um2=12.8, flow_steps=60, batch_size=1, device="cpu", precision="auto",
        )  # fmt: skip
        labels = [TileLabels.read(tmp_path / f"cells{per_side}" / t.name) for t in tiles]
        assert {one.method["rna_input"] for one in labels} == {rna_input}
        found.append(sorted(outline for one in labels for outline in one.objects.loc[one.objects["owned"], "geometry"]))
    assert found[0] == found[1] and found[0] and len(tiles) > 1
    write_patches(tmp_path / "more", 2, seed=1)
    tuned = run(tmp_path / "more", tmp_path / "tuned", base=str(path), epochs=1, crop_wpx=64, holdout_fraction=0.5)
    attempt = "model" if tuned["decision"]["accepted"] else "refused"
    again, kept = weights.load(tmp_path / "tuned" / f"{attempt}.safetensors")
    assert (kept.rna_input, kept.genes) == (rna_input, GENES)
    assert np.array_equal(again.gene_image.table.detach(), table) == (rna_input == "coexpression")


@pytest.mark.parametrize("rna_input", ["coexpression", "learned"])
def test_a_base_goes_on_with_another_rna_input(rna_input, tmp_path):
    write_patches(tmp_path / "patches", 2)
    written = run(tmp_path / "patches", tmp_path / "out", rna_input=rna_input, epochs=1, crop_wpx=64, holdout_fraction=0.5)
    assert written["decision"]["finetuned"], "it was trained"
    accepted = written["decision"]["accepted"]
    model, card = weights.load(tmp_path / "out" / ("model.safetensors" if accepted else "refused.safetensors"))
    base, base_card = weights.load(BASE_MODEL)
    assert (card.rna_input, card.genes, card.parent, card.parent_sha256) == (rna_input, GENES, base_card.name, base_card.sha256)
    assert len(model.gene_image.table.detach().unique(dim=0)) > 3
    # The statistics are frozen in a fine-tuning, and show whose layers these are.
    name = "model.upsample.up.res_up_0.conv.conv_0.0.running_mean"
    assert torch.allclose(model.state_dict()[name], base.state_dict()[name], atol=1e-3)
    if not accepted:
        assert weights.load(tmp_path / "out" / "model.safetensors")[1].rna_input == "density", "the base is kept as it was"


def test_rna_input_and_panel_of_a_base(tmp_path, caplog):
    model, card = weights.new(0, rna_input="learned", genes=[*GENES, "E"])
    weights.save(tmp_path / "learned.safetensors", model, card)
    write_patches(tmp_path / "patches", 2)
    run(tmp_path / "patches", tmp_path / "out", base=str(tmp_path / "learned.safetensors"), epochs=1, crop_wpx=64)
    assert "4 of the 5 genes of the model scratch are in the sample" in caplog.text and "100.0%" in caplog.text
    weights.save(tmp_path / "other.safetensors", model, dataclasses.replace(card, genes=["A", *"vwxy"]))
    with pytest.raises(InputError, match="1 of the 5 genes"):
        run(tmp_path / "patches", tmp_path / "out2", base=str(tmp_path / "other.safetensors"))


def test_the_panel_of_every_sample_is_checked(tmp_path):
    model, card = weights.new(0, rna_input="learned", genes=GENES)
    weights.save(tmp_path / "learned.safetensors", model, card)
    write_patches(tmp_path / "a", 3, "a")
    write_patches(tmp_path / "b", 2, "b")
    for path in (tmp_path / "b").iterdir():
        dataclasses.replace(Patch.read(path), gene_names=list("vwxy")).write(path)
    with pytest.raises(InputError, match="patches of b: 0 of the 4 genes") as error:
        run([tmp_path / "a", tmp_path / "b"], tmp_path / "out", base=str(tmp_path / "learned.safetensors"))
    assert len(error.value.problems) == 1 and not (tmp_path / "out").exists()


def test_what_earlier_tries_left_is_no_patch_and_no_result(tmp_path):
    write_patches(tmp_path / "patches", 2)
    out = tmp_path / "patches" / "model"
    (out / ".targets" / "train").mkdir(parents=True)
    np.savez(out / ".targets" / "train" / "00000_target0.npz", flow=np.zeros(3))
    (out / "refused.safetensors").write_bytes(b"of an earlier try")
    run(tmp_path / "patches", out, base="scratch", epochs=1, crop_wpx=64)
    assert sorted(p.name for p in out.iterdir()) == ["curves.json", "decision.json", "model.safetensors", "model_card.json"]


def test_patches_without_a_gene_map_train_the_density_only(tmp_path):
    write_patches(tmp_path / "patches", 2)
    old = sorted((tmp_path / "patches").iterdir())
    for path in old[:2]:
        dataclasses.replace(Patch.read(path), genes=None, gene_names=[]).write(path)
    with pytest.raises(InputError, match="1 others have no gene map") as error:
        run(tmp_path / "patches", tmp_path / "out", base="scratch", rna_input="coexpression")
    assert str(old[0]) in str(error.value) and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="1 others have no gene map"):
        run(tmp_path / "patches", tmp_path / "out", rna_input="coexpression")
    run(tmp_path / "patches", tmp_path / "out", base="scratch", epochs=1, crop_wpx=64)


@pytest.mark.parametrize("backbone", ["swin", "mamba"])
def test_another_backbone_from_scratch_segments(backbone, tmp_path):
    write_patches(tmp_path / "patches", 2)
    written = run(tmp_path / "patches", tmp_path / "out", base="scratch", backbone=backbone, epochs=1, batch_size=2, crop_wpx=64)
    assert written["decision"]["accepted"] and written["model_card"]["backbone"] == backbone
    tiles = cut(paint(90, 100), tmp_path / "tiles", 9, window=96, overlap=32)
    segment.run(
        tiles=tiles, out=tmp_path / "cells", model=tmp_path / "out" / "model.safetensors", model_sha256=written["model_card"]["sha256"],
        logit_threshold=-9.0, min_flow=0.0, flow_error=0.0, min_cell_area_um2=0.0, flow_steps=60, batch_size=2, device="cpu", precision="auto",
    )  # fmt: skip
    found = TileLabels.read(tmp_path / "cells" / tiles[0].name)
    assert found.layers["cells"].shape == (90, 100) and len(found.objects) > 0


def test_a_base_keeps_its_backbone(tmp_path):
    write_patches(tmp_path / "patches", 2)
    with pytest.raises(InputError, match="its backbone is cnn, not swin as asked.*leave --backbone out"):
        run(tmp_path / "patches", tmp_path / "out", backbone="swin")
    assert not (tmp_path / "out").exists()
    written = run(tmp_path / "patches", tmp_path / "out", backbone="cnn", epochs=1, crop_wpx=64)
    assert written["model_card"]["backbone"] == "cnn"


def test_a_checkpoint_of_another_backbone_is_not_used(tmp_path, monkeypatch, caplog):
    write_patches(tmp_path / "patches", 2)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train.weights, "save", die)
        run(tmp_path / "patches", tmp_path / "out", base="scratch", epochs=1, crop_wpx=64)
    assert (tmp_path / "out" / "checkpoint.pt").exists()
    written = run(tmp_path / "patches", tmp_path / "out", base="scratch", backbone="swin", epochs=1, crop_wpx=64)
    assert "another training" in caplog.text and written["model_card"]["backbone"] == "swin"


def test_a_cohort_of_two_samples(tmp_path):
    write_patches(tmp_path / "a", 2, "a")
    write_patches(tmp_path / "b", 2, "b", seed=1)
    written = run([tmp_path / "a", tmp_path / "b"], tmp_path / "out", epochs=1, max_patches=6, crop_wpx=64)
    by_sample = written["decision"]["by_sample"]
    judged = {place.split()[0] for place in written["decision"]["holdout_patches"]}
    assert by_sample.keys() == judged
    for side in ("base", "finetuned"):
        assert sum(figures[side]["curated_cells"] for figures in by_sample.values()) == written["decision"][side]["curated_cells"]
    assert written["decision"]["samples"] == ["a", "b"] and written["model_card"]["attempt"]["samples"] == {"a": 3, "b": 3}


def test_published_weights_as_base_that_is_kept(tmp_path):
    """A `.pt` base has no card inside: the result is written in our format."""
    import torch

    model, _ = weights.new(3)
    torch.save(model.state_dict(), tmp_path / "published.pt")
    write_patches(tmp_path / "patches", 2)
    written = run(tmp_path / "patches", tmp_path / "out", base=str(tmp_path / "published.pt"), epochs=1, learning_rate=1e-6, crop_wpx=64)
    assert not written["decision"]["accepted"]
    kept, card = weights.load(tmp_path / "out" / "model.safetensors", written["model_card"]["sha256"])
    assert card.rna_form == "published" and all(torch.equal(v, model.state_dict()[k]) for k, v in kept.state_dict().items())


def test_all_problems_at_once(tmp_path):
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "broken.npz").write_bytes(b"no")
    with pytest.raises(InputError) as error:
        run(tmp_path / "patches", tmp_path / "out", base=str(tmp_path / "absent.safetensors"))
    assert len(error.value.problems) == 2
    assert not (tmp_path / "out").exists()


def test_too_few_patches_keep_the_base(tmp_path):
    write_patches(tmp_path / "few", 1)
    written = run(tmp_path / "few", tmp_path / "out")
    assert not written["decision"]["accepted"] and "at least 4 are needed" in written["decision"]["reason"]
    assert written["decision"]["reason"].startswith("the base is kept: only 1 ")
    assert written["curves"]["epochs"] == []
    assert weights.load(tmp_path / "out" / "model.safetensors")[1].sha256 == written["model_card"]["sha256"]


def test_wrong_input_is_refused(tmp_path):
    write_patches(tmp_path / "few", 1)
    with pytest.raises(InputError, match="at least 4 are needed"):
        run(tmp_path / "few", tmp_path / "out", base="scratch")
    write_patches(tmp_path / "patches", 2)
    with pytest.raises(InputError, match="sha256"):
        run(tmp_path / "patches", tmp_path / "out", base_sha256="0" * 64)
    with pytest.raises(DeviceError, match="unknown"):
        run(tmp_path / "patches", tmp_path / "out", device="tpu")


def test_a_patch_of_another_resolution_is_refused(tmp_path):
    write_patches(tmp_path / "patches", 2)
    path = next((tmp_path / "patches").iterdir())
    patch = Patch.read(path)
    patch.working_um = 0.5
    patch.write(path)
    with pytest.raises(InputError, match="0.5 µm"):
        run(tmp_path / "patches", tmp_path / "out")


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_precision_reaches_training_and_gate(tmp_path, monkeypatch, precision):
    write_patches(tmp_path / "patches", 4)
    seen = []

    class Noted(Predictor):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.append(self.precision)

    monkeypatch.setattr(tally, "Predictor", Noted)
    steps = []
    autocast = training.autocast

    def noted_autocast(device):
        steps.append(precision_of(torch.device(device)))
        return autocast(device)

    monkeypatch.setattr(training, "autocast", noted_autocast)
    written = run(tmp_path / "patches", tmp_path / "out", epochs=1, crop_wpx=64, holdout_fraction=0.5, precision=precision)
    wanted = PRECISIONS[precision]
    assert set(seen) == set(steps) == {wanted} and len(seen) == 2
    assert written["model_card"]["attempt"]["precision"] == str(wanted).removeprefix("torch.")
    with pytest.raises(InputError, match="--precision fp8: must be one of auto, bf16, float32"):
        run(tmp_path / "patches", tmp_path / "out", precision="fp8")
