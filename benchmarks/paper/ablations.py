"""Fig. S4 and S6: what the RNA input and the backbone are worth, trained alike on the same few crops.

S4 starts warm: every model has the weights of the base but for the input channels of the RNA, which are set to 0 in all of them, also in the one that sees no
RNA. The rest of the base has seen densities, which favours `density`. S6 starts from scratch: no other backbone has weights.
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

from istseg.artifacts.patches import Patch
from istseg.artifacts.tiles import Tile
from istseg.network import training, weights
from istseg.network.card import ModelCard
from istseg.network.coexpression import patch_colours
from istseg.network.dataset import PatchStore, find_patches, gene_counts, split
from istseg.network.model import Rna2Seg

STAINS = "Cellbound1;Cellbound2"
STAIN_CHANNELS = 3
"""Channels of the stain encoder; those of the RNA follow."""
NONE = "none"
"""RNA input of a model that sees no RNA, in training and test."""
POOR = {"degraded": 0.8, "contour": 0.7}


def run(folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Write the tables that were asked for; gives their markdown."""
    patches = folder / "no patches"
    if "s6" in options.figures or options.rna_inputs:
        train = finetuning.make(folder / "train", options, options.seed + 200, 0.0, 0.5, STAINS, 0.5)
        patches = finetuning.curated(train, folder / "labels", finetuning.labels_of(train, finetuning.sound, options.seed))
    good = finetuning.make(folder / "good", options, options.seed, 0.0, stains=STAINS)
    texts = []
    if "s4" in options.figures:
        poor = finetuning.make(folder / "poor", options, options.seed, 0.0, stains=STAINS, **POOR)
        bare = finetuning.make(folder / "bare", options, options.seed, 0.0, stains="none")
        rows = rna_inputs(folder / "s4", patches, {"good stains": good, "broken contours": poor, "nucleus stain only": bare}, options)
        texts.append("## Fig. S4\n\n" + tables.write(out, "s4", rows))
    if "s6" in options.figures:
        texts.append("## Fig. S6\n\n" + tables.write(out, "s6", backbones(folder / "s6", patches, good, options)))
    return texts


def rna_inputs(folder: Path, patches: Path, tests: dict[str, finetuning.Sample], options: argparse.Namespace) -> list[tables.Row]:
    """One row per RNA input and test sample; the first two are the base as it is, with the RNA and with the RNA withheld."""
    blind = {name: without_rna(sample, folder / "blind" / str(i)) for i, (name, sample) in enumerate(tests.items())}
    rows = []

    def judge(name: str, model: Path, samples: dict[str, finetuning.Sample], facts: dict) -> None:
        for i, (tissue, sample) in enumerate(samples.items()):
            cells = finetuning.predicted(sample, model, folder / name.replace(" ", "_") / f"test{i}", options)
            rows.append({"model": name, "tissue": tissue} | finetuning.score(sample, cells) | facts)

    judge("base", options.base, tests, {})
    judge("base, RNA withheld", options.base, blind, {})
    silent = folder / "silent"
    for path in sorted(patches.glob("*.npz")):
        patch = Patch.read(path)
        patch.counts = np.zeros_like(patch.counts)
        patch.write(silent / path.name)
    for kind in options.rna_inputs:
        genes = sorted(gene_counts(find_patches([patches]))) if kind in ("coexpression", "learned") else []
        model, card = warmed(options.base, "density" if kind == NONE else kind, genes, options.seed)
        path, facts = taught(folder / kind, model, replace(card, name=kind), silent if kind == NONE else patches, options)
        judge(kind, path, blind if kind == NONE else tests, facts)
    return rows


def backbones(folder: Path, patches: Path, test: finetuning.Sample, options: argparse.Namespace) -> list[tables.Row]:
    """One row per backbone."""
    rows = []
    for name in options.backbones:
        model, card = weights.new(options.seed, name)
        path, facts = taught(folder / name, model, replace(card, name=name), patches, options, scratch=True)
        cells = finetuning.predicted(test, path, folder / name / "test", options)
        count = sum(p.numel() for p in model.parameters())
        rows.append({"backbone": name, "parameters": count} | finetuning.score(test, cells) | facts)
    return rows


def warmed(base: Path, rna_input: str, genes: list[str], seed: int) -> tuple[Rna2Seg, ModelCard]:
    """The base's network for an RNA input, blind to the RNA at first: all that reads its channels directly is neutral."""
    source, card = weights.load(base)
    model, _ = weights.new(seed, "cnn", rna_input, genes)
    narrow, wide = source.state_dict(), weights.new(seed, "cnn", "learned", ["a"])[0].state_dict()
    state = model.state_dict()
    for key, value in narrow.items():
        if wide[key].shape == value.shape:
            state[key].copy_(value)
            continue
        # Statistics and scales of the input are one-dimensional; weights have the input channels second.
        channels = (slice(None),) * (value.ndim > 1) + (slice(STAIN_CHANNELS),)
        rna = (*channels[:-1], slice(STAIN_CHANNELS, None))
        state[key][channels] = value[channels]
        state[key][rna] = 1.0 if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")) else 0.0
    model.load_state_dict(state)
    return model, replace(card, rna_input=rna_input, genes=genes, sha256="")


def taught(folder: Path, model: Rna2Seg, card: ModelCard, patches: Path, options: argparse.Namespace, scratch: bool = False) -> tuple[Path, dict]:
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
    recipe = training.make_recipe(scratch, options.budget_epochs, 0, crop_wpx=options.budget_crop_wpx, seed=options.seed)
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
