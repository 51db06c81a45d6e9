"""Distributions and warnings for `metrics.json`."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import Any

import numpy as np
import pandas as pd

from istseg.artifacts.metrics import FLAGS

MEASURES = ("n_transcripts", "n_genes", "area_um2")
_QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
_BINS = 40


def quantiles(obs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Of each of `MEASURES`; empty without cells."""
    if not len(obs):
        return {}
    result = {}
    for name in MEASURES:
        values = obs[name].to_numpy(float)
        result[name] = {key: float(v) for key, v in zip(_QUANTILES, np.percentile(values, list(_QUANTILES.values())), strict=True)}
        result[name]["mean"] = float(values.mean())
    return result


def histograms(obs: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Of each of `MEASURES`, in bins of a round width (1, 2 or 5 × 10ⁿ) that start at 0, so that segmentations can be compared; the last holds all above."""
    if not len(obs):
        return {}
    result = {}
    for name in MEASURES:
        values = obs[name].to_numpy(float)
        width = round_up(max(float(np.percentile(values, 99)) / _BINS, 1.0 if name.startswith("n_") else 1e-3))
        n = max(ceil((np.percentile(values, 99) + 1e-9) / width), 1) + 1
        counts = np.bincount(np.minimum(values / width, n - 1).astype(np.int64), minlength=n)
        result[name] = {"edges": [float(np.round(i * width, 6)) for i in range(n + 1)], "counts": counts.tolist()}
    return result


def round_up(value: float) -> float:
    """The next of 1, 2, 5 × 10ⁿ."""
    decade = 10.0 ** floor(log10(value))
    return next(m * decade for m in (1, 2, 5, 10) if m * decade >= value * (1 - 1e-9))


def flag_counts(obs: pd.DataFrame, in_image: np.ndarray) -> dict[str, Any]:
    """Cells by flag, and the rates of the paper's metric.

    Parameters
    ----------
    in_image
        bool (cells,): centroid inside the image. Only these are judged: where nothing was imaged no nucleus can be found, and a vendor's cells may
        reach beyond a mosaic that was cropped.

    """
    inside = obs.loc[in_image, "qc_flag"]
    rates = {"spurious_rate": ["spurious"], "inconsistent_rate": ["inconsistent"], "without_nucleus_rate": ["no_nucleus", "spurious"]}
    return {
        **{name: int((inside == name).sum()) for name in FLAGS},
        "outside_image": int((~in_image).sum()),
        **{name: float(inside.isin(flags).mean()) if len(inside) else None for name, flags in rates.items()},
    }


def nucleus_counts(containing: np.ndarray, intersecting: np.ndarray) -> dict[str, Any]:
    """Nuclei by the number of cells that contain and intersect them."""
    one = int((containing == 1).sum())
    return {
        "total": len(containing),
        "in_one_cell": one,
        "fraction_in_one_cell": one / len(containing) if len(containing) else None,
        "in_no_cell": int((intersecting == 0).sum()),
    }


def warnings(
    obs: pd.DataFrame, transcripts: dict[str, Any], flags: dict[str, Any], nuclei: dict[str, Any], seams: dict[str, Any], spurious_count: float
) -> list[str]:
    """Sentences for the user, worst first."""
    if not len(obs):
        return ["No cells at all: look at the overview for tissue, at the stains' ranges and at the warnings of the earlier stages."]
    said = []
    if not nuclei["total"]:
        said.append("No nuclei were found: every cell counts as being without nucleus, and the flags say nothing.")
    share = transcripts["fraction_in_cells"]
    if share is None:
        said.append("No transcripts lie in the image: all cells are empty.")
    elif share < 0.3:
        said.append(f"Only {share:.0%} of the transcripts lie in cells: many cells are missed or too small, or the transcripts do not fit the image.")
    if (flags["inconsistent_rate"] or 0) > 0.25:
        said.append(f"{flags['inconsistent_rate']:.0%} of the cells cut a nucleus or contain several: check the nucleus stain, the plane and the cell size.")
    if (flags["spurious_rate"] or 0) > 0.1:
        said.append(f"{flags['spurious_rate']:.0%} of the cells are spurious: no nucleus and fewer than {spurious_count:g} transcripts.")
    if nuclei["total"] and nuclei["in_no_cell"] > 0.3 * nuclei["total"]:
        said.append(f"{nuclei['in_no_cell'] / nuclei['total']:.0%} of the nuclei lie in no cell: cells are missed.")
    if (obs["n_transcripts"] == 0).mean() > 0.1:
        said.append(f"{(obs['n_transcripts'] == 0).mean():.0%} of the cells have no transcript.")
    if flags["outside_image"]:
        said.append(f"{flags['outside_image']} cells lie outside the image: they are in the counts but are not judged by flags.")
    unmeasured = int(obs["background_fraction"].isna().sum()) - flags["outside_image"]
    if unmeasured > 0:
        said.append(f"{unmeasured} cells lie outside the tissue that was tiled or are smaller than a pixel: they have no stain means.")
    for key, what in (("density_ratio", "density"), ("area_ratio", "mean area")):
        ratio = seams[key]
        if ratio is not None and seams["n_border"] >= 100 and not 0.8 <= ratio <= 1.25:
            said.append(f"The {what} of cells near borders of tiles is {ratio:.2f} times that of the others: a seam.")
    controls = transcripts["controls_in_cells"] / max(transcripts["in_cells"] + transcripts["controls_in_cells"], 1)
    if controls > 0.05:
        said.append(f"{controls:.0%} of the molecules in cells are control probes: much of the decoding is wrong.")
    return said
