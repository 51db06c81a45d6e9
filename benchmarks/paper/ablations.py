"""Fig. S4 and S6: what the RNA input and the backbone are worth, trained alike on the same few crops.

S4 starts warm: every model has the weights of the base but for the input channels of the RNA, which are set to 0 in all of them, also in the one that sees no
RNA. The rest of the base has seen densities, which favours `density`. They learn, and are judged, where the stains tell little: nuclei alone, and broken
contours, with enough transcripts to see where a cell ends and of which kind it is. S6 starts from scratch: no other backbone has weights.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import finetuning
import numpy as np
import tables
import torch
from scipy import sparse

from istseg.artifacts.patches import Patch
from istseg.artifacts.tiles import Tile
from istseg.network import training, weights
from istseg.network.card import ModelCard
from istseg.network.coexpression import patch_colours
from istseg.network.dataset import PatchStore, find_patches, gene_counts, split
from istseg.network.model import Rna2Seg
from istseg.qc.annotated import best_matches
from istseg.qc.matching import match_labels

STAINS = "Cellbound1;Cellbound2"
NONE = "none"
"""RNA input of a model that sees no RNA, in training and test."""
POOR = {
    "nucleus stain only": {"stains": "none"},
    "broken contours": {"stains": "Cellbound1", "degraded": 0.8, "contour": 0.7},
}
"""Tissues of S4, see `finetuning.make`."""
S4_SEEDS, S4_TRAINING_SIDE = 2, 1.5
"""Test samples of each tissue, and the side of the training samples in those of the test samples."""
BATCH = {"s4": 4, "s6": 8}


def run(folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Write the tables that were asked for; gives their markdown."""
    texts = []
    if "s4" in options.figures:
        texts.append("## Fig. S4\n\n" + tables.write(out, "s4", rna_inputs(folder / "s4", options)))
    if "s6" in options.figures:
        train = finetuning.make(folder / "train", options, options.seed + 200, 0.0, 0.5, STAINS, 0.5)
        patches = finetuning.curated(train, folder / "labels", finetuning.labels_of(train, finetuning.sound, options.seed))
        test = finetuning.make(folder / "good", options, options.seed, 0.0, stains=STAINS)
        texts.append("## Fig. S6\n\n" + tables.write(out, "s6", backbones(folder / "s6", patches, test, options)))
    return texts


def rna_inputs(folder: Path, options: argparse.Namespace) -> list[tables.Row]:
    """One row per RNA input and tissue, mean over the seeds; the first two models are the base as it is, with the RNA and with the RNA withheld."""
    options = argparse.Namespace(**{**vars(options), "transcripts": options.s4_transcripts})
    tests: dict[str, list[finetuning.Sample]] = {}
    for i, (tissue, how) in enumerate(POOR.items()):
        seeds = range(options.seed, options.seed + S4_SEEDS)
        tests[tissue] = [finetuning.make(folder / f"test{i}_{seed}", options, seed, 0.0, **how) for seed in seeds]
    rows = []

    def judge(name: str, model: Path, facts: dict, blind: bool) -> None:
        for tissue, samples in tests.items():
            scored = []
            for sample in samples:
                at = sample.folder / name.replace(" ", "_")
                shown = without_rna(sample, at / "blind") if blind else sample
                scored.append(scores(sample, finetuning.predicted(shown, model, at / "cells", options)))
            rows.append({"model": name, "tissue": tissue} | tables.spread(scored) | facts)
            tables.write(options.out, "s4", rows)

    judge("base", options.base, {}, blind=False)
    judge("base, RNA withheld", options.base, {}, blind=True)
    if not options.rna_inputs:
        return rows
    patches, silent = training_patches(folder, options)
    for kind in options.rna_inputs:
        genes = sorted(gene_counts(find_patches([patches]))) if kind in ("coexpression", "learned") else []
        base, card = weights.load(options.base)
        model, card = weights.with_rna_input(base, card, "density" if kind == NONE else kind, genes, options.seed)
        path, facts = taught(folder / kind, model, replace(card, name=kind), silent if kind == NONE else patches, options, "s4")
        judge(kind, path, facts, blind=kind == NONE)
    return rows


def training_patches(folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Patches of both tissues on seeds of their own, and the same ones without a transcript."""
    patches, silent = folder / "patches", folder / "silent"
    options = argparse.Namespace(**{**vars(options), "size_um": S4_TRAINING_SIDE * options.size_um})
    for i, (tissue, how) in enumerate(POOR.items()):
        sample = finetuning.make(folder / f"train{i}", options, options.seed + 200 + i, 0.0, **how)
        found = finetuning.curated(sample, folder / f"labels{i}", finetuning.labels_of(sample, finetuning.sound, options.seed))
        for path in sorted(found.glob("*.npz")):
            patch = Patch.read(path)
            # Every simulated sample has the same name, which would make two patches one.
            patch.sample = tissue.replace(" ", "_")
            patch.write(patches / str(i) / path.name)
            patch.counts = np.zeros_like(patch.counts)
            patch.write(silent / str(i) / path.name)
    return patches, silent


def scores(sample: finetuning.Sample, labels: np.ndarray) -> dict[str, float]:
    """Cells against the truth: as `finetuning.score`, and the RNA IoU of the best match."""
    overlap = match_labels(sample.truth, labels)
    of_truth, of_cell = sample.cells_of_transcripts(sample.truth), sample.cells_of_transcripts(labels)
    places = [np.searchsorted(ids, of) for ids, of in ((overlap.truth_ids, of_truth), (overlap.predicted_ids, of_cell))]
    both = (of_truth > 0) & (of_cell > 0)
    shape = len(overlap.truth_ids), len(overlap.predicted_ids)
    joint = sparse.csr_matrix((np.ones(both.sum()), (places[0][both], places[1][both])), shape)
    inside = [np.bincount(place[of > 0], minlength=n) for place, of, n in zip(places, (of_truth, of_cell), shape, strict=True)]
    best = best_matches(overlap, joint, *inside, overlap.predicted_ids)
    figures = finetuning.score(sample, labels)
    return {"AP@0.5": figures["AP@0.5"], "pixel IoU": figures["mean best IoU"], "RNA IoU": float(best["rna_iou"].mean())}


def backbones(folder: Path, patches: Path, test: finetuning.Sample, options: argparse.Namespace) -> list[tables.Row]:
    """One row per backbone."""
    rows = []
    for name in options.backbones:
        model, card = weights.new(options.seed, name)
        path, facts = taught(folder / name, model, replace(card, name=name), patches, options, "s6")
        cells = finetuning.predicted(test, path, folder / name / "test", options)
        count = sum(p.numel() for p in model.parameters())
        rows.append({"backbone": name, "parameters": count} | finetuning.score(test, cells) | facts)
    return rows


def taught(folder: Path, model: Rna2Seg, card: ModelCard, patches: Path, options: argparse.Namespace, figure: str) -> tuple[Path, dict]:
    """Train a model on the budget → its file, and what the training says."""
    refs = find_patches([patches])
    card = replace(card, working_um=refs[0].working_um)
    parts = split(refs, 0.1, 0.01, options.seed)
    stores = PatchStore(folder / "train", options.device, card.genes), PatchStore(folder / "validation", options.device, card.genes)
    for store, chosen, free in zip(stores, (parts.train + parts.holdout, parts.validation), (parts.validation, []), strict=True):
        store.folder.mkdir(parents=True)
        for ref in chosen:
            store.add(ref, free)
    if card.rna_input == "coexpression":
        model.gene_image.table[1:] = torch.from_numpy(patch_colours(parts.train, card.genes, options.seed))
    recipe = training.make_recipe(figure == "s6", options.budget_epochs, 0, crop_wpx=options.budget_crop_wpx, batch_size=BATCH[figure], seed=options.seed)
    begun = time.process_time()
    fitted = training.fit(model, *stores, recipe, card.image_form, options.device, folder / "checkpoint.pt")
    seconds = time.process_time() - begun
    model.load_state_dict(fitted.state)
    weights.save(folder / "model.safetensors", model.eval(), card)
    best = fitted.epochs[fitted.best_epoch - 1]["validation_loss"]
    return folder / "model.safetensors", {"loss before": fitted.start["validation_loss"], "loss after": best, "CPU s": round(seconds)}


def without_rna(sample: finetuning.Sample, folder: Path) -> finetuning.Sample:
    """The tile without its transcripts."""
    tile = Tile.read(sample.tile.folder)
    tile.write(folder / "tiles" / tile.tile_id, sample.tile.raw_stains(), tile.transcripts().iloc[:0], tile.sample_genes())
    blind = finetuning.Sample(folder)
    blind.truth = sample.truth
    return blind
