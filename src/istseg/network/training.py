"""Training and fine-tuning of the network on curated patches [paper: RNA2seg training].

Every draw has its own generator, keyed by seed, epoch, patch and repetition: the result depends neither on the order in which batches are made nor on
whether the training was interrupted.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from istseg import __version__
from istseg.ahead import ahead
from istseg.artifacts.files import whole
from istseg.errors import InputError
from istseg.network.augment import Example, augment
from istseg.network.dataset import PatchStore
from istseg.network.inference import autocast_to, precision_of
from istseg.network.loss import Loss, LossSums, loss_sums
from istseg.network.rna_image import rna_channel

log = logging.getLogger("istseg")

WARMUP_SHARE = 0.05
FINAL_RATE = 0.01
"""The rate rises linearly over the first 5 % of the steps, while Adam's moments are unknown, and falls as a cosine to 1 %: the paper's constant rate suits its
64,000 patches, but after the few hundred steps of a fine-tuning the weights of a constant rate still jump from epoch to epoch, and "the best on validation"
would pick a lucky jump."""
CLIP_NORM = 3.0
CPU_PIECE = 1
"""Examples whose activations a CPU holds at once; gradients are summed, so a batch is a batch."""
STATISTICS_BATCHES = 8

EPOCHS = {"scratch": 30, "fine-tuning": 20}
"""The paper's."""
PATIENCE = {"scratch": None, "fine-tuning": 5}
"""A fine-tuning that has stopped to gain only costs time. From scratch every epoch runs: the falling rate gains most in the last ones."""

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    crop_wpx
        Side of the random crops; an epoch draws as many as cover the patches once.
    freeze_norm
        Keep the running statistics of batch normalisation and use them while training (its scales and shifts still learn). Right for fine-tuning: a sample
        has few and alike patches, and dropped stains shift the statistics of a batch away from those of inference. From scratch there is nothing to keep:
        statistics of the batch are used, and measured anew before each validation, because their running average lags behind the weights.
    patience
        Stop after so many epochs without a better validation; None: never.
    """

    epochs: int = EPOCHS["fine-tuning"]
    learning_rate: float = 1e-3
    batch_size: int = 8
    membrane_dropout: float = 0.25
    crop_wpx: int = 512
    seed: int = 0
    freeze_norm: bool = True
    patience: int | None = None


def make_recipe(from_scratch: bool, epochs: int | None, patience: int | None, **others: Any) -> Recipe:
    """Recipe with the defaults of `EPOCHS` and `PATIENCE` where they are None; a patience of 0 never stops."""
    kind = "scratch" if from_scratch else "fine-tuning"
    patience = PATIENCE[kind] if patience is None else patience
    return Recipe(epochs=EPOCHS[kind] if epochs is None else epochs, patience=patience or None, freeze_norm=not from_scratch, **others)


@dataclass(frozen=True)
class Fitted:
    """Outcome of a training.

    Attributes
    ----------
    state
        State dict of the best epoch, float32 on the CPU.
    best_epoch
        Counted from 1.
    epochs
        One record per epoch: `epoch`, `train_loss`, `validation_loss`, `validation_flow`, `validation_cell`, `learning_rate`, `seconds`.
    start
        Figures of the validation before the first step.
    """

    state: dict[str, Tensor]
    best_epoch: int
    epochs: list[dict[str, float]]
    start: dict[str, float]


def fit(
    model: nn.Module,
    train: PatchStore,
    validation: PatchStore,
    recipe: Recipe,
    rna_form: str | None,
    device: str,
    checkpoint: str | Path,
    fingerprint: str = "",
) -> Fitted:
    """Train, and return the weights of the epoch with the smallest validation loss.

    Parameters
    ----------
    model
        Starting weights; changed.
    train, validation
        Patches that teach and that choose the epoch.
    recipe
        How to train.
    rna_form
        Form of the RNA image that the model is made for (`network.rna_image.FORMS`); None: the stores hold gene maps.
    device
        `cpu` or `cuda`.
    checkpoint
        Written after every epoch. If it is there and belongs to the same training, the training goes on from it, to the same result.
    fingerprint
        Of what the training depends on besides recipe, form, device, precision and versions: patches, base.

    Raises
    ------
    InputError
        If the loss is no longer finite, or the crop is no multiple of 8.
    """
    if recipe.crop_wpx % 8:
        raise InputError(f"--crop-wpx {recipe.crop_wpx}: must be a multiple of 8, e.g. {recipe.crop_wpx // 8 * 8}: the network halves the image three times.")
    # What rounds differently belongs to it: a training that goes on elsewhere must give the same result.
    identity = repr((fingerprint, asdict(recipe), rna_form, device, precision_of(torch.device(device)), __version__, torch.__version__))
    model.to(device, memory_format=torch.channels_last)
    # On a GPU one pass over all weights; a CPU keeps the bits that it always gave.
    fused = True if torch.device(device).type == "cuda" else None
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=recipe.learning_rate, fused=fused)
    state = _restore(checkpoint, identity, model, optimiser)
    if state is None:
        state = {"epoch": 0, "epochs": [], "best": None, "best_epoch": 0, "start": validate(model, validation, rna_form, device)}
    steps_per_epoch = len(_batches(train, recipe, 1))
    while state["epoch"] < recipe.epochs and not _patience_over(state, recipe):
        epoch = state["epoch"] + 1
        started = time.monotonic()
        with _seeded(recipe, epoch):
            loss, rate = _epoch(model, optimiser, train, recipe, epoch, steps_per_epoch, rna_form, device)
        if not recipe.freeze_norm:
            measure_statistics(model, _shown(train, recipe, epoch, rna_form, device), device)
        figures = validate(model, validation, rna_form, device)
        seconds = time.monotonic() - started
        record = {"epoch": epoch, "train_loss": loss, **figures, "learning_rate": rate, "seconds": round(seconds, 2)}
        if not math.isfinite(loss + figures["validation_loss"]):
            raise InputError(f"training diverged in epoch {epoch} (loss {loss}); lower --learning-rate (it is {recipe.learning_rate:g}).")
        log.info("epoch %d of %d: train %.4f, validation %.4f, %.1f s", epoch, recipe.epochs, loss, figures["validation_loss"], seconds)
        best = state["epochs"][state["best_epoch"] - 1]["validation_loss"] if state["best_epoch"] else math.inf
        state["epoch"] = epoch
        state["epochs"].append(record)
        if figures["validation_loss"] < best:
            state["best_epoch"] = epoch
            state["best"] = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
        _save(checkpoint, identity, state, model, optimiser)
    return Fitted(state["best"], state["best_epoch"], state["epochs"], state["start"])


@torch.inference_mode()
def validate(model: nn.Module, store: PatchStore, rna_form: str | None, device: str) -> dict[str, float]:
    """Loss on whole patches and all their label images, without augmentation: `validation_loss` and its parts `validation_flow`, `validation_cell`."""
    model.eval()
    flow = cell = pixels = 0.0
    for i in range(len(store)):
        output = None
        for target in range(store.n_targets(i)):
            stains, rna, *wanted = collate([store.example(i, target)], rna_form, device)
            if output is None:
                with autocast(device):
                    output = model(stains, rna)
            sums = loss_sums(output, *wanted)
            flow, cell, pixels = flow + float(sums.flow), cell + float(sums.cell), pixels + float(sums.pixels)
    pixels = max(pixels, 1.0)
    return {"validation_loss": (flow + cell) / pixels, "validation_flow": flow / pixels, "validation_cell": cell / pixels}


def collate(examples: list[Example], rna_form: str | None, device: str) -> Batch:
    """Stack examples: stains (B, c, H, W), RNA image or gene map (B, 1, H, W), flow (B, 2, H, W), cell and teach (B, H, W), on the device."""
    return _moved(_stacked(examples, rna_form), device)


def _stacked(examples: list[Example], rna_form: str | None) -> Batch:
    stains, flow, cell, teach = (torch.from_numpy(np.stack([getattr(e, name) for e in examples])) for name in ("stains", "flow", "cell", "teach"))
    rna = torch.from_numpy(np.stack([rna_channel(e.counts, rna_form) for e in examples])[:, None])
    return stains, rna, flow, cell, teach


def _moved(batch: Batch, device: str) -> Batch:
    stains, *others = (t.to(device, non_blocking=True) for t in batch)
    return stains.contiguous(memory_format=torch.channels_last), *others


def autocast(device: str):
    """In `precision_of` the device; the range of bfloat16 needs no loss scaling."""
    place = torch.device(device)
    return autocast_to(place, precision_of(place))


def _epoch(
    model: nn.Module, optimiser: torch.optim.Optimizer, store: PatchStore, recipe: Recipe, epoch: int, steps_per_epoch: int, rna_form: str | None, device: str
) -> tuple[float, float]:
    """One pass → (mean loss over the pixels that taught, last rate)."""
    model.train()
    if recipe.freeze_norm:
        for layer in _batch_norms(model):
            layer.eval()
    rate = 0.0
    # Summed on the device: to ask for a number is to wait for it, and a GPU would idle while the next step is launched.
    sums_of_all = torch.zeros(2, dtype=torch.float64, device=device)
    for i, batch in enumerate(_prepared(store, _batches(store, recipe, epoch), recipe, epoch, rna_form, device)):
        rate = rate_at((epoch - 1) * steps_per_epoch + i, recipe.epochs * steps_per_epoch, recipe.learning_rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        sums = backward(model, batch, device)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        sums_of_all += torch.stack((sums.flow + sums.cell, sums.pixels)).double()
    total, pixels = sums_of_all.tolist()
    return total / max(pixels, 1), rate


def backward(model: nn.Module, batch: Batch, device: str, loss: Loss = loss_sums) -> LossSums:
    """Add the gradients of the mean loss over the pixels of the whole batch that teach."""
    n = len(batch[0])
    # Statistics of a batch need the batch in one piece; frozen ones do not, nor do backbones without any.
    in_one = any(layer.training for layer in _batch_norms(model))
    piece = n if in_one or torch.device(device).type != "cpu" else CPU_PIECE
    pixels = batch[4].sum().float()
    parts = []
    for start in range(0, n, piece):
        stains, rna, *wanted = (t[start : start + piece] for t in batch)
        with autocast(device):
            output = model(stains, rna)
        sums = loss(output, *wanted)
        replace(sums, pixels=pixels).loss.backward()
        parts.append((sums.flow.detach(), sums.cell.detach()))
    return LossSums(sum(p[0] for p in parts), sum(p[1] for p in parts), pixels)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step counted from 0: linear rise, then a cosine down to `FINAL_RATE` of the peak."""
    warmup = max(math.ceil(steps * WARMUP_SHARE), 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2)


def _batches(store: PatchStore, recipe: Recipe, epoch: int) -> list[list[tuple[int, int]]]:
    """(item, repetition) of each batch of an epoch, in random order; a batch holds items of one kind."""
    rng = np.random.default_rng([recipe.seed, epoch])
    by_kind: dict[tuple[int, int, int], list[tuple[int, int]]] = defaultdict(list)
    for i in range(len(store)):
        kind = store.kind(i)
        crop = min(recipe.crop_wpx, kind[1]) * min(recipe.crop_wpx, kind[2])
        by_kind[kind] += [(i, k) for k in range(max(round(kind[1] * kind[2] / crop), 1))]
    batches = []
    for kind in sorted(by_kind):
        draws = [by_kind[kind][j] for j in rng.permutation(len(by_kind[kind]))]
        batches += [draws[j : j + recipe.batch_size] for j in range(0, len(draws), recipe.batch_size)]
    return [batches[j] for j in rng.permutation(len(batches))]


def _prepared(store: PatchStore, batches: list[list[tuple[int, int]]], recipe: Recipe, epoch: int, rna_form: str | None, device: str) -> Iterator[Batch]:
    """Batches on the device; the next one is read and augmented while one is computed."""

    def draw(at: tuple[int, int]) -> Example:
        rng = np.random.default_rng([recipe.seed, epoch, *at])
        return augment(store.example(at[0], int(rng.integers(store.n_targets(at[0])))), rng, recipe.crop_wpx, recipe.membrane_dropout)

    on_gpu = torch.device(device).type == "cuda"

    def prepare(batch: list[tuple[int, int]]) -> Batch:
        made = _stacked(list(pool.map(draw, batch)), rna_form)
        return tuple(t.pin_memory() for t in made) if on_gpu else made

    with ThreadPoolExecutor(8 if on_gpu else 2) as pool:
        for _, batch in ahead(batches, prepare):
            yield _moved(batch, device)


def _shown(store: PatchStore, recipe: Recipe, epoch: int, rna_form: str | None, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of some batches of an epoch."""
    for stains, rna, *_ in _prepared(store, _batches(store, recipe, epoch)[:STATISTICS_BATCHES], recipe, epoch, rna_form, device):
        yield stains, rna


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> None:
    """Mean statistics of batches (stains, RNA image) under the present weights [precise batch normalisation, Wu and Johnson 2021]; leaves training mode on."""
    layers = _batch_norms(model)
    if not layers:
        return
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    model.train()
    for stains, rna in batches:
        with autocast(device):
            model(stains, rna)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """None in the backbones on tokens, which normalise every token on its own."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@contextmanager
def _seeded(recipe: Recipe, epoch: int) -> Iterator[None]:
    """What the network itself draws in training (stochastic depth) depends on seed and epoch only; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, epoch]).generate_state(1)[0]))
        yield


def _patience_over(state: dict[str, Any], recipe: Recipe) -> bool:
    return recipe.patience is not None and state["epoch"] - state["best_epoch"] >= recipe.patience


def _save(checkpoint: str | Path, identity: str, state: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    with whole(checkpoint) as part:
        torch.save({"identity": identity, "state": state, "model": model.state_dict(), "optimiser": optimiser.state_dict()}, part)


def _restore(checkpoint: str | Path, identity: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    if not Path(checkpoint).exists():
        return None
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if stored["identity"] != identity:
        log.warning("%s: belongs to another training (patches, recipe, base, precision, or the version of istseg or torch changed); it is not used", checkpoint)
        return None
    model.load_state_dict(stored["model"])
    optimiser.load_state_dict(stored["optimiser"])
    log.info("%s: going on after epoch %d", checkpoint, stored["state"]["epoch"])
    return stored["state"]
