"""Accept a fine-tuned model, or keep its base: both are judged on held-out patches against curated cells, nuclei and transcripts (`network.tally`).

Curated cells come from the teacher, so a model can gain on them by learning the teacher's faults, and a teacher that is wrong throughout cannot be told from
truth by its own labels. Four things guard against it. The rates of spurious and inconsistent cells judge by nuclei and transcripts, over all predicted cells.
`GUARDS` do so too, and can only refuse: cells that are too narrow leave transcripts outside, cells that are too wide hold few for their area, cells that are
cut leave parts without nucleus, cells that are merged or displaced do not have a nucleus of their own.
Where the teacher labelled by several stains, its label images are held against each other on the cells that they share: labels that agree with each other
less than the base agrees with them are noisier than the base, and cannot show that another model is better.
Labels that lie beside their nuclei, all in one direction, are refused as they are: augmentation turns the direction away, so the model does not show it.

A figure of a small hold-out is noisy, and a difference counts only when it exceeds `NOISE` standard errors. These are of the paired difference: both models are
counted in the same squares of tissue, a place where they agree adds no noise, and one cell that changes several counts at once is one event. A cohort is
judged as a whole, and no sample of it may be made worse.

What no rule here can see: outlines that are wrong between touching cells, where neither nuclei nor transcripts tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from istseg.network.tally import MIN_CELLS, NOISE, RATIOS, Tally, pool

MARGIN = 0.01
"""A difference counts when it is larger than this and than its noise."""
UNCHECKED_MARGIN = {"ap50": 0.03, "boundary_iou": 0.10}
"""What a gain against the labels must exceed where no second stain checks the labels: a model gains a little on any teacher by learning its style of outlines
(measured: 0.06 of boundary IoU on a watershed's cells, while the model became worse by the truth)."""

GUARDS = {
    "nuclei_in_own_cell": (1, 0.03),
    "transcripts_in_cells": (1, 0.05),
    "density_in_cells": (1, 0.15),
    "cells_without_nucleus": (-1, 0.10),
}
"""Figure → (1: more is better, −1: less is; how much worse than the base's it may be). Wider than `MARGIN`, because a right correction moves them too: cells
that had swallowed background give up some transcripts, cells that the base had missed hold fewer of them, and cells without nucleus in the plane are real."""

LIMITS = {"spurious_rate": (-1, 0.25), "inconsistent_rate": (-1, 0.25), "cells_without_nucleus": (-1, 0.5), "density_in_cells": (1, 0.25)}
"""Figure → (as in `GUARDS`; the worst that it may be) where the base has none because it predicts no cell."""

LABEL_OFFSET_UM = 0.75
"""Length of the mean displacement of curated cells from their nuclei that may be: nuclei lie anywhere in their cells, in no direction more than in others."""

HIGHER_IS_BETTER = ("ap50", "boundary_iou")
LOWER_IS_BETTER = ("spurious_rate", "inconsistent_rate")


def noise(base: Tally, finetuned: Tally) -> dict[str, float]:
    """Noise of the difference of each figure that both have: `NOISE` standard errors, at least what one count makes.

    Parameters
    ----------
    base, finetuned
        Of the same patches.
    """
    figures = (figure for figure in RATIOS if base.value(figure) is not None and finetuned.value(figure) is not None)
    return {figure: base.factor(figure) * _noise(*(tally.by_square(count) for tally in (base, finetuned) for count in RATIOS[figure])) for figure in figures}


def _noise(top_a: np.ndarray, bottom_a: np.ndarray, top_b: np.ndarray, bottom_b: np.ndarray) -> float:
    """Of the difference of two ratios of sums over the same squares: their paired standard error, linearised [Cochran, Sampling Techniques, 1977, ch. 6]."""
    used = int(((bottom_a > 0) | (bottom_b > 0)).sum())
    if used < 2:
        return 1.0
    a, b = ((top - top.sum() / bottom.sum() * bottom) / bottom.sum() for top, bottom in ((top_a, bottom_a), (top_b, bottom_b)))
    error = float(np.sqrt(((b - a) ** 2).sum() * used / (used - 1)))
    return max(NOISE * error, 1 / min(bottom_a.sum(), bottom_b.sum()))


def foregone(base: Mapping[str, Tally]) -> str | None:
    """Why the base will be kept whatever a training gives, or None: base and labels alone say so.

    Parameters
    ----------
    base
        Of `evaluate`.
    """
    whole = pool(base)
    curated = int(whole.total("curated"))
    if curated < MIN_CELLS:
        return f"the base is kept: only {curated} curated cells lie on held-out patches, at least {MIN_CELLS} are needed to decide"
    if whole.total("shared") >= MIN_CELLS:
        by_base, by_teacher = whole.value("shared_cells_found"), whole.value("shared_cells_found_by_teacher")
        shared = whole.by_square("shared")
        step = max(MARGIN, _noise(whole.by_square("shared_by_teacher"), shared, whole.by_square("shared_by_model"), shared))
        if by_base > by_teacher + step:
            return (
                f"the base is kept: of the curated cells that the teacher labelled by several stains it finds {by_base:.1%}, the teacher's other stains "
                f"{by_teacher:.1%}: labels that are noisier than the base cannot show an improvement; use a better teacher"
            )
    for length, uncertain, sample, layer in whole.offsets()[:1]:
        if length > LABEL_OFFSET_UM + uncertain:
            return (
                f"the base is kept: the curated cells of {sample}, {layer} lie {length:.2f} µm beside their nuclei, all in one direction (at most "
                f"{LABEL_OFFSET_UM} µm may be): stains or labels are displaced; align them"
            )
    return None


def decide(base: Mapping[str, Tally], finetuned: Mapping[str, Tally]) -> tuple[bool, str]:
    """Accept the fine-tuned model when it is better in something and worse in nothing, in no sample either; else keep the base.

    Parameters
    ----------
    base, finetuned
        Of `evaluate`, on the same patches.

    Returns
    -------
    (accepted, reason in words)
    """
    if reason := foregone(base):
        return False, reason
    before, after = pool(base), pool(finetuned)
    better, worse = compare(before.figures(), after.figures(), noise(before, after))
    judged = [sample for sample in base if len(base) > 1 and base[sample].total("curated") >= MIN_CELLS]
    for sample in judged:
        _, worse_here = compare(base[sample].figures(), finetuned[sample].figures(), noise(base[sample], finetuned[sample]))
        worse += [f"{change} in the sample {sample}" for change in worse_here]
    if worse:
        return False, "the base is kept: fine-tuning made worse " + ", ".join(worse) + (f" (better: {', '.join(better)})" if better else "")
    if not better:
        return False, "the base is kept: fine-tuning changed nothing by more than the margin and the noise"
    return True, "fine-tuning is accepted: better " + ", ".join(better) + ", nothing worse"


def compare(before: Mapping[str, Any], after: Mapping[str, Any], noise: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """What is better and what is worse, in words; `GUARDS` and `LIMITS` can only be worse.

    Parameters
    ----------
    before, after
        Of `Tally.figures`.
    noise
        Figure → what a difference must exceed, besides its margin.
    """
    by_base, by_teacher = before.get("shared_cells_found"), before.get("shared_cells_found_by_teacher")
    checked = by_base is not None and before["shared_cells"] >= MIN_CELLS and by_base < by_teacher
    better, worse = [], []
    rules = {name: (1 if name in HIGHER_IS_BETTER else -1, MARGIN) for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)} | GUARDS
    for name, (sign, margin) in rules.items():
        old, new = before.get(name), after.get(name)
        if new is None:
            if old is not None:
                worse.append(f"{name} {old:.3f} → none (it predicts no cell)")
            continue
        if old is None:
            limit_sign, limit = LIMITS.get(name, (1, -np.inf))
            if (new - limit) * limit_sign < 0:
                worse.append(f"{name} none → {new:.3f} (the base predicts no cell; the limit is {limit:g})")
            continue
        gain, step = (new - old) * sign, max(margin, noise.get(name, 0.0))
        if gain < -step:
            worse.append(f"{name} {old:.3f} → {new:.3f}")
        if name not in GUARDS and gain > (step if checked else max(step, UNCHECKED_MARGIN.get(name, 0.0))):
            better.append(f"{name} {old:.3f} → {new:.3f}")
    return better, worse
