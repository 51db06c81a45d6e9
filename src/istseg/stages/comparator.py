"""Stage `comparator`: runs a comparator (`istseg.comparators`) up to the common form of a segmentation.

A tile-wise method labels tiles (`tiles`), which are put together (`merge`). For a foreign program the sample is written in a neutral form (`prepare`); what it
gave is read back (`collect`).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from istseg import comparators
from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import read_json, whole, write_json
from istseg.artifacts.sample import Sample
from istseg.artifacts.spatial import transcript_batches
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.comparators import Settings, neutral
from istseg.errors import InputError
from istseg.locate import LabelLocator, Locator, PolygonLocator
from istseg.merging import Source, check_alike, check_tiles, merge_sources
from istseg.progress import track
from istseg.raw.polygons import single
from istseg.stages import calibrate, teach
from istseg.teachers.base import NUCLEI

log = logging.getLogger("istseg")

CELLS = "cells"
"""Layer of a method that gives one set of cells; one that works like a teacher gives `nuclei` and `cells_<stain>`."""


def tiles(*, method: str, tiles: list[Path], out: Path, settings: Settings, density_sigma_um: float, contain: float, intersect: float) -> None:
    """Label tiles: `<tile_id>/{labels.npz, objects.parquet, meta.json}`, and `sketch.json` where the best of several layers is to be chosen.

    Parameters
    ----------
    method
        A tile-wise comparator.
    settings
        What it is made of.
    density_sigma_um, contain, intersect
        As in `teach`: how layers are compared with the nuclei.

    Raises
    ------
    InputError
        If the method lacks what it needs or a tile is broken.
    DeviceError
        If the device is not there.
    """
    chosen = comparators.find(method, comparators.TILE).module.make(settings)
    for folder in track(tiles, method):
        tile = Tile.read(folder)
        labels = teach.label_tile(tile, chosen)
        several = NUCLEI in labels.layers
        labels.write(Path(out) / tile.tile_id, **({"sketch": teach.make_sketch(tile, labels, density_sigma_um, contain, intersect)} if several else {}))
        log.info("%s %s: %s", tile.sample, tile.tile_id, labels.objects.groupby("layer")["owned"].sum().to_dict())


def merge(*, segmentation: str, tiles_json: Path, labels: Path, out: Path) -> None:
    """Put the cells of all tiles together: `<segmentation>.cells.parquet`, `<segmentation>.labels.zarr`, `<segmentation>.merge.json`.

    `cell_id` is `<sample>_<segmentation>_<number>` with seven digits. Of several layers the one is taken that agrees best with the method's own nuclei, as
    `calibrate` chooses the teacher's.

    Raises
    ------
    InputError
        If a tile of tiles.json has no folder, its files are of another sample or tiling, or tiles were not labelled alike.
    """
    index, out = TileIndex.read(tiles_json), Path(out)
    layer, reason = _layer(index, Path(labels))
    source = Source(segmentation, f"{segmentation}.cells.parquet", "comparator tiles", Path(labels), layer, f"{segmentation}_")
    if problems := check_tiles(index, [source]) + check_alike(index, source):
        raise InputError(problems)
    record = merge_sources(index, [source], out, f"{segmentation}.labels.zarr")
    record["segmentations"][segmentation]["layer_reason"] = reason
    write_json(out / f"{segmentation}.merge.json", record)
    log.info("%s: %d cells of %s", index.sample, record["segmentations"][segmentation]["n"], segmentation)


def _layer(index: TileIndex, labels: Path) -> tuple[str, str]:
    """Layer of the tiles' labels that becomes the segmentation, and why."""
    first = labels / index.tiles[0]["tile_id"] / "meta.json" if index.tiles else None
    if first is None or not first.is_file() or CELLS in read_json(first, "the meta.json of the stage comparator tiles").get("layer_names", []):
        return CELLS, "the only layer"
    cells = calibrate.count_cells(calibrate.read_sketches([labels / tile["tile_id"] / "sketch.json" for tile in index.tiles]))
    best = calibrate.best_layer(cells)
    return (best, "agrees best with the nuclei of this method") if best else (NUCLEI, "the method has no layer of cells")


def prepare(*, method: str, sample_json: Path, transcripts: Path, nuclei: Path, labels: Path, out: Path, init: Path | None = None) -> None:
    """Write the neutral form (`comparators.neutral`) of a sample for a foreign program.

    Parameters
    ----------
    method
        A foreign program.
    transcripts
        `points.parquet` of the sample.
    nuclei, labels
        `nuclei.parquet`, and `labels.zarr` with the array `nuclei`: what the program starts from.
    init
        Cells to start from instead of the nuclei.

    Raises
    ------
    InputError
        If there is nothing to start from.
    """
    comparators.find(method, comparators.PROGRAM)
    sample = Sample.read(sample_json)
    prior = cells_file.read(init or nuclei)
    if prior.empty:
        raise InputError(f"{init or nuclei}: holds no object that {method} could start from. Leave {method} out of --compare for this sample.")
    locator: Locator = PolygonLocator(prior.geometry.to_numpy()) if init else LabelLocator(labels, "nuclei", prior["label"].to_numpy())
    record = neutral.write(Path(out), sample, method, prior, transcripts, locator, "cells" if init else "nuclei")
    log.info("%s: %d transcripts, %d in %d %s for %s", sample.sample, record["n_transcripts"], record["n_in_prior"], len(prior), record["prior"], method)


def collect(*, method: str, sample_json: Path, transcripts: Path, prepared: Path, raw: Path, out: Path) -> None:
    """Read what a foreign program gave: `<method>.cells.parquet`, `<method>.assignment.parquet`, `<method>.merge.json`.

    `cell_id` is `<sample>_<method>_<number>`. Each cell is one polygon, the largest of its parts. Control probes, which programs do not see, belong to the
    first polygon that covers them.

    Parameters
    ----------
    prepared
        Folder of `prepare`.
    raw
        Folder with the output of the program.

    Raises
    ------
    InputError
        If the output is missing, is cut off, or is not of this sample.
    """
    sample, out = Sample.read(sample_json), Path(out)
    given = neutral.read(prepared, sample.sample, method)
    found = comparators.find(method, comparators.PROGRAM).module.collect(Path(raw), given)
    changes: dict[str, int] = {}
    outlines = {number: single(shape, changes) for number, shape in found.outlines.items()}
    numbers = np.array(sorted(n for n, outline in outlines.items() if outline is not None), np.int64)
    polygons = np.array([outlines[n] for n in numbers.tolist()], object)
    ids = np.array([f"{sample.sample}_{method}_{n:07d}" for n in numbers.tolist()], object)
    cells_file.write(out / f"{method}.cells.parquet", cells_file.frame(ids.tolist(), polygons))
    cell = np.searchsorted(numbers, found.cells)
    kept = np.isin(found.cells, numbers)
    controls, covered = _covered_controls(transcripts, polygons)
    assigned = np.concatenate([found.transcripts[kept], controls])
    codes = np.concatenate([cell[kept], covered]).astype(np.int32)
    order = np.argsort(assigned, kind="stable")
    table = pa.table({"transcript_id": assigned[order], "cell_id": pa.DictionaryArray.from_arrays(codes[order], pa.array(ids, pa.string()))})
    with whole(out / f"{method}.assignment.parquet") as part:
        pq.write_table(table, part, compression="zstd")
    facts = {
        "layer": given.record["prior"],
        "n": len(ids),
        "n_cut": 0,
        "conflict_pixels": 0,
        "polygons": changes,
        "transcripts_without_outline": int((~kept).sum()),
        "method": {"comparator": method, "initialised_with": given.record["prior"], **found.facts},
    }
    write_json(out / f"{method}.merge.json", {"sample": sample.sample, "segmentations": {method: facts}, "warnings": found.warnings})
    log.info("%s: %d cells of %s with %d transcripts", sample.sample, len(ids), method, int(kept.sum()))


def _covered_controls(transcripts: Path, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the control probes in polygons, and the index of the polygon of each."""
    locator = PolygonLocator(polygons)
    ids, cells = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in transcript_batches(transcripts, ["transcript_id", "x", "y", "is_control"]):
        control = batch["is_control"].to_numpy(zero_copy_only=False)
        cell = locator(np.column_stack([batch["x"], batch["y"]]).astype(float)[control])
        ids.append(batch["transcript_id"].to_numpy()[control][cell >= 0])
        cells.append(cell[cell >= 0])
    return np.concatenate(ids), np.concatenate(cells)
