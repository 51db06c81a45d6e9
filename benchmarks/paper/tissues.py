"""Fig. 3C and 5B/5C: methods on tissues with good and poor stains: pixel and RNA IoU of each true cell, spurious and inconsistent cells, UMAP."""

from __future__ import annotations

import argparse
from pathlib import Path

import finetuning
import road
import tables

from istseg.artifacts.metrics import FLAGS

TISSUES = {
    "good stains": {"stains": "Cellbound1;Cellbound2;PolyT"},
    "one good stain": {"stains": "Cellbound1"},
    "broken contours": {"stains": "Cellbound1;Cellbound2", "degraded": 0.8, "contour": 0.7},
    "autofluorescence": {"stains": "Cellbound1", "autofluorescence": 1.0},
    "nucleus stain only": {"stains": "none"},
}
"""How each is simulated; see `istseg simulate`. With `degraded` 0.8 and `contour` 0.7, 80 % of the cells lose 70 % of their contour in every membrane stain."""
UMAP_OF, UMAP_CELLS = "broken contours", 2000


def make(folder: Path, tissue: str, seed: int, options: argparse.Namespace) -> finetuning.Sample:
    given = {"autofluorescence": 0.0, **TISSUES[tissue]}
    return finetuning.make(folder, options, seed, **given)


def fine_tuned(folder: Path, tissue: str, options: argparse.Namespace) -> tuple[Path, str]:
    """A model fine-tuned on another sample of the tissue with the watershed's labels, as the pipeline does it: what the gate gives, and its word."""
    sample = make(folder / "train", tissue, options.seed + 100, options)
    patches = finetuning.curated(sample, folder / "labels", None)
    _, decision = finetuning.fine_tune(folder / "model", patches, options)
    return folder / "model" / "model.safetensors", "accepted" if decision["accepted"] else "base kept"


def run(folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Write the tables and charts that were asked for; gives their markdown."""
    rows, flags, clouds = [], [], {}
    missing = road.not_run(options.methods)
    for i, tissue in enumerate(options.tissues):
        at = folder / f"tissue{i}"
        sample = make(at / "test", tissue, options.seed, options)
        models, notes = {road.OURS: options.base}, {}
        if road.TUNED in options.methods:
            models[road.TUNED], notes[road.TUNED] = fine_tuned(at / "tuned", tissue, options)
        methods = [name for name in options.methods if name not in models]
        umap = UMAP_CELLS if tissue == UMAP_OF and "5bc" in options.figures else 0
        found = road.measured(sample, models, methods, options, umap)
        for name in [*found, *missing]:
            what = {"tissue": tissue, "method": name}
            if name in missing:
                rows.append(what | {"note": "not run"})
                continue
            figures = road.figures(found[name])
            rows.append(what | {k: figures[k] for k in ("pixel_iou", "rna_iou", "ap50", "pq")} | {"note": notes.get(name)})
            flags.append(what | {"cells": found[name].metrics["n_cells"]} | {k: figures[k] for k in ("spurious", "inconsistent", "transcripts_in_cells")})
            if umap and found[name].metrics["embedding"]["x"]:
                clouds[name] = found[name].metrics["embedding"]
    texts = []
    if "3c" in options.figures:
        texts.append("## Fig. 3C\n\n" + tables.write(out, "fig3c", rows))
        tables.bars(out / "fig3c.png", [row for row in rows if row["note"] != "not run"], "tissue", ("pixel_iou", "rna_iou"))
    if "5bc" in options.figures:
        texts.append("## Fig. 5C\n\n" + tables.write(out, "fig5c", flags))
        tables.bars(out / "fig5c.png", flags, "tissue", ("spurious", "inconsistent"))
        if clouds:
            tables.clouds(out / "fig5b.png", clouds, FLAGS)
    return texts
