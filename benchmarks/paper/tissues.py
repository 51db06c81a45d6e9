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
UMAP_OF = "broken contours"


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
    """Write the tables and charts that were asked for, again after each tissue; gives their markdown."""
    rows, flags, texts = [], [], []
    for i, tissue in enumerate(options.tissues):
        new_rows, new_flags, clouds = _tissue(folder / f"tissue{i}", tissue, options)
        rows += new_rows
        flags += new_flags
        texts = _write(out, rows, flags, clouds, options.figures)
    return texts


def _tissue(folder: Path, tissue: str, options: argparse.Namespace) -> tuple[list[tables.Row], list[tables.Row], dict]:
    """Rows of 3C and of 5C, means over the seeds, and UMAPs of the first seed, of one tissue."""
    scored: dict[str, list[tables.Row]] = {}
    flagged: dict[str, list[tables.Row]] = {}
    notes, clouds = {}, {}
    for i, seeded in enumerate(road.each_seed(options)):
        sample = make(folder / f"test{i}", tissue, seeded.seed, seeded)
        models = {road.OURS: options.base}
        if road.TUNED in options.methods:
            models[road.TUNED], notes[road.TUNED] = fine_tuned(folder / f"tuned{i}", tissue, seeded)
        methods = [name for name in options.methods if name not in models]
        umap = options.umap_cells if tissue == UMAP_OF and "5bc" in options.figures and not i else 0
        for name, one in road.measured(sample, models, methods, seeded, umap).items():
            figures = road.figures(one)
            scored.setdefault(name, []).append({k: figures[k] for k in ("pixel_iou", "rna_iou", "ap50", "pq")})
            flagged.setdefault(name, []).append(
                {"cells": one.metrics["n_cells"]} | {k: figures[k] for k in ("spurious", "inconsistent", "transcripts_in_cells")}
            )
            if umap and one.metrics["embedding"]["x"]:
                clouds[name] = one.metrics["embedding"]
    rows = [{"tissue": tissue, "method": name} | tables.spread(values) | {"note": notes.get(name)} for name, values in scored.items()]
    rows += [{"tissue": tissue, "method": name, "note": "not run"} for name in road.not_run(options)]
    return rows, [{"tissue": tissue, "method": name} | tables.spread(values) for name, values in flagged.items()], clouds


def _write(out: Path, rows: list[tables.Row], flags: list[tables.Row], clouds: dict, figures: list[str]) -> list[str]:
    texts = []
    if "3c" in figures:
        texts.append("## Fig. 3C\n\n" + tables.write(out, "fig3c", rows))
        tables.bars(out / "fig3c.png", [row for row in rows if row["note"] != "not run"], "tissue", ("pixel_iou", "rna_iou"))
    if "5bc" in figures:
        texts.append("## Fig. 5C\n\n" + tables.write(out, "fig5c", flags))
        tables.bars(out / "fig5c.png", flags, "tissue", ("spurious", "inconsistent"))
        if clouds:
            tables.clouds(out / "fig5b.png", clouds, FLAGS)
    return texts
