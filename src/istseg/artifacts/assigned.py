"""`transcripts.parquet` of `assign`, read again: every transcript of a sample with its cell, in row groups, in the same order for every segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from istseg.errors import InputError

_COLUMNS = {"transcript_id", "x", "y", "gene", "is_control", "cell_id"}


@dataclass(frozen=True)
class Molecules:
    """Transcripts of one row group.

    Attributes
    ----------
    transcript_id
        int64 (n,).
    xy
        (n, 2) µm; empty when not asked for.
    gene
        int64 (n,): place in the list of genes that was given, −1 for others (control probes); empty when not asked for.
    is_control
        bool (n,).
    cell
        int64 (n,): place in the list of cells that was given, −1 outside of cells.
    """

    transcript_id: np.ndarray
    xy: np.ndarray
    gene: np.ndarray
    is_control: np.ndarray
    cell: np.ndarray


class AssignedTranscripts:
    """The transcripts of one segmentation.

    Parameters
    ----------
    path
        `transcripts.parquet` of assign.
    cell_ids
        Cells of the segmentation; their place is what `Molecules.cell` says.
    genes
        Genes of the sample; None: not read.

    Raises
    ------
    InputError
        If the file is missing, cannot be read or lacks a column; on reading, if it names a cell that `cell_ids` lacks.
    """

    def __init__(self, path: Path, cell_ids: list[str], genes: list[str] | None = None):
        self.path = path
        self._cells = pd.Index(cell_ids, dtype=object)
        self._genes = None if genes is None else pd.Index(genes, dtype=object)
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; it should be the transcripts.parquet of the stage assign.") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path}: cannot be read as parquet ({error}). Was it cut off? Run assign again.") from None
        if missing := _COLUMNS - set(self._file.schema_arrow.names):
            raise InputError(f"{path}: lacks the columns {sorted(missing)}; it should be the transcripts.parquet of the stage assign.")

    @property
    def sizes(self) -> list[int]:
        """Rows of each row group."""
        return [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]

    def group(self, number: int, places: bool = True) -> Molecules:
        """One row group; without coordinates when `places` is False."""
        wanted = ["transcript_id", "is_control", "cell_id", *(["x", "y"] if places else []), *(["gene"] if self._genes is not None else [])]
        table = self._file.read_row_group(number, columns=wanted)
        cell, unknown = _codes(table["cell_id"], self._cells)
        if unknown:
            raise InputError(f"{self.path}: names the cell {unknown!r}, which the cells do not have; the two come from different runs of assign.")
        return Molecules(
            transcript_id=table["transcript_id"].to_numpy(),
            xy=np.column_stack([table["x"].to_numpy(), table["y"].to_numpy()]) if places else np.empty((0, 2)),
            gene=np.empty(0, np.int64) if self._genes is None else _codes(table["gene"], self._genes)[0],
            is_control=table["is_control"].to_numpy(),
            cell=cell,
        )

    def __iter__(self) -> Iterator[Molecules]:
        return (self.group(i) for i in range(self._file.num_row_groups))


def together(sources: list[AssignedTranscripts]) -> Iterator[tuple[Molecules, ...]]:
    """The same transcripts of several segmentations, row group by row group; coordinates in the first only.

    Raises
    ------
    InputError
        If the files do not hold the same transcripts in the same order.
    """
    sizes = sources[0].sizes
    for source in sources[1:]:
        if source.sizes != sizes:
            raise InputError(_other(source, sources[0]))
    for number in range(len(sizes)):
        groups = tuple(source.group(number, places=source is sources[0]) for source in sources)
        for source, group in zip(sources[1:], groups[1:], strict=True):
            if not np.array_equal(group.transcript_id, groups[0].transcript_id):
                raise InputError(_other(source, sources[0]))
        yield groups


def _other(source: AssignedTranscripts, first: AssignedTranscripts) -> str:
    return f"{source.path}: does not hold the same transcripts in the same order as {first.path}; run assign again for all segmentations of the sample."


def _codes(column: pa.ChunkedArray, names: pd.Index) -> tuple[np.ndarray, str | None]:
    """Places of values in a list, −1 for null, empty and unknown ones; and one of the unknown."""
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    values = array.dictionary.to_pylist()
    places = np.append(names.get_indexer(pd.Index(values, dtype=object)), -1) if values else np.array([-1])
    index = array.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    unknown = next((v for v, p in zip(values, places, strict=False) if p < 0 and v), None)
    return places[index].astype(np.int64), unknown
