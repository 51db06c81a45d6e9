"""Tables copied in part, in the form of their source; what of them lies in a rectangle."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import shapely

from istseg.errors import InputError
from istseg.raw import tables
from istseg.raw.base import RawSample

_QUOTED = '[",\r\n]'
"""What a value holds that needs quotes."""


def copy(source: Path, target: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Copy what `change` leaves of each block of rows; columns keep their types. Those of csv come as text, so all values stay the text they are.

    Raises
    ------
    InputError
        If the table is empty or damaged, or `change` finds a value that it cannot read; the message names the table.
    """

    def changed(block: pa.Table) -> pa.Table:
        try:
            return change(block)
        except InputError as error:
            raise InputError([f"{source}: {text}" for text in error.problems]) from None

    if tables.is_parquet(source):
        with pq.ParquetFile(source) as stored, pq.ParquetWriter(target, stored.schema_arrow) as writer:
            for batch in stored.iter_batches(1 << 18):
                writer.write_table(changed(pa.Table.from_batches([batch])))
        return
    names = tables.header(source)
    if double := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(f"{source}: has the columns {', '.join(map(repr, double[:3]))} more than once. Correct the table.")
    with pa.CompressedOutputStream(str(target), "gzip") if tables.is_gzip(source) else pa.OSFile(str(target), "wb") as stream:
        head = io.StringIO()
        csv.writer(head, lineterminator="\n").writerow(names)
        stream.write(head.getvalue().encode())
        for block in tables.stream(source, dict.fromkeys(names, pa.string()), text_nulls=False):
            stream.write(_rows(changed(block)))


def _rows(table: pa.Table) -> bytes | pa.Buffer:
    """Rows as CSV, with quotes around values that need them and no others: Arrow writes all text with quotes, or none and refuses values that need them."""
    plain = pa.BufferOutputStream()
    try:
        pyarrow.csv.write_csv(table, plain, pyarrow.csv.WriteOptions(include_header=False, quoting_style="none"))
        return plain.getvalue()
    except pa.ArrowInvalid:
        lines = pc.binary_join_element_wise(*map(_quoted, table.columns), ",")
        return "".join(f"{line}\n" for line in lines.to_pylist()).encode()


def _quoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.fill_null(column, "")
    doubled = pc.binary_join_element_wise('"', pc.replace_substring(text, '"', '""'), '"', "")
    return pc.if_else(pc.match_substring_regex(text, _QUOTED), doubled, text)


def numbers(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as float64, null where it has no value.

    Raises
    ------
    InputError
        If a value is no number; the message names the column alone.
    """
    column = table[name]
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.is_in(column, pa.array(tables.NULLS)), pa.scalar(None, pa.string()), column)
    try:
        return pc.cast(column, pa.float64())
    except pa.ArrowInvalid as error:
        raise InputError(f"a value of the column {name} cannot be read ({error}). Correct the table.") from None


def within(table: pa.Table, names: tuple[str, str], low: np.ndarray, high: np.ndarray) -> pa.Table:
    """Rows whose columns `names` (x, y) lie from `low` to before `high`."""
    xy = np.column_stack([numbers(table, name).to_numpy() for name in names])
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
