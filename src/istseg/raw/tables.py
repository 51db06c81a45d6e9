"""Large raw tables (csv, csv.gz, parquet) as a stream of Arrow tables with checked columns."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from istseg.cpus import given_cpus
from istseg.errors import InputError

PART_BYTES = 8 << 20
"""Of a text table, parsed by one thread."""
_MOST_THREADS = 4
"""What takes the rows is not faster than this many."""
BLOCK_BYTES = 1 << 20
"""Parsed at a time: larger blocks leave the processor's cache and take a fifth longer."""
_BLOCKS = 4
"""Given at a time."""
SAMPLE_BYTES = 4 << 20
SAMPLE_PLACES = 5
NULLS = ["", "NA", "NaN", "nan", "NULL", "null", "None"]
_MAX_HEADER = 1 << 22


def is_parquet(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() == ".parquet"


def is_gzip(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() == ".gz"


def header(path: Path) -> list[str]:
    """Column names.

    Raises
    ------
    InputError
        If the file cannot be read or has no header.
    """
    try:
        if is_parquet(path):
            return pq.read_schema(path).names
        with gzip.open(path, "rb") if is_gzip(path) else open(path, "rb") as stream:
            line = stream.readline(_MAX_HEADER)
    except (OSError, EOFError, pa.ArrowException, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Was it copied in full?") from None
    if not line.strip():
        raise InputError(f"{path}: is empty. Was it copied in full?")
    try:
        names = next(csv.reader(io.StringIO(line.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: is not a text table; its first line cannot be read as UTF-8.") from None
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise InputError(f"{path}: the columns are separated by {'tabs' if chr(9) in names[0] else 'semicolons'}, they must be by commas.")
    return [name.strip() for name in names]


def line_end_warnings(paths: list[Path]) -> list[str]:
    """What to tell of text tables whose last line has no end: a copy that was cut off inside its last value looks like that."""
    cut = []
    for path in paths:
        if not is_parquet(path) and not is_gzip(path) and path.stat().st_size:
            with open(path, "rb") as stream:
                stream.seek(-1, os.SEEK_END)
                cut += [path.name] if stream.read(1) not in (b"\n", b"\r") else []
    return [f"The last line of {name} has no end: if the file was cut off, rows are missing and the last one may be wrong. Compare its size." for name in cut]


def find_column(names: list[str], *wanted: str) -> str | None:
    """First of the wanted names that is there; as it is written before any other case, because CosMx has `cell_ID` and `cell_id` in one table."""
    exact = next((w for w in wanted if w in names), None)
    if exact:
        return exact
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[w.lower()] for w in wanted if w.lower() in lower), None)


def stream(path: Path, columns: dict[str, pa.DataType], text_nulls: bool = True) -> Iterator[pa.Table]:
    """Give the wanted columns in blocks of bounded size, in the order of the rows.

    Parameters
    ----------
    text_nulls
        Whether `NULLS` are missing values in columns of text, too; else these are what the file holds.

    Raises
    ------
    InputError
        On a malformed row, a value that is no number, or a file cut off.
    """
    schema = pa.schema(list(columns.items()))
    options = _options(columns, text_nulls)
    try:
        if is_parquet(path):
            with pq.ParquetFile(path) as stored:
                for batch in stored.iter_batches(batch_size=1 << 18, columns=list(columns)):
                    yield _cast(pa.Table.from_batches([batch]), schema, path)
            return
        with pa.OSFile(str(path)) as raw:
            if is_gzip(path):
                yield from _tables(pa.CompressedInputStream(raw, "gzip"), options)
            else:
                yield from _in_parts(raw, _part_ends(path), options)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: {_explain(error)}") from None


def sample(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """Rows from several places of the table, bounded in number: all rows of a small table; only its first part when compressed.

    Raises
    ------
    InputError
        As `stream`.
    """
    schema = pa.schema(list(columns.items()))
    try:
        if is_parquet(path):
            with pq.ParquetFile(path) as stored:
                return _cast(_parquet_sample(stored, list(columns)), schema, path)
        size = os.path.getsize(path)
        if is_gzip(path):
            with gzip.open(path, "rb") as opened:
                text = opened.read(SAMPLE_BYTES * SAMPLE_PLACES)
                text = text if not opened.read(1) else text[: text.rfind(b"\n") + 1]
            return _parse(text, columns, schema)
        with open(path, "rb") as opened:
            if size <= SAMPLE_BYTES * SAMPLE_PLACES:
                return _parse(opened.read(), columns, schema)
            head = opened.readline(_MAX_HEADER)
            parts = []
            for place in range(SAMPLE_PLACES):
                opened.seek(max(len(head), (size - SAMPLE_BYTES) * place // (SAMPLE_PLACES - 1)))
                if place:
                    opened.readline(_MAX_HEADER)
                text = opened.read(SAMPLE_BYTES)
                last = place == SAMPLE_PLACES - 1
                parts.append(_parse(head + (text if last else text[: text.rfind(b"\n") + 1]), columns, schema))
        return pa.concat_tables(parts)
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {_explain(error)}") from None


def _parquet_sample(stored: pq.ParquetFile, columns: list[str]) -> pa.Table:
    groups = stored.metadata.num_row_groups
    if not groups:
        return stored.schema_arrow.empty_table().select(columns)
    places = sorted({groups * i // SAMPLE_PLACES for i in range(SAMPLE_PLACES)})
    tables = [next(stored.iter_batches(batch_size=100_000, row_groups=[g], columns=columns), None) for g in places]
    return pa.Table.from_batches([t for t in tables if t is not None], schema=stored.schema_arrow if not any(tables) else None)


def _tables(source: object, options: pa.csv.ConvertOptions, names: list[str] | None = None) -> Iterator[pa.Table]:
    blocks = (batch for batch in _csv(source, options, names) if batch.num_rows)
    while together := list(islice(blocks, _BLOCKS)):
        yield pa.Table.from_batches(together).select(options.include_columns)


def _part_ends(path: Path) -> list[int]:
    """Where parts of a text table end: behind the ends of lines, about `PART_BYTES` apart."""
    size = os.path.getsize(path)
    ends = []
    with open(path, "rb") as opened:
        for place in range(PART_BYTES, size - PART_BYTES // 2, PART_BYTES):
            opened.seek(place)
            line = opened.readline(_MAX_HEADER)
            if line.endswith(b"\n"):
                ends.append(place + len(line))
    return [*ends, size]


def _in_parts(raw: pa.NativeFile, ends: list[int], options: pa.csv.ConvertOptions) -> Iterator[pa.Table]:
    """Parts of a text table parsed by a few threads, in their order."""
    if len(ends) == 1:
        yield from _tables(raw, options)
        return
    names = pa.csv.read_csv(pa.BufferReader(raw.read_at(min(ends[0], _MAX_HEADER), 0).splitlines()[0] + b"\n")).column_names
    n = min(given_cpus(), _MOST_THREADS)
    with ThreadPoolExecutor(n) as threads:
        pending: deque[Future[list[pa.Table]]] = deque()
        try:
            for start, end in pairwise([0, *ends]):
                part = raw.get_stream(start, end - start)
                pending.append(threads.submit(lambda *given: list(_tables(*given)), part, options, names if start else None))
                if len(pending) > n:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except pa.ArrowException:
            # The message of a part counts its rows from its own beginning.
            for _ in _tables(raw.get_stream(0, ends[-1]), options):
                pass
            raise
        finally:
            for part in pending:
                part.cancel()


def _options(columns: dict[str, pa.DataType], text_nulls: bool = True) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(include_columns=list(columns), column_types=columns, null_values=NULLS, strings_can_be_null=text_nulls)


def _csv(source: object, options: pa.csv.ConvertOptions, names: list[str] | None = None) -> pa.csv.CSVStreamingReader:
    """Reader of the rows; `names` of all columns where the text has no header."""
    return pa.csv.open_csv(
        source,
        read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, column_names=names),
        convert_options=options,
    )


def _parse(text: bytes, columns: dict[str, pa.DataType], schema: pa.Schema) -> pa.Table:
    with _csv(pa.BufferReader(text), _options(columns)) as reader:
        return reader.read_all().select(schema.names)


def _cast(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    arrays = []
    for wanted in schema:
        column = table.column(wanted.name)
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        if pa.types.is_floating(column.type) and pa.types.is_string(wanted.type):
            raise InputError(
                f"{path}: the column {wanted.name} holds floating-point numbers; long ids lose digits that way. Store it as whole numbers or text."
            )
        arrays.append(column.cast(wanted.type))
        if pa.types.is_string(wanted.type):
            # Parquet's text is taken as it lies in the file; that of CSV was checked when it was read.
            arrays[-1].validate(full=True)
    return pa.table(arrays, schema=schema)


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Expected" in text and "columns" in text:
        return f"a row has the wrong number of columns ({text[:300]}). Was the file cut off or edited?"
    if "conversion error" in text:
        return f"a value cannot be read ({text[:300]}). Correct the table."
    if "ncompress" in text or "Truncated" in text or "end-of-stream" in text or "gzip" in text.lower() or "zlib" in text.lower():
        return f"the compressed file is damaged or cut off ({text[:200]}). Copy it again."
    if "Empty CSV" in text:
        return "is empty. Was it copied in full?"
    return f"cannot be read ({text[:300]})."
