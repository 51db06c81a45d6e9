"""Base models side by side on crops of the three real samples, which no model was trained on: one table, and pictures to look at.

There is no truth for the crops. Nuclei are those of the teacher `watershed`, a plain local threshold that merges some clumps and misses faint ones, so a model
that splits a clump rightly loses by it. A nucleus is *inside* when at least 80 % of its area lies in one cell, *alone* when it is the only such nucleus of that
cell. A cell is *without nucleus* when no nucleus is inside it, *untouched* when none covers it by more than 5 % of the nucleus (the paper's rule).

The samples are not in the repository: `ISTSEG_REAL_DATA` names their folder (default ../shared/data).

    python benchmarks/base_models.py assets/models/istseg-sim-v1.safetensors another.safetensors --pictures results/base_models
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from skimage.segmentation import find_boundaries

from istseg.artifacts.tiles import Tile
from istseg.network import weights
from istseg.network.inference import Predictor, open_device
from istseg.network.rna_image import rna_image
from istseg.stages import convert, segment, teach, tile

ROOT = Path(__file__).resolve().parents[1]
CASES = [
    ("brain", "merscope", "merscope_mouse_brain/region_0", "none"),
    ("brain", "merscope", "merscope_mouse_brain/region_0", "PolyT"),
    ("brain", "merscope", "merscope_mouse_brain/region_0", "PolyT;Snap25"),
    ("liver", "merscope", "merscope_mouse_liver/region_0", "none"),
    ("liver", "merscope", "merscope_mouse_liver/region_0", "Cellbound1;Cellbound2"),
    ("lung", "cosmx", "cosmx_human_lung/Lung12", "none"),
    ("lung", "cosmx", "cosmx_human_lung/Lung12", "composite_red;composite_green"),
]
INSIDE, TOUCHES = 0.8, 0.05
COLUMNS = ("crop", "stains beside DAPI", "model", "cells", "nuclei", "inside a cell", "alone in it", "cells without nucleus", "untouched", "median µm²")
PICTURE_ZOOM = 2


def prepare(folder: Path, raw: Path, platform: str, stains: str) -> tuple[Tile, np.ndarray]:
    """The tile of a crop and its nuclei (int32 label image over the region)."""
    convert.run(raw=raw, sample="crop", platform=platform, out=folder / "convert", membrane_stains=stains)
    tile.run(
        sample_json=folder / "convert" / "sample.json", zarr=folder / "convert" / "crop.zarr", out=folder, working_um=0.253, tile_um=2000.0,
        overlap_um=32.384, min_transcripts=3,
    )  # fmt: skip
    (found,) = (f for f in (folder / "tiles").iterdir() if f.is_dir())
    teach.run(
        tiles=[found], out=folder / "teach", teacher="watershed", vendor_cells=None, nuclei_weights=None, nuclei_sha256=None, cyto_weights=None,
        cyto_sha256=None, cell_diameter_um=6.5, nucleus_diameter_um=6.5, min_nucleus_area_um2=8.0, min_cell_area_um2=12.8, density_sigma_um=1.08,
        contain=0.95, intersect=0.05, device="cpu",
    )  # fmt: skip
    read = Tile.read(found)
    return read, np.load(folder / "teach" / read.tile_id / "labels.npz")["nuclei"]


def figures(cells: np.ndarray, nuclei: np.ndarray, um: float) -> dict[str, str]:
    """Shares of one label image; see the module."""
    n_cells, n_nuclei = int(cells.max()), int(nuclei.max())
    overlap = np.zeros((n_nuclei + 1, n_cells + 1))
    np.add.at(overlap, (nuclei.ravel(), cells.ravel()), 1)
    shares = overlap[1:, 1:] / np.maximum(overlap[1:].sum(1, keepdims=True), 1)
    inside = shares >= INSIDE
    alone = inside & (inside.sum(0) == 1)
    return {
        "cells": str(n_cells),
        "nuclei": str(n_nuclei),
        "inside a cell": f"{inside.any(1).mean():.2f}",
        "alone in it": f"{alone.any(1).mean():.2f}",
        "cells without nucleus": f"{(~inside.any(0)).mean():.2f}",
        "untouched": f"{(shares <= TOUCHES).all(0).mean():.2f}",
        "median µm²": f"{np.median(np.bincount(cells.ravel())[1:]) * um**2:.0f}",
    }


def picture(path: Path, read: Tile, cells: np.ndarray, nuclei: np.ndarray) -> None:
    """RNA red, stains green, DAPI blue; the same with cells (yellow) and nuclei (cyan) below it; cut to what holds nuclei."""
    rows, columns = (np.flatnonzero(nuclei.any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    stains = read.normalised()[:, *box]
    rna = rna_image(read.transcript_counts()[box], "working")
    green = stains[1:].max(0) if len(stains) > 1 else np.zeros_like(stains[0])
    colours = np.stack((0.7 * rna / max(np.quantile(rna, 0.995), 1e-6), 0.7 * green, stains[0]), -1).clip(0, 1)
    plain = cv2.resize((colours * 255).astype(np.uint8), None, fx=PICTURE_ZOOM, fy=PICTURE_ZOOM, interpolation=cv2.INTER_CUBIC)
    drawn = plain.copy()
    for labels, colour in ((nuclei, (0, 255, 255)), (cells, (255, 235, 0))):
        large = np.kron(labels[box], np.ones((PICTURE_ZOOM, PICTURE_ZOOM), labels.dtype))
        drawn[find_boundaries(large, mode="inner")] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate((plain, drawn), 0)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="Folder for the pictures.")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    data = Path(os.environ.get("ISTSEG_REAL_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; ISTSEG_REAL_DATA names the folder of the real samples")
    device = open_device(options.device)
    predictors = [Predictor(*weights.load(path), device) for path in options.models]
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for name, platform, path, stains in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            read, nuclei = prepare(Path(scratch), data / path, platform, stains)
            for predictor in predictors:
                card = predictor.card
                parameters = {
                    "logit_threshold": card.logit_threshold, "min_flow": card.min_flow, "flow_error": 0.9, "min_cell_area_um2": 12.8, "flow_steps": 60,
                }  # fmt: skip
                cells, _ = segment.predict_tile(read, predictor, parameters, batch_size=1)
                row = {"crop": name, "stains beside DAPI": stains, "model": card.name} | figures(cells, nuclei, read.working_um)
                print("| " + " | ".join(row[c] for c in COLUMNS) + " |", flush=True)
                if options.pictures:
                    picture(options.pictures / f"{name}_{stains.replace(';', '+')}_{card.name}.png", read, cells, nuclei)
    print(f"\ntorch {torch.__version__}, {options.device}, {predictors[0].precision}")


if __name__ == "__main__":
    main()
