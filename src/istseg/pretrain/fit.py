"""Training of the base model: painted batches, a falling rate, averaged weights."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from istseg.network.training import CLIP_NORM, backward, measure_statistics
from istseg.pretrain.kinds import KINDS, Kind
from istseg.pretrain.lessons import MEMBRANES, Lesson, make_lesson
from istseg.pretrain.randomness import Draw
from istseg.pretrain.tissue import Tissues, make_tissues

log = logging.getLogger("istseg")

AVERAGE = 0.999
"""Decay of the averaged weights, at most; shorter at the start."""
FINAL_RATE = 0.02
TISSUES_AT_ONCE = {"cpu": 2, "cuda": 32}
PAINTED_AT_ONCE = {"cpu": 1, "cuda": 3}
"""Batches that are painted together: a GPU is not filled by one."""
REFRESH_EVERY = 18
STATISTICS_BATCHES = 32


@dataclass(frozen=True)
class Recipe:
    """How to train the base model.

    Attributes
    ----------
    steps
        Optimiser steps.
    seconds
        Stop earlier after so many seconds, with the rate falling in time; None: never. Such a training cannot be repeated exactly.
    batch_size, side
        Crops of a step, and their side in working pixels.
    n_tissues, tissue_side
        Tissues that are kept, and their side; some are replaced by new ones as training goes on.
    learning_rate, weight_decay
        Of AdamW; the rate rises over the first `warmup` steps and falls as a cosine.
    freeze_norm
        Keep the running statistics of batch normalisation: right when going on from a trained model in small batches.
    """

    steps: int = 12_000
    seconds: float | None = None
    batch_size: int = 20
    side: int = 320
    n_tissues: int = 2048
    tissue_side: int = 640
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: int = 300
    freeze_norm: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """Averaged weights and what happened: `steps` made, `crops`, `tissues` and `seconds`; `curve` holds `step`, `loss`, `flow`, `cell`, `rate`."""

    model: nn.Module
    facts: dict[str, Any]
    curve: list[dict[str, float]]


def fit(model: nn.Module, recipe: Recipe, device: torch.device, kind: Kind = KINDS["istseg"]) -> Trained:
    """Train.

    Parameters
    ----------
    model
        Starting weights; changed.
    recipe
        How.
    device
        Of `network.inference.open_device`.
    kind
        Of the network.
    """
    draw = Draw(recipe.seed, device)
    started = time.monotonic()
    tissues = _stock(draw, recipe)
    n_made = len(tissues)
    log.info("%d tissues in %.0f s", n_made, time.monotonic() - started)
    model = model.to(device, memory_format=torch.channels_last).train(not recipe.freeze_norm)
    averaged = copy.deepcopy(model)
    optimiser = _optimiser(model, recipe)
    lessons = _lessons(draw, tissues, recipe, kind)
    curve: list[dict[str, float]] = []
    begun = time.monotonic()
    step = 0
    while step < recipe.steps:
        done = step / recipe.steps
        if recipe.seconds is not None:
            done = max(done, (time.monotonic() - begun) / recipe.seconds)
            if done >= 1:
                break
        rate = recipe.learning_rate * max((1 + math.cos(math.pi * done)) / 2, FINAL_RATE) * min(1, (step + 1) / recipe.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        lesson = next(lessons)
        sums = backward(model, (lesson.stains, lesson.rna, lesson.maps, lesson.cell, lesson.teach), device.type, kind.loss)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        _average(averaged, model, min(AVERAGE, step / (20 + step)))
        if step % REFRESH_EVERY == 0:
            new = TISSUES_AT_ONCE[device.type] if device.type == "cpu" else 8
            tissues.put(draw.integers(0, len(tissues), new), make_tissues(draw, new, recipe.tissue_side))
            n_made += new
        if step % 10 == 0:
            flow, cell = float(sums.flow / sums.pixels), float(sums.cell / sums.pixels)
            curve.append({"step": step, "loss": flow + cell, "flow": flow, "cell": cell, "rate": rate})
            recent = curve[-10:]
            mean = {k: sum(c[k] for c in recent) / len(recent) for k in ("loss", "flow", "cell")}
            log.info("step %d: loss %.4f (flow %.4f, cell %.4f), %.1f s", step, mean["loss"], mean["flow"], mean["cell"], time.monotonic() - begun)
    facts = asdict(recipe) | {"steps": step, "crops": step * recipe.batch_size, "tissues": n_made, "training_seconds": round(time.monotonic() - begun)}
    return Trained(_finished(averaged, _lessons(draw, tissues, recipe, kind), recipe, device), facts, curve)


def _stock(draw: Draw, recipe: Recipe) -> Tissues:
    at_once = TISSUES_AT_ONCE[draw.device.type]
    return Tissues.join([make_tissues(draw, min(at_once, recipe.n_tissues - i), recipe.tissue_side) for i in range(0, recipe.n_tissues, at_once)])


def _lessons(draw: Draw, tissues: Tissues, recipe: Recipe, kind: Kind) -> Iterator[Lesson]:
    """Batches without end; the stock of tissues may change meanwhile."""
    while True:
        membranes = list(MEMBRANES)[int(draw.choice(tuple(MEMBRANES.values()), 1))]
        at_once = recipe.batch_size * PAINTED_AT_ONCE[draw.device.type]
        yield from make_lesson(draw, tissues, at_once, membranes, recipe.side, kind.targets).split(recipe.batch_size)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; biases, norms and other vectors do not decay."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99))


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    old, new = ([v for v in m.state_dict().values() if v.is_floating_point()] for m in (averaged, model))
    torch._foreach_lerp_(old, new, 1 - decay)


@torch.no_grad()
def _finished(averaged: nn.Module, lessons: Iterator[Lesson], recipe: Recipe, device: torch.device) -> nn.Module:
    """A copy of the averaged weights, its batch-norm statistics measured anew unless they are frozen (those of the average are not the average of those)."""
    model = copy.deepcopy(averaged)
    if recipe.freeze_norm:
        return model.eval()
    shown = ((lesson.stains, lesson.rna) for lesson in islice(lessons, STATISTICS_BATCHES))
    measure_statistics(model, shown, device.type)
    return model.eval()
