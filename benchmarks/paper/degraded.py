"""Fig. 4B and 4C: contours removed from 30 % of the cells; fewer transcripts. Methods against the truth and, as in the paper, their own clean cells."""

from __future__ import annotations

import argparse
from pathlib import Path

import finetuning
import road
import tables

STAINS = "Cellbound1;Cellbound2"
LEVELS = {"4b": "contour gone", "4c": "RNA kept"}
_SHOWN = ("pixel_iou", "rna_iou", "own_pixel_iou", "own_rna_iou")


def run(folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Write the tables and charts that were asked for; gives their markdown."""
    found: dict[str, list[list[tables.Row]]] = {}
    texts = []
    for i, seeded in enumerate(road.each_seed(options)):
        for figure, rows in _of_seed(folder / f"seed{i}", seeded).items():
            found.setdefault(figure, []).append(rows)
        # Again after each seed.
        texts = [_write(out, figure, LEVELS[figure], by_seed) for figure, by_seed in found.items()]
    return texts


def _write(out: Path, figure: str, level: str, by_seed: list[list[tables.Row]]) -> str:
    rows = []
    for same in zip(*by_seed, strict=True):
        what = {key: same[0][key] for key in ("method", level)}
        rows.append(what | tables.spread([{k: v for k, v in row.items() if k not in what} for row in same]))
    tables.curves(out / f"fig{figure}.png", rows, level, _SHOWN, falling=figure == "4c")
    return f"## Fig. {figure.upper()}\n\n" + tables.write(out, f"fig{figure}", rows)


def _of_seed(folder: Path, options: argparse.Namespace) -> dict[str, list[tables.Row]]:
    """Figure → rows of one seed."""
    models = {road.OURS: options.base}
    # The instrument's cells are simulated from nuclei, and foreign programs read no membrane stain: what is not in the paper's figure is left out here, too.
    methods = [name for name in options.methods if name in ("teacher", "cellpose", "genesegnet", "expansion")]
    clean_sample = finetuning.make(folder / "clean", options, options.seed, 0.0, stains=STAINS)
    clean = road.measured(clean_sample, models, methods, options)
    rows = {}
    if "4b" in options.figures:
        makers = {gone: lambda at, gone=gone: finetuning.make(at, options, options.seed, 0.0, gone, STAINS, finetuning.DEGRADED) for gone in options.contours}
        rows["4b"] = _rows(LEVELS["4b"], 0.0, clean_sample, clean, makers, folder / "4b", models, methods, options)
    if "4c" in options.figures:
        makers = {kept: lambda at, kept=kept: finetuning.with_less_rna(clean_sample, at, kept, options) for kept in options.rna_kept}
        rows["4c"] = _rows(LEVELS["4c"], 1.0, clean_sample, clean, makers, folder / "4c", models, methods, options)
    return rows


def _rows(level: str, none: float, clean_sample, clean, makers, folder: Path, models, methods, options) -> list[tables.Row]:
    """Rows of all levels; the first is the clean sample, whose `level` is `none`."""
    rows = _of(level, none, clean, road.consistency(clean_sample, clean, clean))
    for i, (value, maker) in enumerate(makers.items()):
        sample = maker(folder / str(i))
        found = road.measured(sample, models, methods, options)
        rows += _of(level, value, found, road.consistency(sample, found, clean))
    return rows


def _of(level: str, value: float, found, own) -> list[tables.Row]:
    return [
        {"method": name, level: value}
        | {k: v for k, v in road.figures(one).items() if k in ("pixel_iou", "rna_iou", "ap50")}
        | {"own_pixel_iou": own[name]["pixel_iou_mean"], "own_rna_iou": own[name]["rna_iou_mean"]}
        for name, one in found.items()
    ]
