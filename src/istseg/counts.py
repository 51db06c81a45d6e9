"""Counts of transcripts per cell: gathered band by band, written as AnnData."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from istseg.artifacts.files import whole

if TYPE_CHECKING:
    from anndata import AnnData

_PENDING = 1_000_000
"""Molecules that wait in memory before they are summed and put on disk."""
_CELLS_AT_ONCE = 2_000
_ENTRY = np.dtype([("key", np.int64), ("count", np.int32)])

OBS_COLUMNS = ["cell_id", "sample", "area_um2", "centroid_x_um", "centroid_y_um", "n_transcripts", "n_genes", "n_control"]


class CountMatrix:
    """Cell × target counts that grow by additions.

    Sums of a part of the molecules wait in a temporary file until `csr` merges them, so that memory holds the final matrix once and nothing
    else that grows with the slide.

    Parameters
    ----------
    n_cells, n_targets
        Shape of the matrix.

    """

    def __init__(self, n_cells: int, n_targets: int):
        self.shape = n_cells, n_targets
        self._pending: list[np.ndarray] = []
        self._n_pending = 0
        self._sums: list[int] = []
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the matrix

    def add(self, cell: np.ndarray, target: np.ndarray) -> None:
        """Count one molecule per entry; `cell` and `target` are (n,) indices."""
        self._pending.append(cell.astype(np.int64) * self.shape[1] + target)
        self._n_pending += len(cell)
        if self._n_pending >= _PENDING:
            self._sum()

    def _sum(self) -> None:
        if not self._n_pending:
            return
        keys, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._n_pending = [], 0
        entries = np.empty(len(keys), _ENTRY)
        entries["key"], entries["count"] = keys, counts
        self._spool.seek(0, 2)
        self._spool.write(entries.tobytes())
        self._sums.append(len(entries))

    def csr(self) -> sparse.csr_matrix:
        """(cells, targets) CSR float32 with sorted indices, without stored zeros.

        float32 and not int32: it is what scanpy's own readers give and what R's sparse matrices (double only) convert to without a detour;
        it holds every count up to 16.7 million exactly.
        """
        self._sum()
        n_cells, n_targets = self.shape
        most = sum(self._sums)
        index_type = np.int32 if max(most, *self.shape) < 2**31 else np.int64
        # Untouched pages of a too large array cost nothing.
        data, indices, indptr = np.empty(most, np.float32), np.empty(most, index_type), np.zeros(n_cells + 1, index_type)
        done = 0
        starts = np.cumsum([0, *self._sums])
        readers = [_SumReader(self._spool, int(start), n) for start, n in zip(starts, self._sums, strict=False)]
        for first in range(0, n_cells, _CELLS_AT_ONCE):
            last = min(first + _CELLS_AT_ONCE, n_cells)
            taken = [reader.until(last * n_targets) for reader in readers]
            entries = np.concatenate(taken) if taken else np.empty(0, _ENTRY)
            keys, inverse = np.unique(entries["key"], return_inverse=True)
            rows, columns = np.divmod(keys, max(n_targets, 1))
            data[done : done + len(keys)] = np.bincount(inverse, weights=entries["count"], minlength=len(keys))
            indices[done : done + len(keys)] = columns
            indptr[first + 1 : last + 1] = done + np.cumsum(np.bincount(rows - first, minlength=last - first))
            done += len(keys)
        matrix = sparse.csr_matrix((data[:done], indices[:done], indptr), shape=self.shape)
        matrix.has_sorted_indices = True
        return matrix


class _SumReader:
    """Reads one sorted run of entries from the spool, forward."""

    _BLOCK = 1 << 13

    def __init__(self, spool: IO[bytes], start: int, n: int):
        self._spool, self._at, self._end = spool, start, start + n
        self._held = np.empty(0, _ENTRY)

    def until(self, key: int) -> np.ndarray:
        """Entries below a key that were not given yet."""
        taken = []
        while True:
            split = int(np.searchsorted(self._held["key"], key))
            taken.append(self._held[:split])
            self._held = self._held[split:]
            if len(self._held) or self._at == self._end:
                return np.concatenate(taken)
            n = min(self._BLOCK, self._end - self._at)
            self._spool.seek(self._at * _ENTRY.itemsize)
            self._held = np.frombuffer(self._spool.read(n * _ENTRY.itemsize), _ENTRY)
            self._at += n


def build(
    sample: str,
    segmentation: str,
    cells: pd.DataFrame,
    targets: tuple[list[str], list[str]],
    counts: tuple[sparse.csr_matrix, sparse.csr_matrix],
    facts: dict[str, Any],
) -> AnnData:
    """AnnData of one segmentation, one row per cell of `cells` (cells without transcripts too).

    Parameters
    ----------
    cells
        Columns `cell_id`, `area_um2`, `centroid_x_um`, `centroid_y_um`.
    targets
        Names of the genes and of the control probes.
    counts
        (cells, genes) and (cells, controls).
    facts
        Goes into `uns["istseg"]`, see `h5ad_safe`.

    Returns
    -------
    AnnData with `X` (genes only), `obs` with `OBS_COLUMNS`, `obsm["spatial"]` in µm and `obsm["controls"]`
    (sparse; its columns are named in `uns["istseg"]["controls"]`, a JSON list).

    """
    from anndata import AnnData

    genes, controls = targets
    x, control = counts
    ids = cells["cell_id"].to_numpy(dtype=object)
    obs = pd.DataFrame(
        {
            "cell_id": ids,
            "sample": pd.Categorical([sample] * len(ids), categories=[sample]),
            "area_um2": cells["area_um2"].to_numpy(float),
            "centroid_x_um": cells["centroid_x_um"].to_numpy(float),
            "centroid_y_um": cells["centroid_y_um"].to_numpy(float),
            "n_transcripts": np.asarray(x.sum(axis=1)).ravel().astype(np.int32),
            "n_genes": np.diff(x.indptr).astype(np.int32),
            "n_control": np.asarray(control.sum(axis=1)).ravel().astype(np.int32),
        },
        index=pd.Index(ids, dtype=object),
    )
    adata = AnnData(X=x, obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)))
    adata.obsm["spatial"] = obs[["centroid_x_um", "centroid_y_um"]].to_numpy(float)
    adata.obsm["controls"] = control
    adata.uns["istseg"] = h5ad_safe({**facts, "sample": sample, "segmentation": segmentation, "controls": list(controls)})
    return adata


def h5ad_safe(record: dict[str, Any]) -> dict[str, Any]:
    """The record in the kinds of values that every reader of h5ad and zarr knows: numbers, strings, lists of numbers, and nested records.

    None is left out (R readers do not know it), a `/` in a key becomes `|` (HDF5 would read a path), everything else becomes a JSON string: lists of
    strings too, because they come back from zarr as arrays whose copy crashes numpy 2.0, and so would every `adata.copy()`.
    """
    safe: dict[str, Any] = {}
    for key, value in record.items():
        key = str(key).replace("/", "|")
        if value is None:
            continue
        if isinstance(value, dict):
            safe[key] = h5ad_safe(value)
        elif isinstance(value, (bool, int, float, str)):
            safe[key] = value
        elif isinstance(value, (list, tuple)) and value and all(type(v) in (int, float) for v in value):
            safe[key] = list(value)
        else:
            safe[key] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return safe


def write(path: str | Path, adata: AnnData) -> None:
    """Write the whole file or nothing; the same data give the same bytes."""
    with whole(path) as part:
        adata.write_h5ad(part, compression="gzip")
