"""Stage `assign`: gives every transcript its cell, once, and counts.

In: `sample.json`, the points of the sample (`part.<i>.parquet`, bands in y), the cells of a segmentation, and its label image or its table of transcripts
when there is one.
Out: `transcripts.parquet`, `counts.h5ad`, `assign.json`. The transcripts are streamed: memory holds one batch of them, the counts and the cells.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from istseg import __version__, counts
from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import whole, write_json
from istseg.artifacts.planes import Planes
from istseg.artifacts.sample import Sample, apply_affine
from istseg.artifacts.spatial import BATCH, transcript_batches
from istseg.errors import InputError, IstsegError
from istseg.locate import LabelLocator, Locator, PlaneLocator, PolygonLocator, TableLocator
from istseg.progress import track

log = logging.getLogger(__name__)

POINT_COLUMNS = ["x", "y", "gene", "is_control", "transcript_id"]
OUT_SCHEMA = pa.schema(
    [
        ("transcript_id", pa.int64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("z", pa.float32()),
        ("gene", pa.dictionary(pa.int32(), pa.string())),
        ("is_control", pa.bool_()),
        ("cell_id", pa.dictionary(pa.int32(), pa.string())),
    ]
)


@dataclass
class Totals:
    """What became of the transcripts; genes and control probes apart.

    `in_cells` counts gene transcripts inside the image and in a cell; a vendor's cells may reach outside it (`in_cells_outside_image`).
    """

    total: int = 0
    in_image: int = 0
    outside_image: int = 0
    in_cells: int = 0
    in_cells_outside_image: int = 0
    outside_cells: int = 0
    controls: int = 0
    controls_in_cells: int = 0

    @property
    def fraction_in_cells(self) -> float | None:
        """Share of the gene transcripts in the image that lie in a cell; None without any."""
        return self.in_cells / self.in_image if self.in_image else None


def run(
    sample_json: Path,
    transcripts: Path,
    cells: Path,
    segmentation: str,
    out: Path,
    labels: Path | None = None,
    assignment: Path | None = None,
    planes: Path | None = None,
) -> None:
    """Assign and count.

    Parameters
    ----------
    transcripts
        Folder `points.parquet` of the sample.
    labels
        `labels.zarr`; its array of the segmentation's name is looked up. Without it a transcript belongs to the first cell (in the order of
        `cells`) whose polygon covers it, borders included.
    assignment
        Parquet with `transcript_id` and `cell_id`: what a method says itself of its transcripts, which goes before polygons. Transcripts that it does not
        name lie in no cell.
    planes
        Outlines of the cells plane by plane (`artifacts.planes`): each transcript is looked up among those of its own plane (`locate.PlaneLocator`). A file
        without rows says that the cells do not differ by plane; their one outline in `cells` counts.

    Raises
    ------
    InputError
        If the points, the cells and the sample do not belong together, or more than one of label image, table and outlines by plane is given.

    """
    sample = Sample.read(sample_json)
    table = cells_file.read(cells, geometry=labels is None and assignment is None)
    ids = table["cell_id"].to_numpy(dtype=object)
    locator = _locator(table, segmentation, labels, assignment, planes)
    targets = _targets(sample)
    gene_counts, control_counts = counts.CountMatrix(len(ids), len(sample.genes)), counts.CountMatrix(len(ids), len(sample.controls))
    totals = Totals()
    out = Path(out)
    with whole(out / "transcripts.parquet") as part, pq.ParquetWriter(part, OUT_SCHEMA, compression="zstd") as writer:
        for batch in track(transcript_batches(transcripts, POINT_COLUMNS, optional=("z",)), "assign", total=None):
            xy = np.column_stack([batch["x"], batch["y"]]).astype(float)
            cell = locator(_keys(locator, batch, xy))
            code = _gene_codes(batch["gene"], targets, transcripts)
            control = batch["is_control"].to_numpy(zero_copy_only=False)
            _check_controls(code, control, len(sample.genes), targets, transcripts)
            inside = cell >= 0
            for matrix, kind, first in ((gene_counts, inside & ~control, 0), (control_counts, inside & control, len(sample.genes))):
                matrix.add(cell[kind], code[kind] - first)
            _tally(totals, inside, control, _in_image(sample, xy))
            writer.write_batch(_out_batch(batch, xy, cell, ids), row_group_size=BATCH)
    if isinstance(locator, TableLocator):
        locator.check_used()
    facts = {"version": __version__, "platform": sample.platform, "assignment": locator.name}
    adata = counts.build(sample.sample, segmentation, table, (sample.genes, sample.controls), (gene_counts.csr(), control_counts.csr()), facts)
    _check_totals(totals, sample, adata, transcripts)
    counts.write(out / "counts.h5ad", adata)
    record = {"sample": sample.sample, "segmentation": segmentation, "assignment": locator.name, "n_cells": len(ids)}
    write_json(out / "assign.json", {**record, "transcripts": {**asdict(totals), "fraction_in_cells": totals.fraction_in_cells}})
    log.info("%s/%s: %d of %d transcripts in %d cells", sample.sample, segmentation, totals.in_cells, totals.in_image, len(ids))


def _keys(locator: Locator, batch: pa.RecordBatch, xy: np.ndarray) -> np.ndarray:
    """What a locator asks of the transcripts: their ids, or their places."""
    if locator.by_id:
        return batch["transcript_id"].to_numpy()
    if isinstance(locator, PlaneLocator):
        if "z" not in batch.schema.names:
            raise InputError("--planes: the transcripts have no column z, so their plane is not known; run convert again, or leave --planes out.")
        return np.column_stack([xy, batch["z"].to_numpy(zero_copy_only=False)])
    return xy


def _locator(cells: pd.DataFrame, segmentation: str, labels: Path | None, assignment: Path | None, planes: Path | None) -> Locator:
    given = [f"{name} {path}" for name, path in (("--labels", labels), ("--assignment", assignment), ("--planes", planes)) if path]
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: give one of them; each says whose a transcript is.")
    if planes:
        outlines = Planes(planes, cells["cell_id"].to_numpy(dtype=object))
        if len(outlines.planes):
            return PlaneLocator(outlines)
    if assignment:
        return TableLocator(assignment, cells["cell_id"].to_numpy(dtype=object))
    if labels:
        return LabelLocator(labels, segmentation, cells["label"].to_numpy())
    return PolygonLocator(cells.geometry.to_numpy())


def _targets(sample: Sample) -> dict[str, int]:
    """Gene or control probe → column of the counts."""
    names = [*sample.genes, *sample.controls]
    targets = {name: i for i, name in enumerate(names)}
    if len(targets) != len(names):
        repeated = sorted({n for n in names if names.count(n) > 1})
        raise InputError(f"sample.json of {sample.sample}: genes and controls are not unique ({repeated[:5]}); run convert again.")
    return targets


def _gene_codes(column: pa.Array, targets: dict[str, int], where: Path) -> np.ndarray:
    """(n,) int64 column of the counts of each transcript."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    names = column.dictionary.to_pylist()
    look_up = np.array([targets.get(n, -1) for n in names] + [-1], np.int64)
    code = look_up[column.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    if (code < 0).any():
        bad = np.unique(column.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)[code < 0])
        shown = [names[i] if i < len(names) else None for i in bad[:5]]
        raise InputError(f"{where}: has genes that sample.json does not know, e.g. {shown}; the two files come from different conversions, run convert again.")
    return code


def _check_controls(code: np.ndarray, control: np.ndarray, n_genes: int, targets: dict[str, int], where: Path) -> None:
    wrong = control != (code >= n_genes)
    if wrong.any():
        name = list(targets)[code[wrong][0]]
        raise InputError(f"{where}: {name!r} is a control probe in one of points and sample.json and a gene in the other; run convert again.")


def _in_image(sample: Sample, xy: np.ndarray) -> np.ndarray:
    px = apply_affine(sample.affine, xy)
    return (px[:, 0] >= 0) & (px[:, 0] < sample.width_px) & (px[:, 1] >= 0) & (px[:, 1] < sample.height_px)


def _tally(totals: Totals, inside: np.ndarray, control: np.ndarray, in_image: np.ndarray) -> None:
    gene = ~control
    totals.total += int(gene.sum())
    totals.in_image += int((gene & in_image).sum())
    totals.outside_image += int((gene & ~in_image).sum())
    totals.in_cells += int((gene & inside & in_image).sum())
    totals.in_cells_outside_image += int((gene & inside & ~in_image).sum())
    totals.outside_cells += int((gene & ~inside).sum())
    totals.controls += int(control.sum())
    totals.controls_in_cells += int((control & inside).sum())


def _out_batch(batch: pa.RecordBatch, xy: np.ndarray, cell: np.ndarray, ids: np.ndarray) -> pa.RecordBatch:
    # A dictionary of the cells of this batch only: the whole sample's would be written again with every row group.
    present, index = np.unique(cell[cell >= 0], return_inverse=True)
    codes = np.zeros(len(cell), np.int32)
    codes[cell >= 0] = index
    cell_ids = pa.DictionaryArray.from_arrays(pa.array(codes, mask=cell < 0), pa.array(ids[present], pa.string()))
    gene = batch["gene"] if pa.types.is_dictionary(batch["gene"].type) else batch["gene"].dictionary_encode()
    z = batch["z"].cast(pa.float32()) if "z" in batch.schema.names else pa.nulls(batch.num_rows, pa.float32())
    gene = gene.cast(OUT_SCHEMA.field("gene").type)
    arrays = [batch["transcript_id"].cast(pa.int64()), pa.array(xy[:, 0]), pa.array(xy[:, 1]), z, gene, batch["is_control"], cell_ids]
    return pa.RecordBatch.from_arrays(arrays, schema=OUT_SCHEMA)


def _check_totals(totals: Totals, sample: Sample, adata: object, where: Path) -> None:
    """Every transcript is counted once: inside + outside = all, in the tally, in the counts and in what convert wrote."""
    in_any = totals.in_cells + totals.in_cells_outside_image
    counted = int(adata.obs["n_transcripts"].sum())  # type: ignore[attr-defined]
    if in_any + totals.outside_cells != totals.total or counted != in_any or totals.in_image + totals.outside_image != totals.total:
        raise IstsegError(f"{where}: {totals} do not add up with {counted} counted transcripts; this is a fault of istseg, please report it.")
    expected = {"genes": totals.total, "controls": totals.controls, "total": totals.total + totals.controls}
    known = {k: (found, sample.transcripts[k]) for k, found in expected.items() if k in sample.transcripts}
    wrong = [f"{k}: {found} read, {wanted} in sample.json" for k, (found, wanted) in known.items() if found != wanted]
    if wrong:
        raise InputError(f"{where}: is not the whole set of transcripts of {sample.sample} ({'; '.join(wrong)}). Was it cut off? Run convert again.")
