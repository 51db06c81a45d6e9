"""UMAP and clusters of the counts, scanpy's standard steps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

MIN_CELLS, MIN_GENES = 30, 5
_COMPONENTS = 30
_NEIGHBOURS = 15


@dataclass(frozen=True)
class Embedding:
    """What was embedded.

    Attributes
    ----------
    rows
        (k,) rows of the AnnData, ascending; none when there was nothing to embed.
    xy
        (k, 2) float32 UMAP.
    cluster
        (k,) int, clusters by Leiden's method, the largest is 0.
    reason
        Why there is none, in words.
    """

    rows: np.ndarray
    xy: np.ndarray
    cluster: np.ndarray
    reason: str | None = None


def embed(adata: AnnData, max_cells: int, seed: int) -> Embedding:
    """UMAP and clusters of at most `max_cells` cells that have transcripts, drawn by `seed`."""
    nothing = np.empty(0, np.int64), np.empty((0, 2), np.float32), np.empty(0, np.int64)
    if not max_cells:
        return Embedding(*nothing)
    rows = np.flatnonzero(adata.obs["n_transcripts"].to_numpy() > 0)
    if len(rows) > max_cells:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_cells, replace=False))
    genes = int((np.asarray(adata.X[rows].sum(axis=0)).ravel() > 0).sum()) if len(rows) else 0
    if len(rows) < MIN_CELLS or genes < MIN_GENES:
        return Embedding(*nothing, f"No UMAP: {len(rows)} cells with transcripts of {genes} genes are fewer than {MIN_CELLS} cells or {MIN_GENES} genes.")
    import scanpy as sc

    part = adata[rows].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(part)
        sc.pp.log1p(part)
        sc.pp.pca(part, n_comps=min(_COMPONENTS, min(part.shape) - 1), random_state=seed)
        # Exact neighbours: repeatable on every machine; scanpy 1.11 also fails on what pynndescent 0.7 gives for more than 4096 cells.
        sc.pp.neighbors(part, n_neighbors=min(_NEIGHBOURS, part.n_obs - 1), transformer="sklearn", random_state=seed)
        sc.tl.umap(part, random_state=seed)
        sc.tl.leiden(part, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return Embedding(rows, np.asarray(part.obsm["X_umap"], np.float32), part.obs["leiden"].astype(int).to_numpy())
