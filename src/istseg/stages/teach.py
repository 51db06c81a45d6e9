"""teach: tile → `<tile_id>/{labels.npz, objects.parquet, meta.json, sketch.json}`. A teacher labels nuclei and, per membrane stain, cells."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.tiles import Tile
from istseg.curation import rules
from istseg.curation.density import density_histogram, rna_density, sparse
from istseg.progress import track
from istseg.teachers import make_teacher
from istseg.teachers.base import CELLS, NUCLEI, Teacher
from istseg.teachers.watershed import Sizes

log = logging.getLogger("istseg")


def run(
    *,
    tiles: list[Path],
    out: Path,
    teacher: str,
    vendor_cells: Path | None,
    nuclei_weights: Path | None,
    nuclei_sha256: str | None,
    cyto_weights: Path | None,
    cyto_sha256: str | None,
    cell_diameter_um: float,
    nucleus_diameter_um: float,
    min_nucleus_area_um2: float,
    min_cell_area_um2: float,
    density_sigma_um: float,
    contain: float,
    intersect: float,
    device: str,
) -> None:
    """Label tiles.

    Raises
    ------
    InputError
        If the teacher lacks what it needs or a tile is broken.
    DeviceError
        If the device is not there.

    """
    chosen = make_teacher(
        teacher,
        Sizes(nucleus_diameter_um, cell_diameter_um, min_nucleus_area_um2, min_cell_area_um2),
        vendor_cells=vendor_cells,
        nuclei_weights=nuclei_weights,
        nuclei_sha256=nuclei_sha256,
        cyto_weights=cyto_weights,
        cyto_sha256=cyto_sha256,
        device=device,
    )
    for folder in track(tiles, "teach"):
        tile = Tile.read(folder)
        labels = label_tile(tile, chosen)
        sketch = make_sketch(tile, labels, density_sigma_um, contain, intersect)
        labels.write(Path(out) / tile.tile_id, sketch=sketch)
        log.info("%s %s: %d nuclei; cells %s", tile.sample, tile.tile_id, sketch["n_nuclei"], {k: v["cells"] for k, v in sketch["cells"].items()})


def label_tile(tile: Tile, teacher: Teacher) -> TileLabels:
    """Labels of all layers over the region, with their objects."""
    layers = teacher.label(tile)
    mosaic = tile.window_grid.height, tile.window_grid.width
    objects = pd.concat([describe(name, image, tile.core, tile.region, mosaic) for name, image in layers.items()], ignore_index=True)
    return TileLabels(tile.sample, tile.tile_id, tile.core, tile.region, layers, objects, teacher.method)


def make_sketch(tile: Tile, labels: TileLabels, density_sigma_um: float, contain: float, intersect: float) -> dict[str, Any]:
    """What `calibrate` needs of a tile; summed over tiles it is that of the sample, as each pixel lies in one core and each object is owned by one tile.

    Returns
    -------
    `density`: RNA density of the core's pixels inside nuclei (`curation.density.sparse`); `transcripts_per_nucleus`: `{"values", "counts"}` of owned nuclei;
    `cells`: layer → `{"cells", "consistent"}` of owned cells, consistent when they contain exactly one nucleus and intersect no other.

    """
    nuclei = labels.layers[NUCLEI]
    counts = tile.transcript_counts()
    density = rna_density(counts, density_sigma_um, tile.working_um)
    y0, x0 = tile.core[0] - tile.region[0], tile.core[1] - tile.region[1]
    core = np.s_[y0 : y0 + tile.core[2] - tile.core[0], x0 : x0 + tile.core[3] - tile.core[1]]
    inside = density[core][nuclei[core] > 0]
    per_nucleus = np.bincount(nuclei.ravel(), weights=counts.ravel(), minlength=1).astype(np.int64)
    values, how_often = np.unique(per_nucleus[_owned(labels, NUCLEI)], return_counts=True)
    cells = {}
    for layer in (name for name in labels.layers if name.startswith(CELLS)):
        overlaps, _, ids = rules.from_label_images(nuclei, labels.layers[layer])
        owned = np.isin(ids, _owned(labels, layer))
        selection = rules.select(overlaps, contain, intersect)
        cells[layer] = {"cells": int(owned.sum()), "consistent": int((selection.cell_rule[owned] == "kept_one_nucleus").sum())}
    return {
        "sample": tile.sample,
        "tile_id": tile.tile_id,
        "stains": tile.stains,
        "density_sigma_um": density_sigma_um,
        "density": sparse(density_histogram(inside)),
        "transcripts_per_nucleus": {"values": values.tolist(), "counts": how_often.tolist()},
        "n_nuclei": int(how_often.sum()),
        "cells": cells,
    }


def _owned(labels: TileLabels, layer: str) -> np.ndarray:
    objects = labels.objects
    return objects.loc[(objects["layer"] == layer) & objects["owned"], "label"].to_numpy()
