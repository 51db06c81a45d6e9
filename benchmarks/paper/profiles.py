"""Beyond the paper: are methods that read RNA alone poor here because touching cells of one type have one profile? One sample, and its genes dealt anew."""

from __future__ import annotations

import argparse
from pathlib import Path

import finetuning
import numpy as np
import pandas as pd
import road
import shapely
import tables

SETS = 12
TOUCHING_UM = 0.5
AS_SIMULATED, DEALT = "as simulated", "touching cells share no gene"
_SHOWN = ("pixel_iou", "rna_iou", "ap50", "transcripts_in_cells")


def run(folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Write the table; gives its markdown."""
    first = finetuning.make(folder / "simulated", options, options.seed, 0.0, stains="Cellbound1;Cellbound2;PolyT")
    methods = [name for name in options.methods if name in ("proseg", "comseg", "baysor", "expansion")]
    rows = []
    for genes, sample in ((AS_SIMULATED, first), (DEALT, with_own_genes(first, folder / "dealt", options))):
        for name, one in road.measured(sample, {road.OURS: options.base}, methods, options).items():
            rows.append({"genes": genes, "method": name} | {k: v for k, v in road.figures(one).items() if k in _SHOWN})
    return [f"## Profiles\n\n{tables.write(out, 'profiles', rows)}\n\n{same_type(first):.0%} of the touching pairs of cells are of one type."]


def neighbours(cells: np.ndarray) -> np.ndarray:
    """(2, pairs) positions of polygons (µm) that are within `TOUCHING_UM`, each pair once, the smaller position first."""
    found = shapely.STRtree(cells).query(cells, "dwithin", TOUCHING_UM)
    return found[:, found[0] < found[1]]


def same_type(sample: finetuning.Sample) -> float:
    """Share of the touching pairs of true cells that are of one type."""
    cells = sample.shapes("cells")
    first, second = cells["cell_type"].to_numpy()[neighbours(cells.geometry.to_numpy())]
    return float((first == second).mean())


def sets_of_cells(n: int, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) number 0…`SETS` - 1 of each cell's set of genes; the two of a pair never have the same one."""
    chosen = np.full(n, -1)
    for cell in range(n):
        taken = chosen[pairs[0, pairs[1] == cell]]
        chosen[cell] = rng.choice(np.setdiff1d(np.arange(SETS), taken))
    return chosen


def with_own_genes(sample: finetuning.Sample, folder: Path, options: argparse.Namespace) -> finetuning.Sample:
    """The same raw folder; each transcript that comes from a cell gets a gene of its cell's set, the others (background, controls) stay."""
    raw, dealt = sample.folder / "sim" / "raw", folder / "sim" / "raw"
    dealt.mkdir(parents=True)
    (folder / "sim" / "truth").symlink_to((sample.folder / "sim" / "truth").absolute())
    for path in raw.iterdir():
        if path.name != finetuning.TRANSCRIPTS:
            (dealt / path.name).symlink_to(path.absolute())
    table = pd.read_csv(raw / finetuning.TRANSCRIPTS, dtype=str, keep_default_na=False)
    cells = sample.shapes("cells")
    # One row of the truth for each row of the raw file.
    place = pd.Index(cells["cell_id"]).get_indexer(pd.read_parquet(sample.folder / "sim" / "truth" / "transcripts.parquet")["cell_id"])
    rng = np.random.default_rng(options.seed)
    of_cell = sets_of_cells(len(cells), neighbours(cells.geometry.to_numpy()), rng)
    ours = np.flatnonzero(place >= 0)
    genes = np.sort(table["gene"].iloc[ours].unique())
    each = len(genes) // SETS
    table.loc[ours, "gene"] = genes[of_cell[place[ours]] * each + rng.integers(0, each, len(ours))]
    table.rename(columns={table.columns[0]: ""}).to_csv(dealt / finetuning.TRANSCRIPTS, index=False)
    return finetuning.prepared(folder, options)
