"""Does a cell hold what does not belong into it? Control probes, genes that exclude each other, markers of other cell types, transcripts of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

MAX_PAIRS = 100
MAX_GENES = 500
"""Only so many genes, those in most nuclei, are looked at for pairs."""
MIN_EXPECTED = 5.0
MAX_TOGETHER = 0.25
NEIGHBOURS = 6
REACH_UM = 20.0
MIN_MARKERS = 5


def controls(transcripts: dict[str, Any], n_genes: int, n_controls: int) -> dict[str, Any]:
    """Control probes in cells against genes.

    Control probes are found by chance, everywhere alike; a segmentation that keeps to cells holds a smaller share of them than of the genes.

    Parameters
    ----------
    transcripts
        Totals of `assign.json`.
    n_genes, n_controls
        Of the panel.

    Returns
    -------
    `control_enrichment` (share of the controls in cells / share of the genes in cells), `control_share` (of the molecules in cells), `false_discovery_rate`
    (molecules in cells per control probe / per gene). None where undefined.
    """
    inside, found = transcripts["in_cells"] + transcripts["in_cells_outside_image"], transcripts["controls_in_cells"]
    return {
        "control_enrichment": _ratio(_ratio(found, transcripts["controls"]), _ratio(inside, transcripts["total"])),
        "control_share": _ratio(found, found + inside) if n_controls else None,
        "false_discovery_rate": _ratio(_ratio(found, n_controls), _ratio(inside, n_genes)),
    }


def exclusive_pairs(nuclei: sparse.csr_matrix) -> np.ndarray:
    """(k, 2) genes that hardly ever lie in one nucleus, by nucleus counts alone, so that they are the same for all segmentations of a sample.

    Of the `MAX_GENES` genes in most nuclei, pairs that would share at least `MIN_EXPECTED` nuclei by chance (n_a n_b / N) and share at most `MAX_TOGETHER` of
    that; at most `MAX_PAIRS`, those with the smallest (shared + 1) / (expected + 1), ties by the order of the genes. N: nuclei with a transcript.
    """
    there = nuclei > 0
    per_gene = np.asarray(there.sum(axis=0)).ravel()
    genes = np.sort(np.argsort(-per_gene, kind="stable")[:MAX_GENES])
    there = there[:, genes].astype(np.float32)
    n = int((np.asarray(nuclei.sum(axis=1)).ravel() > 0).sum())
    together = (there.T @ there).toarray().astype(float)
    expected = np.outer(per_gene[genes], per_gene[genes]) / max(n, 1)
    first, second = np.nonzero(np.triu((expected >= MIN_EXPECTED) & (together <= MAX_TOGETHER * expected), 1))
    score = (together[first, second] + 1) / (expected[first, second] + 1)
    best = np.lexsort((second, first, score))[:MAX_PAIRS]
    return np.column_stack([genes[first[best]], genes[second[best]]]).astype(np.int64)


def exclusive(counts: sparse.csr_matrix, pairs: np.ndarray) -> dict[str, Any]:
    """Mutually exclusive co-expression rate [Hartman and Satija 2024]: of the cells with either gene of a pair the share that has both, mean over pairs.

    Returns
    -------
    `mecr` (None without pairs), `n_pairs` (those with a cell).
    """
    genes, places = np.unique(pairs, return_inverse=True)
    first, second = places.reshape(pairs.shape).T
    there = (counts[:, genes] > 0).astype(np.float32)
    together = (there.T @ there).toarray().astype(float)
    both = together[first, second]
    either = together[first, first] + together[second, second] - both
    known = either > 0
    return {"mecr": float((both[known] / either[known]).mean()) if known.any() else None, "n_pairs": int(known.sum())}


def contamination(counts: sparse.csr_matrix, pairs: np.ndarray, centroids_um: np.ndarray) -> dict[str, Any]:
    """Transcripts that come from neighbours, estimated from pairs of exclusive genes.

    For a pair a cell is of the gene that it has more of; the other one is foreign to it. Foreign transcripts are a share of both genes' transcripts, over all
    pairs, in cells that lie beside a cell of the other gene (one of the `NEIGHBOURS` nearest, within `REACH_UM`) and in cells that do not: the difference is
    what neighbours add, ambient molecules and faults of the pairs are in both.

    Returns
    -------
    `contamination` = `foreign_beside` − `foreign_apart`; None where there are no such cells.
    """
    near = _neighbours(centroids_um)
    genes, places = np.unique(pairs, return_inverse=True)
    columns = counts[:, genes].tocsc()
    sums = np.zeros((2, 2))
    for a, b in places.reshape(pairs.shape).tolist():
        one, other = (columns[:, [gene]].toarray().ravel() for gene in (a, b))
        kind = np.sign(one - other)
        beside = ((kind > 0) & (near @ (kind < 0) > 0)) | ((kind < 0) & (near @ (kind > 0) > 0))
        for row, chosen in enumerate((beside, ~beside & (kind != 0))):
            sums[row] += np.minimum(one, other)[chosen].sum(), (one + other)[chosen].sum()
    shares = [_ratio(float(foreign), float(whole)) for foreign, whole in sums]
    return {
        "contamination": None if None in shares else shares[0] - shares[1],
        "foreign_beside": shares[0],
        "foreign_apart": shares[1],
    }


def markers(counts: sparse.csr_matrix, genes: list[str], table: pd.DataFrame) -> dict[str, Any]:
    """Marker purity: of the marker transcripts of cells with at least `MIN_MARKERS` of them the share that belongs to the type each cell has most of.

    Parameters
    ----------
    table
        Columns `gene`, `cell_type`.
    """
    kinds = table["cell_type"].astype("category").cat.codes.to_numpy()
    rows = pd.Index(genes).get_indexer(table["gene"])
    belongs = sparse.csr_matrix((np.ones(len(rows)), (rows, kinds)), shape=(len(genes), int(kinds.max(initial=-1)) + 1))
    of_type = (counts @ belongs).toarray()
    judged = of_type[of_type.sum(axis=1) >= MIN_MARKERS]
    return {"marker_purity": float(judged.max(axis=1).sum() / judged.sum()) if len(judged) else None, "marker_cells": len(judged)}


def _neighbours(xy: np.ndarray) -> sparse.csr_matrix:
    """(n, n) ones for the nearest other points."""
    from scipy.spatial import KDTree

    n = len(xy)
    if n < 2:
        return sparse.csr_matrix((n, n))
    k = min(NEIGHBOURS + 1, n)
    _, found = KDTree(xy).query(xy, k=k, distance_upper_bound=REACH_UM)
    row = np.repeat(np.arange(n), k)
    column = found.ravel()
    real = (column < n) & (column != row)
    return sparse.csr_matrix((np.ones(real.sum()), (row[real], column[real])), shape=(n, n))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
