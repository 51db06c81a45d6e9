"""Base models side by side on tissue that none was trained on: crops of the three real samples, with pictures to look at, or simulated tissue.

There is no truth for the crops. Nuclei are those of the teacher `watershed`, a plain local threshold that merges some clumps and misses faint ones, so a model
that splits a clump rightly loses by it. A nucleus is *inside* when at least 80 % of its area lies in one cell, *alone* when it is the only such nucleus of that
cell. A cell is *without nucleus* when no nucleus is inside it, *untouched* when none covers it by more than 5 % of the nucleus (the paper's rule).

The samples are not in the repository: `ISTSEG_REAL_DATA` names their folder (default ../shared/data).

The simulated tissue is that of `istseg simulate`, another one than base models are painted for (`istseg pretrain`); its cells are known.

    python benchmarks/base_models.py assets/models/istseg-sim-v2.safetensors another.safetensors --pictures results/base_models
    python benchmarks/base_models.py assets/models/istseg-sim-v2.safetensors another.safetensors --simulated
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
from finetuning import MEASURES, make, predicted, score, show, show_head, texts
from PIL import Image
from skimage.segmentation import find_boundaries

from istseg.artifacts.labels import TileLabels
from istseg.artifacts.tiles import Tile
from istseg.cli import road
from istseg.cli.options import Platform
from istseg.curation import rules
from istseg.network.rna_image import rna_image
from istseg.teachers.base import NUCLEI

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
SIMULATED = {
    "two stains": {"autofluorescence": 0.0, "stains": "Cellbound1;Cellbound2"},
    "seven tenths of the contour of 30 % gone": {"autofluorescence": 0.0, "contour": 0.7, "stains": "Cellbound1;Cellbound2"},
    "no stain": {"autofluorescence": 0.0, "stains": "none"},
    "granules as bright as a contour": {"autofluorescence": 1.0, "stains": "Cellbound1"},
    "PolyT": {"autofluorescence": 0.0, "stains": "PolyT"},
}
"""Tissue, and how `finetuning.make` makes it; 200 µm each."""
SEED = 101
INSIDE, TOUCHES = 0.8, 0.05
COLUMNS = ("crop", "stains beside DAPI", "model", "cells", "nuclei", "inside a cell", "alone in it", "cells without nucleus", "untouched", "median µm²")
PICTURE_ZOOM = 2


def prepare(folder: Path, raw: Path, platform: str, stains: str) -> tuple[Tile, np.ndarray]:
    """The tile of a crop and its nuclei (int32 label image over the region)."""
    road.convert(raw=raw, sample="crop", platform=Platform(platform), out=folder / "convert", membrane_stains=stains)
    road.tile(sample_json=folder / "convert" / "sample.json", zarr=folder / "convert" / "crop.zarr", out=folder, tile_um=2000.0)
    (found,) = (f for f in (folder / "tiles").iterdir() if f.is_dir())
    road.teach(tile=[found], out=folder / "teach")
    read = Tile.read(found)
    return read, TileLabels.read(folder / "teach" / read.tile_id, [NUCLEI]).layers[NUCLEI]


def figures(cells: np.ndarray, nuclei: np.ndarray, um: float) -> dict[str, str]:
    """Shares of one label image; see the module."""
    overlaps, nucleus_ids, cell_ids = rules.from_label_images(nuclei, cells)
    inside = overlaps.fraction >= INSIDE
    of_cell = np.bincount(overlaps.cell[inside], minlength=len(cell_ids))
    # A nucleus is inside one cell at most: the cells of a label image do not overlap.
    alone = of_cell[overlaps.cell[inside]] == 1
    touched = np.bincount(overlaps.cell[overlaps.fraction > TOUCHES], minlength=len(cell_ids)) > 0
    return {
        "cells": str(len(cell_ids)),
        "nuclei": str(len(nucleus_ids)),
        "inside a cell": f"{inside.sum() / len(nucleus_ids):.2f}",
        "alone in it": f"{alone.sum() / len(nucleus_ids):.2f}",
        "cells without nucleus": f"{(of_cell == 0).mean():.2f}",
        "untouched": f"{(~touched).mean():.2f}",
        "median µm²": f"{np.median(overlaps.cell_area) * um**2:.0f}",
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


def simulated_table(models: list[Path], device: str) -> None:
    """Each model on each tissue by its truth, and the means."""
    show_head(("tissue", "model", *MEASURES))
    options = argparse.Namespace(size_um=200.0, transcripts=0.5, device=device)
    found: dict[Path, list[dict[str, float]]] = {model: [] for model in models}
    for tissue, made in SIMULATED.items():
        with tempfile.TemporaryDirectory() as scratch:
            sample = make(Path(scratch), options, SEED, **made)
            for i, model in enumerate(models):
                found[model].append(score(sample, predicted(sample, model, Path(scratch) / f"segment{i}", options)))
                show((tissue, model.stem, *texts(found[model][-1])))
    for model, figures in found.items():
        means = {name: float(np.mean([f[name] for f in figures])) for name in MEASURES}
        show(("mean", model.stem, *texts(means)))


def real_table(options: argparse.Namespace) -> None:
    """Each model on each crop."""
    data = Path(os.environ.get("ISTSEG_REAL_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; ISTSEG_REAL_DATA names the folder of the real samples")
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for name, platform, path, stains in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            read, nuclei = prepare(Path(scratch), data / path, platform, stains)
            for i, model in enumerate(options.models):
                road.segment(tile=[read.folder], model=model, out=Path(scratch) / f"segment{i}", device=options.device)
                found = TileLabels.read(Path(scratch) / f"segment{i}" / read.tile_id)
                cells, precision = found.layers["cells"], found.method["precision"]
                row = {"crop": name, "stains beside DAPI": stains, "model": found.method["model"]} | figures(cells, nuclei, read.working_um)
                print("| " + " | ".join(row[c] for c in COLUMNS) + " |", flush=True)
                if options.pictures:
                    picture(options.pictures / f"{name}_{stains.replace(';', '+')}_{found.method['model']}.png", read, cells, nuclei)
    print(f"\ntorch {torch.__version__}, {options.device}, {precision}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="Folder for the pictures.")
    parser.add_argument("--simulated", action="store_true", help="The table of simulated tissue.")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.simulated:
        simulated_table(options.models, options.device)
    else:
        real_table(options)


if __name__ == "__main__":
    main()
