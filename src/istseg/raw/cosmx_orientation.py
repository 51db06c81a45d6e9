"""How CosMx images lie against their transcripts: by vendor labels, else by where the stains are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from istseg.raw import agreement
from istseg.raw.cosmx_geometry import FOVS_TESTED, MIN_AGREEMENT, LocalRows, label_agreement

_CLEAR = 0.05
_FLOOR = 0.1
_THUMBNAIL = 256

Read = Callable[[int], np.ndarray]


def by_labels(rows: LocalRows, labels: dict[int, Any], read: Read, where: str, problems: list[str], warnings: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Flip under which labels are the transcripts' cells, and the evidence; None when no label and no assigned transcript meet.

    Parameters
    ----------
    rows
        Sample of the transcripts.
    labels
        FOVs with labels.
    read
        FOV → (y, x) labels.
    where
        Folder, for the messages.
    problems, warnings
        Get what is wrong: an agreement below 90 % is a problem.
    """
    shares, by_fov = label_agreement(rows, labels, read)
    if not shares:
        return None, {}
    best = max(shares, key=lambda n: shares[n])
    if shares[best] < MIN_AGREEMENT:
        listing = ", ".join(f"{n} {s:.1%}" for n, s in shares.items())
        problems.append(
            f"{where}: labels and transcripts do not fit together under any flip (share of transcripts whose label is their cell_ID: {listing}; "
            f"{MIN_AGREEMENT:.0%} are needed). Labels and tables must come from one export and one segmentation."
        )
    bad = [f for f, s in by_fov.items() if s < MIN_AGREEMENT]
    if bad and shares[best] >= MIN_AGREEMENT:
        warnings.append(f"In fields of view {', '.join(bad)} labels and transcripts agree in less than {MIN_AGREEMENT:.0%}.")
    rounded = {n: round(s, 4) for n, s in shares.items()}
    return best, {"evidence": "labels", "agreement": rounded, "agreement_by_fov": {f: round(s, 4) for f, s in by_fov.items()}}


def by_density(
    rows: LocalRows, fovs: list[int], frame: tuple[int, int], sign_y: int, read: Callable[[int, tuple[int, int]], np.ndarray], warnings: list[str]
) -> tuple[str, dict[str, Any]]:
    """Flip under which transcripts lie best where the stains are; the usual one when that is not clear. Always tells so in `warnings`.

    Parameters
    ----------
    rows
        Sample of the transcripts.
    fovs
        FOVs with an image.
    frame
        (height, width) of a FOV in table pixels.
    sign_y
        Of `y_global_px` against `y_local_px`. The stage's y runs upwards and image rows run downwards, so the usual flip follows from it.
    read
        (FOV, shape) → thumbnail (c, y, x) of that shape.
    warnings
        Gets the figures.
    """
    counts = {int(f): int(n) for f, n in zip(*np.unique(rows.fov, return_counts=True), strict=True) if int(f) in fovs}
    tested = sorted(counts, key=lambda f: (-counts[f], f))[:FOVS_TESTED]
    totals = dict.fromkeys(agreement.FLIPS, 0.0)
    for fov in tested:
        density = _density(rows, fov, frame)
        found = agreement.density_evidence(read(fov, density.shape), density)
        for name, value in found.get("correlation", {}).items():
            totals[name] += value / len(tested)
    usual = "y" if sign_y > 0 else "none"
    order = sorted(totals, key=lambda n: (-totals[n], n != usual))
    clear = totals[order[0]] > _FLOOR and totals[order[0]] - totals[order[1]] > _CLEAR
    best = order[0] if clear else usual
    how = "the best is taken" if clear else f"which tells nothing; the usual one ({usual}) is taken"
    listing = ", ".join(f"{n} {v:.2f}" for n, v in totals.items())
    warnings.append(f"Without labels the flip of the images was judged by how transcripts follow the stains ({listing}), {how}: check the overview.")
    return best, {"evidence": "density" if clear else "none", "correlation": {n: round(v, 4) for n, v in totals.items()}}


def _density(rows: LocalRows, fov: int, frame: tuple[int, int]) -> np.ndarray:
    shape = min(_THUMBNAIL, frame[0]), max(1, round(min(_THUMBNAIL, frame[0]) * frame[1] / frame[0]))
    picked = rows.of(fov)
    y = np.floor(rows.y[picked] * shape[0] / frame[0]).astype(int)
    x = np.floor(rows.x[picked] * shape[1] / frame[1]).astype(int)
    inside = (y >= 0) & (x >= 0) & (y < shape[0]) & (x < shape[1])
    counts = np.zeros(shape, np.int64)
    np.add.at(counts, (y[inside], x[inside]), 1)
    return counts
