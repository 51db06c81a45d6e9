"""calibrate: sketches of all tiles of a sample → `thresholds.json`."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.files import read_json
from istseg.artifacts.thresholds import Thresholds
from istseg.curation import density
from istseg.errors import InputError
from istseg.teachers.base import CELLS

log = logging.getLogger("istseg")

FEW_NUCLEI = 50
_REPORT_BINS = 64
_KEYS = {"sample", "tile_id", "stains", "density_sigma_um", "density", "transcripts_per_nucleus", "n_nuclei", "cells"}


def run(*, labels: list[Path], out: Path, background_percentile: float, spurious_percentile: float) -> None:
    """Write `out/thresholds.json`.

    Parameters
    ----------
    labels
        Sketches, or folders below which all `sketch.json` are taken.
    out
        Folder.
    background_percentile, spurious_percentile
        Of the density inside nuclei and of the transcripts per nucleus [paper: 5].

    Raises
    ------
    InputError
        If there is no sketch, or they are of several samples, of several kernels, or name a tile twice.

    """
    thresholds = pool(read_sketches(labels), background_percentile, spurious_percentile)
    for warning in thresholds.warnings:
        log.warning("%s: %s", thresholds.sample, warning)
    thresholds.write(Path(out) / "thresholds.json")


def read_sketches(paths: list[Path]) -> list[dict[str, Any]]:
    """Sketches by tile; every problem is reported (InputError)."""
    files = [f for path in map(Path, paths) for f in (sorted(path.rglob("sketch.json")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no sketch.json of the stage teach there.")
    sketches, problems = {}, []
    for file in files:
        sketch = read_json(file, "the sketch.json of the stage teach")
        if not set(sketch) >= _KEYS:
            problems.append(f"{file}: is not a sketch.json of this version; run teach again.")
        elif sketch["tile_id"] in sketches:
            problems.append(f"{file}: the tile {sketch['tile_id']} is there twice; give the sketches of one sample once.")
        else:
            sketches[sketch["tile_id"]] = sketch
    for key, what in (("sample", "samples"), ("density_sigma_um", "kernels of the RNA density")):
        found = sorted({s[key] for s in sketches.values()})
        if len(found) > 1:
            problems.append(f"the sketches are of several {what} ({', '.join(map(str, found))}); calibrate one sample at a time.")
    if problems:
        raise InputError(problems)
    return [sketches[tile] for tile in sorted(sketches)]


def pool(sketches: list[dict[str, Any]], background_percentile: float, spurious_percentile: float) -> Thresholds:
    """Thresholds of a sample from the sketches of its tiles; sums of integers, so their order does not matter."""
    histogram = sum(density.dense(s["density"]) for s in sketches)
    per_nucleus: Counter[int] = Counter()
    for sketch in sketches:
        counts = sketch["transcripts_per_nucleus"]
        per_nucleus.update(dict(zip(counts["values"], counts["counts"], strict=True)))
    cells = count_cells(sketches)
    best = best_layer(cells)
    best_stain = best.removeprefix(CELLS) if best and best.removeprefix(CELLS) in sketches[0]["stains"][1:] else None
    background = density.percentile(histogram, background_percentile)
    spurious = density.count_percentile(per_nucleus, spurious_percentile)
    n_nuclei = sum(per_nucleus.values())
    return Thresholds(
        sample=sketches[0]["sample"],
        density_sigma_um=sketches[0]["density_sigma_um"],
        background_density=background,
        spurious_count=spurious,
        n_nuclei=n_nuclei,
        n_nucleus_pixels=int(histogram.sum()),
        best_stain=best_stain,
        best_layer=best,
        teacher_cells={layer.removeprefix(CELLS): cells[layer] for layer in sorted(cells)},
        percentiles={"background": background_percentile, "spurious": spurious_percentile},
        density_histogram=_coarse(histogram),
        count_histogram={"values": sorted(per_nucleus), "counts": [per_nucleus[v] for v in sorted(per_nucleus)]},
        warnings=_warnings(n_nuclei, background, background_percentile, spurious),
    )


def count_cells(sketches: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Layer → `{"cells", "consistent"}` of all tiles together."""
    cells: dict[str, dict[str, int]] = {}
    for sketch in sketches:
        for layer, numbers in sketch["cells"].items():
            sums = cells.setdefault(layer, dict.fromkeys(numbers, 0))
            for name, n in numbers.items():
                sums[name] += n
    return cells


def best_layer(cells: dict[str, dict[str, int]]) -> str | None:
    """The layer with the most cells that contain exactly one nucleus, of equals the one with fewer cells; None without any layer."""
    return max(sorted(cells), key=lambda c: (cells[c]["consistent"], -cells[c]["cells"]), default=None)


def _coarse(histogram: np.ndarray) -> dict[str, list[float]]:
    """The histogram in few bins for the report; the first bin begins at 0 and holds the zeros."""
    step = density.BINS // _REPORT_BINS
    counts = histogram[1:].reshape(_REPORT_BINS, step).sum(1)
    edges = density.bin_edges()[::step]
    filled = np.flatnonzero(counts)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 1)
    return {"edges": [0.0, *edges[first : last + 1].tolist()], "counts": [int(histogram[0]), *counts[first:last].tolist()]}


def _warnings(n_nuclei: int, background: float, percent: float, spurious: float) -> list[str]:
    found = []
    if n_nuclei < FEW_NUCLEI:
        found.append(
            f"The teacher found {n_nuclei} nuclei; thresholds from fewer than {FEW_NUCLEI} are uncertain. Check nucleus stain and nucleus_diameter_um."
        )
    if n_nuclei and background == 0:
        found.append(
            f"At least {percent:g} % of the pixels inside nuclei are far from any transcript, so the background density is 0 and no pixel is background. "
            "The panel is sparse for the kernel (density_sigma_um), or transcripts and nuclei do not lie on each other."
        )
    elif n_nuclei and spurious == 0:
        found.append(
            "Many nuclei hold no transcript, so the spurious count is 0 and no cell can be spurious. Check that transcripts and nuclei lie on each other."
        )
    return found
