"""Tables copied in part, in the form of their source; what of them lies in a rectangle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import shapely

from istseg.raw import tables
from istseg.raw.base import RawSample


def copy(source: Path, target: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Copy what `change` leaves of each block of rows; columns keep their types. Those of csv come as text, so numbers stay the text they are."""
    if tables.is_parquet(source):
        with pq.ParquetFile(source) as stored, pq.ParquetWriter(target, stored.schema_arrow) as writer:
            for batch in stored.iter_batches(1 << 18):
                writer.write_table(change(pa.Table.from_batches([batch])))
        return
    names = tables.header(source)
    with pa.CompressedOutputStream(str(target), "gzip") if tables.is_gzip(source) else pa.OSFile(str(target), "wb") as stream:
        stream.write((",".join(f'"{n}"' if "," in n else n for n in names) + "\n").encode())
        for block in tables.stream(source, dict.fromkeys(names, pa.string())):
            pyarrow.csv.write_csv(change(block), stream, pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed"))


def within(table: pa.Table, names: tuple[str, str], low: np.ndarray, high: np.ndarray) -> pa.Table:
    """Rows whose columns `names` (x, y) lie from `low` to before `high`."""
    xy = np.column_stack([pc.cast(table[name], pa.float64()).to_numpy() for name in names])
    return table.filter(pa.array(_inside(xy, low, high)))


def cells_within(reader: RawSample, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Ids of the vendor's cells whose middle lies from `low` to before `high` (x, y in µm)."""
    ids, polygons, _ = reader.vendor_cells(None)
    if not polygons:
        return []
    middle = shapely.get_coordinates(shapely.centroid(np.array(polygons, object)))
    return [name for name, there in zip(ids, _inside(middle, low, high), strict=True) if there]


def _inside(xy: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return ((xy >= low) & (xy < high)).all(axis=1)
