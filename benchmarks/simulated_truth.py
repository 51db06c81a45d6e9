"""Cells found against the truth of a simulated MERSCOPE sample with broken contours: teacher alone, base model, fine-tuned model. Prints one table.

A share of the cells has lost a part of its contour in every membrane stain, each stain on its own. The truth is used for scoring only: the fine-tuned model has
seen the teacher's curated labels of the same sample, as in real use. The last row is what the pipeline delivers: where the gate refuses the fine-tuned model,
the row before it shows what was refused. Simulated tissue only: the base model was trained on simulated tissue too (another simulator, other
seeds), so the figures say how the parts compare on a hard sample and not how good they are on real tissue.

    python benchmarks/simulated_truth.py
    python benchmarks/simulated_truth.py --size-um 800 --epochs 20 --contour 0.9
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
import torch

from istseg.artifacts import cells as cells_file
from istseg.artifacts.tiles import TileIndex
from istseg.qc.matching import match_polygons, scores
from istseg.stages import calibrate, convert, curate, merge, segment, simulate, teach, tile, train

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "assets" / "models" / "istseg-sim-v0.safetensors"
IOU = 0.5
COLUMNS = ("segmentation", "cells", "found", "found degraded", "found intact", "AP@0.5", "mean best IoU", "IoU degraded", "seconds")


def prepare(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Simulated sample → curated patches; gives the tile folders."""
    simulate.run(
        out=folder / "sim",
        platform="merscope",
        width_um=options.size_um,
        height_um=options.size_um,
        planes=1,
        stains=options.stains,
        degraded_fraction=options.degraded,
        degraded_contour=options.contour,
        transcripts_per_um2=options.transcripts,
        empty_fraction=0.1,
        generation="parquet",
        seed=options.seed,
    )
    manifest = next((folder / "sim" / "raw").rglob("detected_transcripts*"))
    convert.run(raw=manifest.parent, sample="s", platform="merscope", out=folder / "convert", z_planes="0")
    tile.run(
        sample_json=folder / "convert" / "sample.json",
        zarr=folder / "convert" / "s.zarr",
        out=folder,
        working_um=0.253,
        tile_um=750.0,
        overlap_um=32.384,
        min_transcripts=3,
    )
    return [folder / "tiles" / t["tile_id"] for t in TileIndex.read(folder / "tiles" / "tiles.json").tiles]


def teach_and_curate(folder: Path, tiles: list[Path]) -> None:
    """The watershed teacher with the pipeline's defaults, thresholds, patches."""
    teach.run(
        tiles=tiles,
        out=folder / "teach",
        teacher="watershed",
        vendor_cells=None,
        nuclei_weights=None,
        nuclei_sha256=None,
        cyto_weights=None,
        cyto_sha256=None,
        cell_diameter_um=6.5,
        nucleus_diameter_um=6.5,
        min_nucleus_area_um2=8.0,
        min_cell_area_um2=12.8,
        density_sigma_um=1.08,
        contain=0.95,
        intersect=0.05,
        device="cpu",
    )
    calibrate.run(labels=[folder / "teach"], out=folder / "calibrate", background_percentile=5.0, spurious_percentile=5.0)
    curate.run(
        tiles=tiles,
        labels=folder / "teach",
        thresholds=folder / "calibrate" / "thresholds.json",
        out=folder / "curate",
        contain=0.95,
        intersect=0.05,
        max_background=0.05,
        density_sigma_um=1.08,
        patches=True,
        min_objects=3,
    )


def fine_tune(folder: Path, options: argparse.Namespace) -> dict:
    """Train from the base; gives the decision of the gate."""
    train.run(
        patches=[folder / "curate" / "patches"],
        out=folder / "train",
        name="finetuned",
        base=str(BASE),
        base_sha256=None,
        backbone=None,
        rna_input=None,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=8,
        membrane_dropout=0.25,
        validation_fraction=0.05,
        holdout_fraction=0.1,
        max_patches=options.max_patches,
        crop_wpx=options.crop_wpx,
        device=options.device,
        seed=options.seed,
    )
    return json.loads((folder / "train" / "decision.json").read_text())


def cells_of(folder: Path, tiles: list[Path], model: Path, name: str, device: str) -> Path:
    """Segment and merge with a model; gives the folder of merge."""
    segment.run(
        tiles=tiles,
        model=model,
        out=folder / f"segment-{name}",
        model_sha256=None,
        logit_threshold=None,
        min_flow=None,
        flow_error=0.9,
        min_cell_area_um2=12.8,
        flow_steps=60,
        batch_size=1,
        device=device,
    )
    merge.run(
        tiles_json=folder / "tiles" / "tiles.json",
        cells=folder / f"segment-{name}",
        teacher=folder / "teach",
        thresholds=folder / "calibrate" / "thresholds.json",
        out=folder / f"merge-{name}",
    )
    return folder / f"merge-{name}"


def row(name: str, truth: gpd.GeoDataFrame, path: Path, seconds: float) -> dict[str, str]:
    """Scores of one segmentation."""
    predicted = cells_file.read(path)
    overlap = match_polygons(truth.geometry.to_numpy(), predicted.geometry.to_numpy())
    figures = scores(overlap, (IOU,))
    degraded = truth["degraded"].to_numpy(bool)
    found, best = overlap.matches(IOU) >= 0, overlap.best_iou()

    def share(values: np.ndarray) -> str:
        return f"{values.mean():.3f}" if len(values) else "-"

    return {
        "segmentation": name,
        "cells": str(len(predicted)),
        "found": share(found),
        "found degraded": share(found[degraded]),
        "found intact": share(found[~degraded]),
        "AP@0.5": f"{figures[f'ap@{IOU:g}'] or 0:.3f}",
        "mean best IoU": share(best),
        "IoU degraded": share(best[degraded]),
        "seconds": f"{seconds:.0f}",
    }


def show(rows: list[dict[str, str]]) -> None:
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for r in rows:
        print("| " + " | ".join(r[c] for c in COLUMNS) + " |")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("istseg", "torch", "numpy", "scikit-image"))
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} torch threads; Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-um", type=float, default=450.0, help="Side of the sample.")
    parser.add_argument("--stains", default="Cellbound1;PolyT")
    parser.add_argument("--degraded", type=float, default=0.3, help="Share of the cells with a broken contour.")
    parser.add_argument("--contour", type=float, default=0.5, help="Share of their contour that is gone.")
    parser.add_argument("--transcripts", type=float, default=1.0, help="Per µm².")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-patches", type=int, default=60)
    parser.add_argument("--crop-wpx", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Keep the files here; default: a temporary folder.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        tiles = prepare(folder, options)
        begun = time.monotonic()
        teach_and_curate(folder, tiles)
        seconds_teacher = time.monotonic() - begun
        truth = gpd.read_parquet(folder / "sim" / "truth" / "cells.parquet")
        truth = truth[shapely.area(truth.geometry.to_numpy()) > 0]
        begun = time.monotonic()
        base = cells_of(folder, tiles, BASE, "base", options.device)
        seconds_base = time.monotonic() - begun
        rows = [
            row("teacher alone (watershed)", truth, base / "teacher.cells.parquet", seconds_teacher),
            row("base model", truth, base / "istseg.cells.parquet", seconds_base),
        ]
        begun = time.monotonic()
        decision = fine_tune(folder, options)
        trained = folder / "train" / ("model.safetensors" if decision["accepted"] else "refused.safetensors")
        tuned = cells_of(folder, tiles, trained, "finetuned", options.device)
        seconds = time.monotonic() - begun
        rows.append(row("fine-tuned, before the gate", truth, tuned / "istseg.cells.parquet", seconds))
        delivered = tuned if decision["accepted"] else base
        rows.append(row(f"delivered: {'fine-tuned' if decision['accepted'] else 'base'}", truth, delivered / "istseg.cells.parquet", seconds))
        n_patches = len(list((folder / "curate" / "patches").glob("*.npz")))
    print(
        f"simulated MERSCOPE, {options.size_um:g} x {options.size_um:g} µm, stains DAPI;{options.stains}, {options.transcripts:g} transcripts/µm², "
        f"seed {options.seed}; "
        f"{len(truth)} true cells, {int(truth['degraded'].sum())} with {options.contour:.0%} of the contour gone; "
        f"{n_patches} patches, {options.epochs} epochs, crops of {options.crop_wpx}, rate {options.learning_rate:g}"
    )
    print(f"found: share of the true cells matched one to one at IoU >= {IOU:g}. Gate: {decision['reason']}")
    print(f"{machine()}; {time.monotonic() - started:.0f} s in all\n")
    show(rows)


if __name__ == "__main__":
    sys.exit(main())
