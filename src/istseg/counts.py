"""Counts of transcripts per cell: gathered band by band, written as AnnData."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from istseg.artifacts.files import whole

if TYPE_CHECKING:
    from anndata import AnnData

_PENDING = 4_000_000
"""Molecules that may wait before they are summed: bounds the memory by this and by the counts themselves."""

OBS_COLUMNS = ["cell_id", "sample", "area_um2", "centroid_x_um", "centroid_y_um", "n_transcripts", "n_genes", "n_control"]


class CountMatrix:
    """Cell × target counts that grow by additions.

    Parameters
    ----------
    n_cells, n_targets
        Shape of the matrix.
    """

    def __init__(self, n_cells: int, n_targets: int):
        self.shape = n_cells, n_targets
        self._keys = np.empty(0, np.int64)
        self._values = np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._n_pending = 0

    def add(self, cell: np.ndarray, target: np.ndarray) -> None:
        """Count one molecule per entry; `cell` and `target` are (n,) indices."""
        self._pending.append(cell.astype(np.int64) * self.shape[1] + target)
        self._n_pending += len(cell)
        if self._n_pending > _PENDING:
            self._sum()

    def _sum(self) -> None:
        if not self._n_pending:
            return
        keys, values = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._n_pending = [], 0
        if not len(self._keys):
            self._keys, self._values = keys, values
            return
        both = np.concatenate([self._keys, keys])
        self._keys, inverse = np.unique(both, return_inverse=True)
        self._values = np.bincount(inverse, weights=np.concatenate([self._values, values])).astype(np.int64)

    def csr(self) -> sparse.csr_matrix:
        """(cells, targets) CSR float32 with sorted indices, without stored zeros.

        float32 and not int32: it is what scanpy's own readers give and what R's sparse matrices (double only) convert to without a detour;
        it holds every count up to 16.7 million exactly.
        """
        self._sum()
        rows, columns = np.divmod(self._keys, max(self.shape[1], 1))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=self.shape[0]))])
        index_type = np.int32 if max(len(self._keys), *self.shape) < 2**31 else np.int64
        matrix = sparse.csr_matrix((self._values.astype(np.float32), columns.astype(index_type), indptr.astype(index_type)), shape=self.shape)
        matrix.has_sorted_indices = True
        return matrix


def build(
    sample: str, segmentation: str, cells: pd.DataFrame, targets: tuple[list[str], list[str]], counts: sparse.csr_matrix, facts: dict[str, Any]
) -> AnnData:
    """AnnData of one segmentation, one row per cell of `cells` (cells without transcripts too).

    Parameters
    ----------
    cells
        Columns `cell_id`, `area_um2`, `centroid_x_um`, `centroid_y_um`.
    targets
        Names of the genes and of the control probes.
    counts
        (cells, genes + controls) in that order.
    facts
        Goes into `uns["istseg"]`, see `h5ad_safe`.

    Returns
    -------
    AnnData with `X` (genes only), `obs` with `OBS_COLUMNS`, `obsm["spatial"]` in µm and `obsm["controls"]`
    (sparse; its columns are named in `uns["istseg"]["controls"]`, a JSON list).
    """
    from anndata import AnnData

    genes, controls = targets
    x, control = counts[:, : len(genes)], counts[:, len(genes) :]
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
