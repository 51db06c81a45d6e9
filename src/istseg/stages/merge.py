"""merge: cells and nuclei of all tiles → `istseg.cells.parquet`, `teacher.cells.parquet`, `nuclei.parquet`, `labels.zarr`, `merge.json`.

How objects of tiles are put together: `istseg.merging`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from istseg.artifacts.files import write_json
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import TileIndex
from istseg.errors import InputError
from istseg.merging import Source, check_alike, check_tiles, merge_sources

log = logging.getLogger("istseg")

NUCLEI = "nuclei"


def run(*, tiles_json: Path, cells: Path, teacher: Path, thresholds: Path, out: Path) -> None:
    """Merge a sample.

    `cell_id` is `<sample>_<number>` with seven digits, `<sample>_t<number>` for the teacher's cells and `<sample>_n<number>` for nuclei; the number is the
    pixel value in `labels.zarr`.

    Parameters
    ----------
    tiles_json
        Names the tiles that must be there.
    cells, teacher
        Folders with the tiles' folders of segment and of teach.
    thresholds
        Name the teacher's layer that becomes the segmentation `teacher`.
    out
        Folder of the results.

    Raises
    ------
    InputError
        If a tile of tiles.json has no folder, its files are of another sample or tiling, or tiles were segmented by different models, in different
        precision or on different devices.
    """
    index = TileIndex.read(tiles_json)
    limits = Thresholds.read(thresholds)
    if limits.sample != index.sample:
        raise InputError(f"{thresholds}: is of the sample {limits.sample}, {tiles_json} of {index.sample}; give the thresholds of the same sample.")
    layer, reason = _teacher_layer(limits)
    sources = [
        Source("istseg", "istseg.cells.parquet", "segment", Path(cells), "cells", ""),
        Source("teacher", "teacher.cells.parquet", "teach", Path(teacher), layer, "t"),
        Source("nuclei", "nuclei.parquet", "teach", Path(teacher), NUCLEI, "n"),
    ]
    if problems := check_tiles(index, sources) + check_alike(index, sources[0]):
        raise InputError(problems)
    out = Path(out)
    record = merge_sources(index, sources, out, "labels.zarr")
    record["n_cut"] = record["segmentations"]["istseg"]["n_cut"]
    record["teacher_layer"] = {"layer": layer, "reason": reason}
    write_json(out / "merge.json", record)
    log.info("%s: %s", index.sample, ", ".join(f"{made['n']} {name}" for name, made in record["segmentations"].items()))


def _teacher_layer(limits: Thresholds) -> tuple[str, str]:
    """Layer of the teacher that is taken as its segmentation, and why."""
    if limits.best_layer:
        return limits.best_layer, "agrees best with the nuclei (thresholds.json)"
    if limits.best_stain:
        return f"cells_{limits.best_stain}", "its stain agrees best with the nuclei (thresholds.json)"
    return NUCLEI, "the teacher has no layer of cells"
