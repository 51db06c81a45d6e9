"""`vendor_planes.parquet`: outlines of cells plane by plane, where they differ between planes; no rows where they do not.

One row for each cell and plane: `cell_id`, `z` (number of the plane), `min_y_um`, `max_y_um`, `geometry` (WKB, µm). Rows lie in bands of y, so that a reader
takes only the row groups that reach into its part of the slide.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from istseg.artifacts.files import whole
from istseg.errors import InputError

SCHEMA = pa.schema([("cell_id", pa.string()), ("z", pa.int32()), ("min_y_um", pa.float64()), ("max_y_um", pa.float64()), ("geometry", pa.binary())])
BAND_UM = 250.0
_GROUP_ROWS = 4096


def write(path: Path, outlines: Iterable[tuple[str, int, shapely.Polygon]], scratch: Path) -> bool:
    """Write outlines as they come, all planes of a cell together; memory holds one band.

    Parameters
    ----------
    outlines
        Id of the cell, plane, valid polygon (µm).
    scratch
        Existing folder for rows that wait for their band.

    Returns
    -------
    Whether cells differ by plane: an outline differs between two planes of its cell, or cells have different planes. Else the file has no rows.
    """
    spools: dict[int, tuple[Path, pq.ParquetWriter]] = {}
    waiting: dict[int, list[tuple[str, int, float, float, bytes]]] = {}
    differ = False
    first_of: dict[str, tuple[int, int]] = {}
    planes_of: dict[str, tuple[int, ...]] = {}
    for cell, z, polygon in outlines:
        _, low, _, high = polygon.bounds
        wkb = shapely.to_wkb(polygon)
        first, band = first_of.setdefault(cell, (hash(wkb), int(low // BAND_UM)))
        differ |= first != hash(wkb)
        planes_of[cell] = (*planes_of.get(cell, ()), z)
        rows = waiting.setdefault(band, [])
        rows.append((cell, z, low, high, wkb))
        if len(rows) >= _GROUP_ROWS:
            _spill(scratch, spools, band, rows)
    differ |= len({tuple(sorted(set(planes))) for planes in planes_of.values()}) > 1
    try:
        for band, rows in waiting.items():
            _spill(scratch, spools, band, rows)
        with whole(path) as part, pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            for band in sorted(spools) if differ else ():
                spool, opened = spools[band]
                opened.close()
                writer.write_table(pq.read_table(spool, partitioning=None), row_group_size=_GROUP_ROWS)
    finally:
        for spool, opened in spools.values():
            opened.close()
            spool.unlink()
    return differ


def _spill(scratch: Path, spools: dict[int, tuple[Path, pq.ParquetWriter]], band: int, rows: list[tuple[str, int, float, float, bytes]]) -> None:
    if band not in spools:
        path = scratch / f"planes.{band}.parquet"
        spools[band] = path, pq.ParquetWriter(path, SCHEMA)
    if rows:
        spools[band][1].write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA))
    rows.clear()


class Planes:
    """Reads the file, the row groups of a strip of the slide at a time.

    Parameters
    ----------
    cell_ids
        (n,) cells of the segmentation, in their order.

    Raises
    ------
    InputError
        If the file is no such table or names a cell that is not there.

    Attributes
    ----------
    planes
        int (m,) planes that any cell has, sorted; empty where cells do not differ by plane.
    """

    def __init__(self, path: Path, cell_ids: np.ndarray):
        self.path, self._cells = Path(path), pd.Index(cell_ids)
        try:
            self._file = pq.ParquetFile(path)
            found = self._file.schema_arrow
            wrong = not found.equals(SCHEMA)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read as Parquet ({error}); run convert again.") from None
        if wrong:
            raise InputError(f"{path}: has the columns {found.names}, not those of outlines by plane ({', '.join(SCHEMA.names)}); run convert again.")
        self._spans, planes = [], set()
        for i in range(self._file.num_row_groups):
            table = self._file.read_row_group(i, columns=["cell_id", "z", "min_y_um", "max_y_um"])
            self._codes(table["cell_id"])
            planes.update(table["z"].unique().to_pylist())
            self._spans.append((min(table["min_y_um"].to_pylist()), max(table["max_y_um"].to_pylist())))
        self.planes = np.array(sorted(planes), np.int64)

    def groups(self, y0: float, y1: float) -> tuple[int, ...]:
        """Row groups with an outline that reaches into [y0, y1] µm."""
        return tuple(i for i, (low, high) in enumerate(self._spans) if low <= y1 and high >= y0)

    def read(self, groups: tuple[int, ...]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Plane → (place of the cell in `cell_ids`, polygon), in the order of the cells."""
        if not groups:
            return {}
        table = self._file.read_row_groups(list(groups), columns=["cell_id", "z", "geometry"])
        cell, z = self._codes(table["cell_id"]), table["z"].to_numpy()
        try:
            polygons = shapely.from_wkb(table["geometry"].to_numpy())
        except shapely.errors.GEOSException as error:
            raise InputError(f"{self.path}: holds an outline that cannot be read ({error}); run convert again.") from None
        found = {}
        for plane in np.unique(z):
            rows = np.flatnonzero(z == plane)
            rows = rows[np.argsort(cell[rows], kind="stable")]
            found[int(plane)] = cell[rows], polygons[rows]
        return found

    def _codes(self, ids: pa.ChunkedArray) -> np.ndarray:
        values = ids.to_numpy()
        codes = self._cells.get_indexer(values)
        if (codes < 0).any():
            raise InputError(f"{self.path}: names the cell {values[codes < 0][0]!r}, which the cells do not have; the two come from different conversions.")
        return codes
