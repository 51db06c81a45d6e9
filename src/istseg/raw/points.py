"""Transcripts sorted into bands of the mosaic while they stream, so that later stages read only the bands they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from istseg.artifacts import spatial
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError

BAND_UM = 250.0
MAX_MICRON = 1e7
"""Coordinates beyond 10 m are no coordinates."""
MAX_GENES = 100_000
"""No panel has more; a column of ids read as genes has, and every name is held in memory."""
MAX_PLANES = 1000
_LONGEST_NAME = 200
_GROUP_ROWS = 1 << 17
_SPOOL = pa.schema(
    [("x", pa.float64()), ("y", pa.float64()), ("z", pa.float32()), ("gene", pa.int32()), ("transcript_id", pa.int64()), ("vendor_cell", pa.string())]
)


def band_ends(height_px: int, pixel_size_um: float) -> list[float]:
    """Upper ends in µm of bands of about 250 µm that cover the mosaic."""
    height = height_px * pixel_size_um
    n = max(1, round(height / BAND_UM))
    return [height * (i + 1) / n for i in range(n)]


def gene_problem(name: str) -> str | None:
    """Why a text is no gene's name; None where it may be one."""
    if len(name) > _LONGEST_NAME:
        return f"a gene's name has {len(name):,} characters (it begins with {name[:40]!r}). Is this the column of the genes, and is a double quote closed?"
    if any(c < " " or "\x7f" <= c < "\xa0" for c in name):
        return f"the gene's name {name!r} holds control characters: the file is damaged. Copy it again."
    return None


class PointsWriter:
    """Write `points.parquet`; memory does not grow with the number of transcripts.

    Genes are known only at the end, so rows wait on disk as gene numbers and get their categories in `close`.

    Parameters
    ----------
    parts
        Folder for the parts.
    scratch
        Folder for the rows that wait.
    micron_to_pixel, shape_px, pixel_size_um
        Frame of the mosaic; `shape_px` is (height, width).
    density_px
        Side of the bins of the transcript density, full-resolution pixels.
    """

    def __init__(self, parts: Path, scratch: Path, micron_to_pixel: np.ndarray, shape_px: tuple[int, int], pixel_size_um: float, density_px: int):
        self.bands = band_ends(shape_px[0], pixel_size_um)
        self._parts, self._affine, self._shape, self._pixel = parts, micron_to_pixel, shape_px, pixel_size_um
        self._spools = [scratch / f"band.{i}.arrow" for i in range(len(self.bands))]
        self._writers = [pa.ipc.new_stream(pa.OSFile(str(p), "wb"), _SPOOL, options=pa.ipc.IpcWriteOptions(compression="lz4")) for p in self._spools]
        self._genes: dict[str, int] = {}
        self._is_control: list[bool] = []
        self._density_px = density_px
        self.density = np.zeros((-(-shape_px[0] // density_px), -(-shape_px[1] // density_px)), np.int64)
        self.by_plane: dict[str, int] = {}
        self.counts = {"total": 0, "genes": 0, "controls": 0, "outside_image": 0, "invalid": 0}
        self.first_invalid: int | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows (`raw.base.TRANSCRIPT_SCHEMA`). Rows without finite coordinates or gene are counted as `invalid` and left out.

        Raises
        ------
        InputError
            If a gene's name is none, or there are more genes or planes than any panel or stack has.
        """
        table = self._valid(table)
        if not table.num_rows:
            return
        codes = self._codes(table)
        x, y = table["x"].to_numpy(), table["y"].to_numpy()
        pixel = apply_affine(self._affine, np.column_stack([x, y]))
        inside = ((pixel >= 0) & (pixel < [self._shape[1], self._shape[0]])).all(axis=1)
        control = np.asarray(self._is_control)[codes]
        self.counts["total"] += len(codes)
        self.counts["controls"] += int(control.sum())
        self.counts["genes"] += int((~control).sum())
        self.counts["outside_image"] += int((~inside).sum())
        for plane, n in zip(*np.unique(table["z"].to_numpy(), return_counts=True), strict=True):
            name = f"{plane:g}"
            self.by_plane[name] = self.by_plane.get(name, 0) + int(n)
        if len(self.by_plane) > MAX_PLANES:
            raise InputError(f"there are more than {MAX_PLANES:,} different planes: the column of z must hold the number of the plane. Export the table again.")
        bins = pixel[inside & ~control].astype(np.int64) // self._density_px
        np.add.at(self.density, (bins[:, 1], bins[:, 0]), 1)
        rows = pa.table([table["x"], table["y"], table["z"], pa.array(codes), table["transcript_id"], table["vendor_cell"]], schema=_SPOOL)
        self._spread(rows, np.clip(np.searchsorted(self.bands, pixel[:, 1] * self._pixel, side="right"), 0, len(self.bands) - 1))

    def close(self) -> tuple[list[str], list[str]]:
        """Write the parts; give the genes and the controls, sorted."""
        for writer in self._writers:
            writer.close()
        controls = sorted(g for g, c in self._genes.items() if self._is_control[c])
        genes = sorted(g for g, c in self._genes.items() if not self._is_control[c])
        names = genes + controls
        number = np.empty(len(names), np.int32)
        number[[self._genes[g] for g in names]] = np.arange(len(names))
        schema = spatial.point_schema(names)
        for index, spool in enumerate(self._spools):
            with spatial.open_part(self._parts / f"part.{index}.parquet", schema) as writer:
                for rows in _batches(spool):
                    writer.write_table(_final(rows, number, names, len(genes), schema), row_group_size=_GROUP_ROWS)
            spool.unlink()
        return genes, controls

    def _valid(self, table: pa.Table) -> pa.Table:
        x, y = (pc.fill_null(table[c], np.nan).to_numpy() for c in "xy")
        good = (np.abs(x) < MAX_MICRON) & (np.abs(y) < MAX_MICRON) & pc.is_valid(table["gene"]).to_numpy()
        if good.all():
            return _known_plane(table)
        self.counts["invalid"] += int((~good).sum())
        if self.first_invalid is None:
            self.first_invalid = int(table["transcript_id"][int(np.flatnonzero(~good)[0])].as_py())
        return _known_plane(table.filter(pa.array(good)))

    def _codes(self, table: pa.Table) -> np.ndarray:
        column = table["gene"].combine_chunks().dictionary_encode()
        names, local = column.dictionary.to_pylist(), column.indices.to_numpy()
        control = table["is_control"].to_numpy()
        first = np.full(len(names), len(local))
        np.minimum.at(first, local, np.arange(len(local)))
        for name, row in zip(names, first, strict=True):
            if name not in self._genes:
                self._genes[name] = len(self._genes)
                self._is_control.append(bool(control[row]))
                if wrong := gene_problem(name):
                    raise InputError(wrong)
        if len(self._genes) > MAX_GENES:
            raise InputError(f"there are more than {MAX_GENES:,} different genes, more than any panel has. Is this the column of the genes?")
        return np.array([self._genes[n] for n in names], np.int32)[local]

    def _spread(self, rows: pa.Table, band: np.ndarray) -> None:
        for i in np.unique(band):
            self._writers[i].write_table(rows.take(pa.array(np.flatnonzero(band == i))).combine_chunks())


def _known_plane(table: pa.Table) -> pa.Table:
    """Rows without a plane, or with one that is no number, are in plane 0."""
    known = pc.fill_null(pc.is_finite(table["z"]), False)
    if pc.all(known).as_py() is not False:
        return table
    return table.set_column(table.schema.get_field_index("z"), "z", pc.if_else(known, table["z"], pa.scalar(0, pa.float32())))


def _batches(spool: Path) -> Any:
    waiting: list[pa.RecordBatch] = []
    with pa.OSFile(str(spool)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            waiting.append(batch)
            if sum(b.num_rows for b in waiting) >= _GROUP_ROWS:
                yield pa.Table.from_batches(waiting)
                waiting = []
    yield pa.Table.from_batches(waiting, schema=_SPOOL)


def _final(rows: pa.Table, number: np.ndarray, names: list[str], n_genes: int, schema: pa.Schema) -> pa.Table:
    codes = number[rows["gene"].to_numpy()] if rows.num_rows else np.empty(0, np.int32)
    gene = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))
    return pa.table([rows["x"], rows["y"], rows["z"], gene, pa.array(codes >= n_genes), rows["transcript_id"], rows["vendor_cell"]], schema=schema)
