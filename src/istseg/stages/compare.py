"""Stage `compare`: all segmentations of a sample against each other and against annotated cells.

In: the cells and the assigned transcripts of every segmentation; annotated cells when there are any.
Out: `comparison.json`, `annotated_cells.parquet`. Transcripts are streamed, once, for all segmentations together; of the cells' polygons those of two
segmentations are held at a time.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts import annotations as annotations_file
from istseg.artifacts import cells as cells_file
from istseg.artifacts.annotations import Annotations, Frame
from istseg.artifacts.assigned import AssignedTranscripts, together
from istseg.artifacts.comparison import ANNOTATED, Comparison
from istseg.artifacts.files import whole
from istseg.artifacts.sample import Sample, apply_affine
from istseg.counts import CountMatrix
from istseg.errors import InputError
from istseg.grid import DEFAULT_WORKING_UM
from istseg.locate import PolygonLocator
from istseg.progress import track
from istseg.qc import agreement, annotated, maps
from istseg.qc.matching import match_polygons
from istseg.qc.nuclei import valid_polygons

log = logging.getLogger(__name__)


@dataclass
class _Source:
    """One segmentation: its files, and what the stream of transcripts tells of it."""

    name: str
    cells: Path
    transcripts: Path
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    centroids_um: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    per_cell: np.ndarray = field(default_factory=lambda: np.empty(0))

    def polygons(self) -> np.ndarray:
        return valid_polygons(cells_file.read(self.cells).geometry)


def run(
    *,
    sample_json: Path,
    cells: dict[str, Path],
    transcripts: dict[str, Path],
    out: Path,
    annotations: Path | None = None,
    annotations_unit: str | None = None,
    working_um: float = DEFAULT_WORKING_UM,
    match_iou: float = 0.5,
    iou_thresholds: tuple[float, ...] = annotated.THRESHOLDS,
    mapped: str = "istseg",
) -> None:
    """Compare the segmentations of a sample.

    Parameters
    ----------
    cells, transcripts
        Segmentation → its `*.cells.parquet` and its `transcripts.parquet` of assign.
    annotations, annotations_unit
        Annotated cells, and the frame of GeoJSON (`istseg.artifacts.annotations.read`).
    working_um
        Size of a working pixel: a label TIFF may have the size of the working grid.
    match_iou
        IoU from which cells of two segmentations count as the same.
    iou_thresholds
        Of the average precision.
    mapped
        Segmentation whose agreement with each other one is mapped.

    Raises
    ------
    InputError
        If a segmentation lacks one of its files, the files are not of one sample, or the annotations cannot be used.
    """
    sample = Sample.read(sample_json)
    lacking = sorted(set(cells) ^ set(transcripts))
    if lacking:
        raise InputError([f"{name}: needs both --cells {name}=... and --transcripts {name}=..." for name in lacking])
    if not cells:
        raise InputError("compare: there is no segmentation; give --cells and --transcripts.")
    if ANNOTATED in cells:
        raise InputError(f"--cells {ANNOTATED}=...: this name stands for the annotated cells; give the segmentation another.")
    sources = [_Source(name, Path(cells[name]), Path(transcripts[name])) for name in sorted(cells)]
    for source in sources:
        table = cells_file.read(source.cells, geometry=False)
        source.ids, source.centroids_um = table["cell_id"].to_numpy(object), table[["centroid_x_um", "centroid_y_um"]].to_numpy(float)
    truth = annotations_file.read(annotations, annotations_unit, Frame.of(sample, working_um)) if annotations else None
    shared, in_truth, n_truth, total = _stream(sources, truth)

    record = Comparison(sample.sample, [s.name for s in sources], parameters={"match_iou": match_iou, "iou_thresholds": list(iou_thresholds)})
    tables = []
    for i, first in enumerate(track(sources, "compare")):
        shapes = first.polygons()
        if truth is not None:
            overlap = match_polygons(truth.polygons, shapes)
            best = annotated.best_matches(overlap, in_truth[i].csr(), n_truth, first.per_cell, first.ids)
            record.against[first.name] = annotated.summary(best, overlap)
            if truth.region is not None:
                record.against[first.name]["dense"] = annotated.dense(overlap, truth.polygons, shapes, truth.region, iou_thresholds)
            tables.append(best.assign(annotation=truth.ids, segmentation=first.name))
        for j, second in enumerate(sources[i + 1 :], i + 1):
            found, *matched = agreement.cells(shapes, second.polygons(), match_iou)
            record.agreement.append(
                {"first": first.name, "second": second.name, "n_first": len(first.ids), "n_second": len(second.ids)}
                | found
                | agreement.transcripts(shared[i, j].csr(), first.per_cell, second.per_cell, total)
            )
            for source, other, of in ((first, second, matched[0]), (second, first, matched[1])):
                if source.name == mapped:
                    places = apply_affine(sample.affine, source.centroids_um) * sample.pixel_size_um
                    record.maps[other.name] = maps.over_squares(places, sample.size_um, {"matched": of})
    out = Path(out)
    if truth is not None:
        area = None if truth.region is None else float(shapely.area(truth.region))
        record.annotations = {"n_cells": len(truth.ids), "region_um2": area}
        record.warnings = truth.warnings
        with whole(out / "annotated_cells.parquet") as part:
            columns = ["annotation", "segmentation", "n_transcripts", "pixel_iou", "pixel_match", "rna_iou", "rna_match"]
            pd.concat(tables, ignore_index=True)[columns].to_parquet(part, index=False)
    record.write(out / "comparison.json")
    said = [f"{name} {values['pixel_iou_mean']:.3f}" for name, values in record.against.items() if values["pixel_iou_mean"] is not None]
    log.info("%s: %d segmentations compared%s", sample.sample, len(sources), f"; pixel IoU: {', '.join(said)}" if said else "")


def thresholds_of(text: str) -> tuple[float, ...]:
    """IoU thresholds from text; InputError unless numbers above 0 up to 1."""
    try:
        values = tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        values = ()
    if not values or not all(0 < v <= 1 for v in values):
        raise InputError(f"{text!r} are no IoU thresholds: write numbers above 0 up to 1, separated by `,`, e.g. 0.5,0.75.")
    return values


def _stream(sources: list[_Source], truth: Annotations | None) -> tuple[dict[tuple[int, int], CountMatrix], list[CountMatrix], np.ndarray, int]:
    """Read the gene transcripts of all segmentations once.

    Returns
    -------
    Transcripts that each pair of cells of each pair of segmentations shares, those that each annotated and each segmented cell share, those in each annotated
    cell, and the number of all. `per_cell` of the sources is filled.
    """
    n_annotated = 0 if truth is None else len(truth.ids)
    shared = {(i, j): CountMatrix(len(sources[i].ids), len(sources[j].ids)) for i, j in itertools.combinations(range(len(sources)), 2)}
    in_truth = [CountMatrix(n_annotated, len(s.ids)) for s in sources]
    for source in sources:
        source.per_cell = np.zeros(len(source.ids))
    inside, total = np.zeros(n_annotated), 0
    locator = PolygonLocator(truth.polygons) if truth is not None else None
    files = [AssignedTranscripts(s.transcripts, s.ids) for s in sources]
    for groups in track(together(files), "read transcripts", len(files[0].sizes)):
        genes = ~groups[0].is_control
        owner = [group.cell[genes] for group in groups]
        total += int(genes.sum())
        for source, cell in zip(sources, owner, strict=True):
            source.per_cell += np.bincount(cell[cell >= 0], minlength=len(source.ids))
        for (i, j), matrix in shared.items():
            both = (owner[i] >= 0) & (owner[j] >= 0)
            matrix.add(owner[i][both], owner[j][both])
        if locator is None:
            continue
        point, polygon = locator.pairs(groups[0].xy[genes])
        inside += np.bincount(polygon, minlength=n_annotated)
        for matrix, cell in zip(in_truth, owner, strict=True):
            assigned = cell[point] >= 0
            matrix.add(polygon[assigned], cell[point[assigned]])
    return shared, in_truth, inside, total
