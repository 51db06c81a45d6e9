"""Large tables of a result as text, written piece by piece: counts of the cells, transcripts with their cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from scipy import sparse

from istseg.artifacts.sample import apply_affine
from istseg.export.result import Result

_CELLS_AT_ONCE = 2_000


def write_counts(result: Result, keys: pd.DataFrame, path: Path) -> None:
    """CSV with one row for each cell: the columns of `keys`, then the counts of the genes and of the control probes."""
    counts = sparse.hstack([result.table.X, result.table.obsm["controls"]], format="csr")
    names = [*result.table.var_names, *result.controls]
    pd.DataFrame(columns=[*keys.columns, *names]).to_csv(path, index=False)
    for start in range(0, len(keys), _CELLS_AT_ONCE):
        rows = counts[start : start + _CELLS_AT_ONCE].toarray().astype(np.int64)
        piece = keys.iloc[start : start + _CELLS_AT_ONCE]
        pd.concat([piece, pd.DataFrame(rows, columns=names, index=piece.index)], axis=1).to_csv(path, mode="a", header=False, index=False)


def transcripts(result: Result, numbers: np.ndarray, outside: int) -> Iterator[tuple[pd.DataFrame, np.ndarray, np.ndarray]]:
    """Row groups of the assigned transcripts, at least one: the rows, (n, 2) full-resolution pixels, int64 (n,) number of the cell.

    Parameters
    ----------
    numbers
        int64 (cells,): of each cell of the result.
    outside
        Number of the transcripts outside of cells.
    """
    number_of = pd.Series(numbers, index=result.cells["cell_id"].to_numpy(dtype=object))
    with pq.ParquetFile(result.transcripts) as stored:
        for group in range(max(stored.num_row_groups, 1)):
            frame = (stored.read_row_group(group) if stored.num_row_groups else stored.read()).to_pandas()
            in_cell = frame["cell_id"].notna().to_numpy()
            cell = np.full(len(frame), outside, np.int64)
            cell[in_cell] = number_of.loc[frame.loc[in_cell, "cell_id"].astype(object)].to_numpy()
            yield frame, apply_affine(result.sample.affine, frame[["x", "y"]].to_numpy()), cell


def append(stream: IO[bytes], columns: dict[str, object], header: bool) -> None:
    """Append rows to a CSV file. pyarrow would put its header in quotes, and vpt then finds no column."""
    if header:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(columns)
        stream.write(text.getvalue().encode())
    pc.write_csv(pa.table(columns), stream, pc.WriteOptions(include_header=False))
