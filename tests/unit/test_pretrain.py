"""Painted tissue and the training of the base model on it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from istseg.errors import InputError
from istseg.network import rna_image as numpy_rna
from istseg.network import weights
from istseg.network.flows import flow_targets
from istseg.network.loss import loss_sums
from istseg.pretrain import evaluate
from istseg.pretrain.fit import Recipe, fit
from istseg.pretrain.kinds import LOGIT_THRESHOLDS, MIN_FLOWS
from istseg.pretrain.lessons import Crops, crop, make_lesson, rna_image, seen
from istseg.pretrain.paint import CYTOPLASM, NEARLY_EMPTY, RING, Controls, Scene, paint
from istseg.pretrain.randomness import Draw, blur
from istseg.pretrain.tissue import FLOW_STORED, MAX_CELLS, NAMES, make_tissues
from istseg.stages import pretrain
from network_fixtures import BASE_MODEL

CPU = torch.device("cpu")
TINY = Recipe(steps=4, batch_size=2, side=128, n_tissues=2, tissue_side=160, learning_rate=1e-3, warmup=1, seed=5)


@pytest.fixture(scope="module")
def tissues():
    return make_tissues(Draw(3), len(NAMES), 192, torch.arange(len(NAMES)))


@pytest.fixture(scope="module")
def scene(tissues):
    return Scene(tissues.labels.long(), tissues.nuclei > 0)


def test_same_seed_same_tissue():
    first, again, other = (make_tissues(Draw(seed), 2, 96) for seed in (3, 3, 4))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("labels", "nuclei", "flow"))
    assert not torch.equal(first.labels, other.labels)


def test_every_family_has_whole_cells_with_their_nuclei(tissues):
    from skimage.measure import label

    for i in range(len(NAMES)):
        labels = tissues.labels[i].numpy()
        cells = np.unique(labels[labels > 0])
        assert len(cells) >= 5, NAMES[i]
        assert label(labels, background=0, connectivity=2).max() == len(cells), "a cell in several parts"
        assert not (tissues.nuclei[i].numpy()[labels == 0]).any()
    with_nucleus = torch.unique(tissues.labels[tissues.nuclei > 0])
    assert len(with_nucleus) > 0.6 * len(torch.unique(tissues.labels[tissues.labels > 0]))


def test_families_differ_as_they_should(tissues):
    def area(family: str) -> float:
        labels = tissues.labels[NAMES.index(family)]
        sizes = np.bincount(labels.numpy().ravel())[1:]
        return float(np.percentile(sizes[sizes > 0], 75))

    assert area("hepatocyte") > 2 * area("lymphoid")


def test_stored_flow_is_the_flow_of_the_labels(tissues):
    flow, _ = flow_targets(tissues.labels[:2].long())
    inside = tissues.labels[:2] > 0
    difference = (tissues.flow[:2].float() / FLOW_STORED - flow).abs().amax(1)[inside]
    # Tiny pieces were cut off after the flow was made: their cells' flow differs a little.
    assert torch.quantile(difference, 0.95) < 0.02


@pytest.mark.parametrize("membranes", [0, 1, 5])
def test_pictures_are_normalised_and_repeatable(scene, membranes):
    stains, counts = paint(Draw(7), scene, membranes)
    again, counts_again = paint(Draw(7), scene, membranes)
    assert stains.shape == (len(NAMES), 1 + membranes, 192, 192) and counts.shape == (len(NAMES), 192, 192)
    assert torch.equal(stains, again) and torch.equal(counts, counts_again)
    assert torch.isfinite(stains).all()
    low, high = torch.quantile(stains[:, 0].flatten(1), torch.tensor([0.01, 0.99]), dim=1)
    assert low.abs().max() < 0.1 and (high - 1).abs().max() < 0.1


def test_nuclei_are_brighter_than_the_rest(scene):
    stains, _ = paint(Draw(8), scene, 0)
    inside = scene.nuclei
    for i in range(len(NAMES)):
        assert stains[i, 0][inside[i]].mean() > stains[i, 0][~inside[i]].mean() + 0.15


def test_transcripts_lie_in_cells_at_the_density_asked_for(scene):
    _, counts = paint(Draw(9), scene, 0, Controls(transcripts_per_um2=1.0))
    # The middle picture: now and then one has cells that differ manyfold.
    per_um2 = torch.stack([image[labels > 0].mean() for image, labels in zip(counts, scene.labels, strict=True)]).median() / 0.253**2
    assert 0.5 < per_um2 < 2.5
    assert counts[scene.labels > 0].mean() > 1.5 * counts[scene.labels == 0].mean()


def test_missing_contours_are_dark_and_others_are_not(scene):
    ring = Controls(clean=True, kinds=(RING,), transcripts_per_um2=1.0)
    chosen = Draw(1).chance(0.5, len(NAMES), MAX_CELLS + 1)
    start = torch.zeros(len(NAMES), MAX_CELLS + 1)
    whole, _ = paint(Draw(2), scene, 1, ring)
    broken, _ = paint(Draw(2), scene, 1, replace(ring, gone=(chosen.float(), start)))
    rim = (torch.nn.functional.max_pool2d(scene.labels.float()[:, None], 3, 1, 1)[:, 0] != scene.labels) & (scene.labels > 0)
    hit = scene.spread(chosen.float()) > 0
    loss = (whole - broken)[:, 1]
    neighbour = rim & ~hit & (torch.nn.functional.max_pool2d((rim & hit).float()[:, None], 3, 1, 1)[:, 0] > 0)
    assert loss[neighbour].mean() > 0.5 * loss[rim & hit].mean(), "the neighbour's side of the line is still there"
    assert loss[rim & hit].mean() > 0.1
    # Of the untouched the middle one: a few lie within the blur of a missing contour.
    assert loss[rim & hit].mean() > 3 * loss[rim & ~hit & ~neighbour].median()


def test_crops_carry_the_flow_of_their_cells(tissues):
    crops = crop(Draw(11), tissues, 12, 96)
    assert crops.labels.shape == (12, 96, 96) and crops.flow.shape == (12, 2, 96, 96)
    flow, _ = flow_targets(crops.labels)
    border = torch.unique(torch.cat([crops.labels[:, 0], crops.labels[:, -1], crops.labels[:, :, 0], crops.labels[:, :, -1]], 1))
    inner = (crops.labels > 0) & ~torch.isin(crops.labels, border)
    cosine = (flow * crops.flow).sum(1)[inner]
    # Turned and mirrored: a wrong sign would give a mean of about 0.
    assert inner.sum() > 1000 and cosine.mean() > 0.93


def test_rna_image_is_that_of_the_pipeline():
    counts = torch.poisson(torch.full((2, 64, 64), 0.2), generator=torch.Generator().manual_seed(0))
    for form in ("working", "paper"):
        here = rna_image(counts, form)
        there = np.stack([numpy_rna.rna_image(c.numpy(), form) for c in counts])
        assert np.abs(here[:, 0].numpy() - there).max() < 1e-5, form


def test_what_nothing_shows_is_no_target():
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[0, 8:24, 8:24], labels[0, 40:56, 8:24], labels[0, 8:24, 40:56] = 1, 2, 3
    nuclei = torch.zeros(1, 64, 64, dtype=torch.bool)
    nuclei[0, 12:20, 12:20] = True
    stain = torch.zeros(1, 2, 64, 64)
    stain[0, 0, 12:20, 12:20] = 1
    stain[0, 1, 8:24, 40:56] = 0.5
    shown = seen(Crops(labels, nuclei, torch.empty(0)), stain)
    assert set(torch.unique(labels[shown]).tolist()) == {1, 3}
    without_nucleus_stain = seen(Crops(labels, nuclei, torch.empty(0)), torch.cat((0 * stain[:, :1], stain[:, 1:]), 1))
    assert set(torch.unique(labels[without_nucleus_stain]).tolist()) == {3}


def test_lessons_have_targets_of_seen_cells_only(tissues):
    lesson = make_lesson(Draw(13), tissues, 6, 2, 128)
    assert lesson.stains.shape == (6, 3, 128, 128) and lesson.rna.shape == (6, 1, 128, 128)
    assert (lesson.maps.square().sum(1)[~lesson.cell] == 0).all()
    length = lesson.maps.square().sum(1).sqrt()[lesson.cell]
    assert length.median() > 0.95
    assert [len(part.cell) for part in lesson.split(4)] == [4, 2]


def test_blur_keeps_the_sum_and_has_the_width_asked_for():
    image = torch.zeros(1, 2, 65, 65)
    image[..., 32, 32] = 1
    out = blur(image, torch.tensor([[1.0, 3.0]]))
    assert torch.allclose(out.sum((2, 3)), torch.ones(1, 2), atol=1e-4)
    place = torch.arange(65) - 32.0
    for channel, sigma in enumerate((1.0, 3.0)):
        assert abs(float((out[0, channel].sum(0) * place**2).sum()) ** 0.5 - sigma) < 0.15


def test_training_learns_and_repeats(tissues):
    recipe = replace(TINY, steps=12, learning_rate=0.1, freeze_norm=True)
    lesson = make_lesson(Draw(21), tissues, 4, 1, 128)

    def loss(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(loss_sums(model(lesson.stains, lesson.rna), lesson.maps, lesson.cell, lesson.teach).loss)

    def forgetful() -> torch.nn.Module:
        """A trained network without its last layer, which alone learns: a few steps must bring much of it back."""
        model, _ = weights.load(BASE_MODEL)
        model.requires_grad_(False)
        torch.nn.init.zeros_(model.model.output[2].weight).requires_grad_(True)
        return model

    first, again = (fit(forgetful(), recipe, CPU).model for _ in range(2))
    assert loss(first) < 0.8 * loss(forgetful())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_frozen_statistics_stay(tmp_path):
    model, _ = weights.new(1)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}
    after = fit(model, replace(TINY, freeze_norm=True), CPU).model.state_dict()
    assert before and all(torch.equal(v, after[k]) for k, v in before.items())


def test_perfect_and_wrong_predictions_get_their_figures(tissues):
    condition = evaluate.Condition(1, Controls(clean=True, kinds=(CYTOPLASM,), transcripts_per_um2=1.0))
    picture = next(evaluate.pictures(tissues, condition, "working", 1, CPU))
    perfect = evaluate.figures([evaluate.tally(picture, picture.truth)])
    assert perfect["ap@0.5"] == perfect["ap@0.75"] == perfect["found@0.5"] == 1 and perfect["false@0.5"] == 0 and perfect["cells"] > 5
    nothing = evaluate.figures([evaluate.tally(picture, np.zeros_like(picture.truth))])
    assert nothing["ap@0.5"] == 0 and nothing["found@0.5"] == 0
    one = np.zeros_like(picture.truth)
    one[:20, :20] = 1
    assert evaluate.figures([evaluate.tally(picture, one)])["false@0.5"] == 1


def test_cells_that_cannot_be_seen_are_no_errors(tissues):
    condition = evaluate.Condition(1, Controls(clean=True, kinds=(NEARLY_EMPTY,), transcripts_per_um2=1.0))
    found = [p for p in evaluate.pictures(tissues, condition, "working", 1, CPU) if p.unseen.any()]
    assert found, "every tissue has all its cells in sight"
    picture = found[0]
    labels = tissues.labels[[i for i, p in enumerate(evaluate.pictures(tissues, condition, "working", 1, CPU)) if p.unseen.any()][0]].numpy()
    everything = evaluate.figures([evaluate.tally(picture, labels.astype(np.int32))])
    assert everything["false@0.5"] == 0 and everything["ap@0.5"] == 1


def test_thinned_rna_keeps_its_share(tissues):
    full, half = (
        next(evaluate.pictures(tissues, evaluate.Condition(0, Controls(clean=True, transcripts_per_um2=4.0), rna_kept=kept), "working", 1, CPU))
        for kept in (1.0, 0.5)
    )
    assert torch.equal(full.inputs[:, 0], half.inputs[:, 0])
    assert 0.4 < float(half.inputs[:, 1].mean() / full.inputs[:, 1].mean()) < 0.75


def test_stage_writes_model_card_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "CONDITIONS", {f"random stains, {k} beside DAPI": evaluate.Condition(k) for k in (0, 1, 2, 3)})
    base, card = weights.load(BASE_MODEL)
    sha = weights.save(tmp_path / "base.safetensors", base, replace(card, name="before"))
    pretrain.run(
        out=tmp_path / "out", name="after", base=str(tmp_path / "base.safetensors"), base_sha256=sha, recipe=replace(TINY, steps=1),
        pictures_per_family=1, picture_wpx=128, device="cpu",
    )  # fmt: skip
    _, read = weights.load(tmp_path / "out" / "model.safetensors")
    assert read.parent == "before" and read.parent_sha256 == sha and read.training["crops"] == 2
    held_out = json.loads((tmp_path / "out" / "heldout.json").read_text())
    assert set(held_out["models"]) == {"before", "after"} and len(held_out["filter"]) == len(MIN_FLOWS) * len(LOGIT_THRESHOLDS)
    best = max(held_out["filter"], key=lambda r: r["ap@0.5"])
    assert (read.logit_threshold, read.min_flow) == (best["logit_threshold"], best["min_flow"])
    assert read.sha256 in (tmp_path / "out" / "model_card.md").read_text()


def test_a_base_that_painted_tissue_cannot_teach_is_refused(tmp_path):
    model, card = weights.new(0, rna_input="learned", genes=["A", "B"])
    weights.save(tmp_path / "genes.safetensors", model, replace(card, name="x", working_um=0.5))
    with pytest.raises(InputError) as caught:
        pretrain.run(
            out=tmp_path,
            name="x",
            base=str(tmp_path / "genes.safetensors"),
            base_sha256=None,
            recipe=TINY,
            pictures_per_family=1,
            picture_wpx=128,
            device="cpu",
        )  # fmt: skip
    text = "\n".join(caught.value.problems)
    assert "RNA input learned" in text and "is the name of the base" in text and "0.5 µm" in text


def test_sizes_that_cannot_work_are_told_together(tmp_path):
    with pytest.raises(InputError) as caught:
        pretrain.run(
            out=tmp_path, name="x", base=str(tmp_path / "none.safetensors"), base_sha256=None, recipe=replace(TINY, side=70, tissue_side=80),
            pictures_per_family=1, picture_wpx=50, device="cpu",
        )  # fmt: skip
    text = "\n".join(caught.value.problems)
    assert all(option in text for option in ("--crop-wpx 70", "--tissue-wpx 80", "--picture-wpx 50", "none.safetensors"))
