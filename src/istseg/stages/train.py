"""train: curated patches + base weights → `model.safetensors`, `model_card.json`, `curves.json`, `decision.json`. Fine-tune, then accept or keep the base."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from istseg.artifacts.files import sha256, whole, write_json
from istseg.artifacts.patches import Patch
from istseg.errors import InputError
from istseg.network import gate, tally, training, weights
from istseg.network.card import ModelCard
from istseg.network.coexpression import patch_colours
from istseg.network.dataset import PatchRef, PatchStore, Split, TooFewPatches, find_patches, gene_counts, split, thin
from istseg.network.inference import choose_precision, computing_in, open_device
from istseg.network.model import Rna2Seg
from istseg.progress import track

log = logging.getLogger("istseg")

REFUSED = "refused.safetensors"
CHECKPOINT = "checkpoint.pt"


def run(
    *,
    patches: list[Path],
    out: Path,
    name: str,
    base: str,
    base_sha256: str | None,
    backbone: str | None,
    rna_input: str | None,
    epochs: int | None,
    patience: int | None,
    learning_rate: float,
    batch_size: int,
    membrane_dropout: float,
    validation_fraction: float,
    holdout_fraction: float,
    max_patches: int,
    crop_wpx: int,
    device: str,
    precision: str,
    seed: int,
) -> None:
    """Fine-tune a model on curated patches and decide whether to use it.

    With too few patches, or where base and labels alone say that the base will be kept, nothing is trained, and `decision.json` says so.

    Parameters
    ----------
    patches
        Folders with patches of `curate`; several samples make a cohort.
    out
        Folder for the results. An interrupted training in the same folder goes on from its last epoch. Weights that the gate refused are kept beside them
        as `refused.safetensors`.
    name
        Name of the model.
    base, base_sha256
        Base weights, or `scratch`, and the digest that the file must have.
    backbone
        Key of `network.model.BACKBONES`, to train from scratch; None: `cnn`. A base keeps its own.
    rna_input
        One of `network.model.RNA_INPUTS`; None: `density` from scratch, that of a base. With another one than the base's, what reads the RNA learns anew.
    epochs, patience
        See `network.training.make_recipe`: what None means depends on the base.
    learning_rate, batch_size, membrane_dropout, seed
        See `network.training.Recipe`.
    validation_fraction, holdout_fraction
        Shares of the patches that choose the epoch, and that judge.
    max_patches
        More are thinned out evenly.
    crop_wpx
        Side of the crops that are trained on, at most a patch's.
    device
        `cpu` or `cuda`.
    precision
        Key of `network.inference.PRECISIONS`, for training and gate.

    Raises
    ------
    InputError
        If weights, precision or patches cannot be used together, or there are too few patches to train from scratch.
    DeviceError
        If the device is not there.
    """
    place = open_device(device)
    arithmetic = choose_precision(precision, place, training=True)
    model, base_card, found = _inputs(patches, base, base_sha256, backbone, rna_input, seed)
    card = base_card
    refs = thin(found, max_patches)
    out = Path(out)
    # Beside the results: a training that is killed leaves its targets where the next try removes them.
    work = out / ".targets"
    shutil.rmtree(work, ignore_errors=True)
    (out / REFUSED).unlink(missing_ok=True)
    before = None
    try:
        parts = split(refs, validation_fraction, holdout_fraction, seed)
        if base != weights.SCRATCH:
            with computing_in(arithmetic):
                before = tally.evaluate(model, card, parts.holdout, place, "gate: base")
            if reason := gate.foregone(before):
                _write_untrained(out, name, Path(base), card, found, reason, before, parts.holdout)
                return
        if rna_input not in (None, card.rna_input):
            model, card = weights.with_rna_input(model, card, rna_input, _genes(refs, rna_input), seed)
        train_store, validation_store = _stores(parts, work, device, card.genes)
    except TooFewPatches as error:
        shutil.rmtree(work, ignore_errors=True)
        if base == weights.SCRATCH:
            raise
        _write_untrained(out, name, Path(base), base_card, found, f"the base is kept: {error}")
        return
    if card.rna_input == "coexpression" and (base == weights.SCRATCH or card.rna_input != base_card.rna_input):
        model.gene_image.table[1:] = torch.from_numpy(patch_colours(parts.train, card.genes, seed))
    recipe = training.make_recipe(
        base == weights.SCRATCH,
        epochs,
        patience,
        learning_rate=learning_rate,
        batch_size=batch_size,
        membrane_dropout=membrane_dropout,
        crop_wpx=crop_wpx,
        seed=seed,
    )
    data = _data_hash(refs)
    log.info("%d patches: %d train, %d validate, %d held out", len(refs), len(parts.train), len(parts.validation), len(parts.holdout))
    checkpoint = out / CHECKPOINT
    fingerprint = repr((data, base_card.sha256, card.backbone, card.rna_input, validation_fraction, holdout_fraction))
    with computing_in(arithmetic):
        fitted = training.fit(model, train_store, validation_store, recipe, card.image_form, device, checkpoint, fingerprint)
        model.load_state_dict(weights.rounded(fitted.state))
        after = tally.evaluate(model, card, parts.holdout, place, "gate: fine-tuned")
    accepted, reason = (True, "trained from scratch: there is no base to keep") if before is None else gate.decide(before, after)
    log.info(reason)
    samples = sorted({ref.sample for ref in refs})
    decision = _decision(samples, name, accepted, reason, before, after, parts.holdout)
    facts = _facts(refs, found, parts, recipe, fitted, data, decision) | {"device": device, "precision": str(arithmetic).removeprefix("torch.")}
    notes = ["labels of a teacher, curated by rules: no person annotated them"]
    parent = "" if base == weights.SCRATCH else card.name
    tuned = replace(card, name=name, parent=parent, parent_sha256=base_card.sha256, training=facts, notes=notes, sha256="")
    if accepted:
        card = replace(tuned, sha256=weights.save(out / "model.safetensors", model, tuned))
    else:
        # For whoever wants to see what was refused; no later stage reads it.
        weights.save(out / REFUSED, model, tuned)
        card = _keep_base(Path(base), base_card, out / "model.safetensors")
    write_json(out / "model_card.json", card.as_dict() | {"attempt": facts, "decision": decision})
    write_json(out / "curves.json", _curves(samples, name, fitted, base))
    write_json(out / "decision.json", decision)
    checkpoint.unlink(missing_ok=True)
    shutil.rmtree(work)


def _inputs(
    patches: list[Path], base: str, base_sha256: str | None, backbone: str | None, rna_input: str | None, seed: int
) -> tuple[Rna2Seg, ModelCard, list[PatchRef]]:
    """Model, card and patches; all problems at once."""
    problems: list[str] = []
    refs: list[PatchRef] = []
    loaded = None
    try:
        refs = find_patches(patches)
    except InputError as error:
        problems += error.problems
    try:
        loaded = _scratch(refs, backbone or "cnn", rna_input or "density", seed) if base == weights.SCRATCH else weights.load(base, base_sha256)
    except InputError as error:
        problems += error.problems
    if loaded is not None:
        card = replace(loaded[1], working_um=refs[0].working_um) if base == weights.SCRATCH and refs else loaded[1]
        loaded = loaded[0], card
        if base != weights.SCRATCH and backbone not in (None, card.backbone):
            problems.append(
                f"{base}: its backbone is {card.backbone}, not {backbone} as asked; a base keeps its own: leave --backbone out or use --base {weights.SCRATCH}."
            )
        problems += _panel_problems(card, refs, base)
        if rna_input not in (None, "density", card.rna_input):
            problems += _map_problems(refs, rna_input, bool(_genes(refs, rna_input)))
        for ref in refs:
            try:
                card.check_tile(ref.working_um, str(ref.path))
            except InputError as error:
                problems += error.problems
    if problems or loaded is None:
        raise InputError(problems)
    return *loaded, refs


def _scratch(refs: list[PatchRef], backbone: str, rna_input: str, seed: int) -> tuple[Rna2Seg, ModelCard]:
    """Untrained model; with gene colours for all genes that the patches show."""
    return weights.new(seed, backbone, rna_input, _genes(refs, rna_input))


def _genes(refs: list[PatchRef], rna_input: str) -> list[str]:
    """Genes that an RNA input takes from the patches, by name."""
    return sorted(set().union(*(ref.genes or () for ref in refs))) if rna_input != "density" else []


def _panel_problems(card: ModelCard, refs: list[PatchRef], base: str) -> list[str]:
    """Why a model with gene colours cannot learn from the patches."""
    if card.rna_input == "density" or not refs:
        return []
    if found := _map_problems(refs, card.rna_input, bool(card.genes)):
        return found
    if base == weights.SCRATCH:
        return []
    problems = []
    for sample in sorted({ref.sample for ref in refs}):
        try:
            card.check_panel(gene_counts(ref for ref in refs if ref.sample == sample), f"the patches of {sample}")
        except InputError as error:
            problems += error.problems
    return problems


def _map_problems(refs: list[PatchRef], rna_input: str, any_gene: bool) -> list[str]:
    """Why an RNA input in gene colours cannot be made of the patches."""
    if without := [ref for ref in refs if ref.genes is None]:
        return [f"{without[0].path}: this patch and {len(without) - 1} others have no gene map, which the RNA input {rna_input} needs; run curate again."]
    if refs and not any_gene:
        return [f"{refs[0].path}: this patch and {len(refs) - 1} others show no transcript; use --rna-input density."]
    return []


def _stores(parts: Split, work: Path, device: str, genes: list[str]) -> tuple[PatchStore, PatchStore]:
    """Training and validation patches with their targets."""
    train, validation = (PatchStore(work / use, device, genes) for use in ("train", "validation"))
    for store, refs, free in ((train, parts.train, parts.validation + parts.holdout), (validation, parts.validation, parts.holdout)):
        store.folder.mkdir(parents=True)
        for ref in track(refs, "flow targets"):
            if not store.add(ref, free):
                log.warning("%s: no pixel of it may teach beside the validation and held-out patches; it is left out", ref.path)
    if not len(train) or not len(validation):
        raise TooFewPatches(
            "the training or the validation patches hold no pixel that may teach: too few patches, too near to each other; "
            "take a larger area, lower min_objects, or run without fine-tuning."
        )
    return train, validation


def _data_hash(refs: Sequence[PatchRef]) -> str:
    """sha256 over the patches' names and contents."""
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(f"{ref.sample} {ref.window} {sha256(ref.path)}\n".encode())
    return digest.hexdigest()


def _facts(
    refs: Sequence[PatchRef], found: Sequence[PatchRef], parts: Split, recipe: training.Recipe, fitted: training.Fitted, data: str, decision: dict[str, Any]
) -> dict[str, Any]:
    """What the card tells of the training; no times, so that the same training gives the same file."""
    return {
        "samples": dict(Counter(ref.sample for ref in refs)),
        "stains": {sample: Patch.read(path).stain_names for sample, path in {ref.sample: ref.path for ref in refs}.items()},
        "patches": {"found": len(found), "train": len(parts.train), "validation": len(parts.validation), "holdout": len(parts.holdout)},
        "data_sha256": data,
        "recipe": recipe.__dict__,
        "best_epoch": fitted.best_epoch,
        "validation_loss": fitted.epochs[fitted.best_epoch - 1]["validation_loss"],
        "validation_loss_before": fitted.start["validation_loss"],
        "figures": decision["finetuned"],
        "decision": decision["reason"],
    }


def _curves(samples: list[str], name: str, fitted: training.Fitted, base: str) -> dict[str, Any]:
    return {
        "samples": samples,
        "name": name,
        "base": weights.SCRATCH if base == weights.SCRATCH else Path(base).name,
        "best_epoch": fitted.best_epoch,
        "validation_loss_before": fitted.start["validation_loss"],
        "epochs": fitted.epochs,
    }


def _decision(
    samples: list[str],
    name: str,
    accepted: bool,
    reason: str,
    before: dict[str, tally.Tally] | None,
    after: dict[str, tally.Tally] | None,
    holdout: Sequence[PatchRef],
) -> dict[str, Any]:
    """Content of `decision.json`; `before` is None from scratch, `after` without a training, both where nothing was held out."""
    sides = {"base": before or {}, "finetuned": after or {}}
    figures = {side: tally.pool(tallies).figures() if tallies else {} for side, tallies in sides.items()}
    judged = sorted({ref.sample for ref in holdout})
    return {
        "samples": samples,
        "name": name,
        "accepted": accepted,
        "reason": reason,
        **figures,
        "by_sample": {sample: {side: tallies[sample].figures() if tallies else {} for side, tallies in sides.items()} for sample in judged},
        "margin": gate.MARGIN,
        "noise": gate.noise(tally.pool(before), tally.pool(after)) if before and after else {},
        "guards": {name: margin for name, (_, margin) in gate.GUARDS.items()},
        "holdout_patches": [f"{ref.sample} w{ref.window[0]}_{ref.window[1]}" for ref in holdout],
        "stand_ins_and_nuclei_known": tally.nuclei_known(holdout),
    }


def _write_untrained(
    out: Path,
    name: str,
    base: Path,
    card: ModelCard,
    found: Sequence[PatchRef],
    reason: str,
    before: dict[str, tally.Tally] | None = None,
    holdout: Sequence[PatchRef] = (),
) -> None:
    """The base as the result, without a try."""
    log.warning("%s: %s", name, reason)
    samples = sorted({ref.sample for ref in found}) or [name]
    decision = _decision(samples, name, False, reason, before, None, holdout)
    kept = _keep_base(base, card, out / "model.safetensors")
    write_json(out / "model_card.json", kept.as_dict() | {"decision": decision})
    write_json(out / "curves.json", {"samples": samples, "name": name, "base": base.name, "best_epoch": None, "validation_loss_before": None, "epochs": []})
    write_json(out / "decision.json", decision)
    # Of an earlier try with other patches that was killed.
    (out / CHECKPOINT).unlink(missing_ok=True)


def _keep_base(base: Path, card: ModelCard, path: Path) -> ModelCard:
    """The base itself as the result, byte for byte where it has our format."""
    if base.suffix == ".safetensors":
        with whole(path) as part:
            shutil.copyfile(base, part)
        return card
    model, _ = weights.load(base)
    return replace(card, sha256=weights.save(path, model, card, half=False))
