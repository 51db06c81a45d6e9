"""Is a cell's expression one thing? Halves of its transcripts, and its nucleus against the rest, should say the same.

Counts are split by a hash of the transcript id, which is the same for every segmentation. A cell that is a patchwork of its neighbours, or cut, agrees less
with itself [parts of cells against each other: Petukhov et al. 2022].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from istseg.artifacts.assigned import AssignedTranscripts
from istseg.artifacts.genes import draw_order
from istseg.counts import CountMatrix
from istseg.locate import PolygonLocator
from istseg.progress import track

MIN_TRANSCRIPTS = 10
"""Of each part of a cell that is compared."""
MAX_CELLS = 2000
NEIGHBOURS = 15
_COMPONENTS = 20
_ROWS = 10_000


@dataclass(frozen=True)
class Profiles:
    """Counts of parts of cells, CSR, genes only.

    Attributes
    ----------
    half
        (cells, genes) transcripts of the first half.
    nuclear
        (cells, genes) transcripts that lie in a nucleus.
    nuclei
        (nuclei, genes) transcripts in each nucleus, whatever the segmentation: the same for all segmentations of a sample.
    """

    half: sparse.csr_matrix
    nuclear: sparse.csr_matrix
    nuclei: sparse.csr_matrix


def gather(transcripts: AssignedTranscripts, shape: tuple[int, int], nuclei: np.ndarray) -> Profiles:
    """Read the transcripts once, in row groups.

    Parameters
    ----------
    transcripts
        Opened with the genes of the counts.
    shape
        (cells, genes) of the counts.
    nuclei
        Valid polygons, µm.
    """
    half, nuclear, inside = CountMatrix(*shape), CountMatrix(*shape), CountMatrix(len(nuclei), shape[1])
    locator = PolygonLocator(nuclei)
    for group in track(transcripts, "profiles", len(transcripts.sizes)):
        nucleus = locator(group.xy)
        gene = group.gene >= 0
        assigned = gene & (group.cell >= 0)
        first = assigned & (draw_order(group.transcript_id) >> np.uint64(63) == 0)
        for matrix, row, chosen in ((half, group.cell, first), (nuclear, group.cell, assigned & (nucleus >= 0)), (inside, nucleus, gene & (nucleus >= 0))):
            matrix.add(row[chosen], group.gene[chosen])
    return Profiles(half.csr(), nuclear.csr(), inside.csr())


def correlations(first: sparse.csr_matrix, second: sparse.csr_matrix) -> np.ndarray:
    """(cells,) Pearson correlation over genes of log(1 + count), row by row; NaN where a row is constant."""
    a, b = first.log1p(), second.log1p()
    n = a.shape[1]
    mean_a, mean_b = (np.asarray(m.mean(axis=1), float).ravel() for m in (a, b))
    joint = np.asarray(a.multiply(b).sum(axis=1), float).ravel() / n - mean_a * mean_b
    spread = [np.asarray(m.multiply(m).sum(axis=1), float).ravel() / n - mean**2 for m, mean in ((a, mean_a), (b, mean_b))]
    scale = np.sqrt(np.clip(spread[0], 0, None) * np.clip(spread[1], 0, None))
    return np.divide(joint, scale, out=np.full(len(joint), np.nan), where=scale > 1e-12)


def halves(half: sparse.csr_matrix, counts: sparse.csr_matrix, seed: int) -> dict[str, Any]:
    """Agreement of the two halves of each cell.

    Returns
    -------
    `half_correlation`: median over cells with `MIN_TRANSCRIPTS` in both halves. `neighbour_consistency`: share of the `NEIGHBOURS` nearest of at most
    `MAX_CELLS` such cells in expression that are the same for both halves. `half_cells`: how many such cells there are. None without enough.
    """
    eligible = np.flatnonzero(_enough(counts, half))
    found = _in_blocks(len(eligible), lambda at: correlations(half[eligible[at]], _rest(counts, half, eligible[at])))
    if len(eligible) > MAX_CELLS:
        chosen = np.sort(np.random.default_rng(seed).choice(eligible, MAX_CELLS, replace=False))
    else:
        chosen = eligible
    return {
        "half_cells": len(eligible),
        "half_correlation": _median(found),
        "neighbour_consistency": _consistency(half[chosen], _rest(counts, half, chosen)) if len(chosen) > 2 * NEIGHBOURS else None,
    }


def nuclear(nuclear_counts: sparse.csr_matrix, counts: sparse.csr_matrix, whole: np.ndarray, centroids_um: np.ndarray) -> dict[str, Any]:
    """Agreement of the nucleus with the rest of the cell.

    Parameters
    ----------
    whole
        bool (cells,): contains exactly one nucleus and touches no other.

    Returns
    -------
    `nuclear_correlation`: median over cells that are whole and have `MIN_TRANSCRIPTS` in both parts. `nuclear_specificity`: median of what is left of it after
    taking off the correlation of the same nucleus with the rest of the nearest such cell. `nuclear_cells`: how many there are. None without any.
    """
    eligible = np.flatnonzero(whole & _enough(counts, nuclear_counts))

    def agreement(other: np.ndarray) -> np.ndarray:
        return _in_blocks(len(eligible), lambda at: correlations(nuclear_counts[eligible[at]], _rest(counts, nuclear_counts, other[at])))

    own = agreement(eligible)
    result = {"nuclear_cells": len(eligible), "nuclear_correlation": _median(own), "nuclear_specificity": None}
    if len(eligible) > 1:
        result["nuclear_specificity"] = _median(own - agreement(eligible[_nearest(centroids_um[eligible])]))
    return result


def _in_blocks(n: int, measure: Callable[[slice], np.ndarray]) -> np.ndarray:
    """(n,) measured a block of rows at a time: the counts of a large slide fill a good part of the memory, and every step of a correlation makes copies."""
    return np.concatenate([measure(slice(start, start + _ROWS)) for start in range(0, n, _ROWS)] or [np.empty(0)])


def _enough(counts: sparse.csr_matrix, part: sparse.csr_matrix) -> np.ndarray:
    """Bool (cells,): `MIN_TRANSCRIPTS` in the part and in what is left."""
    inside = _sums(part)
    return (inside >= MIN_TRANSCRIPTS) & (_sums(counts) - inside >= MIN_TRANSCRIPTS)


def _rest(counts: sparse.csr_matrix, part: sparse.csr_matrix, rows: np.ndarray) -> sparse.csr_matrix:
    """(rows, genes) of the counts what is not in the part."""
    return (counts[rows] - part[rows]).tocsr()


def _nearest(xy: np.ndarray) -> np.ndarray:
    """(n,) the other point nearest to each."""
    from scipy.spatial import KDTree

    _, found = KDTree(xy).query(xy, k=2)
    return np.where(found[:, 0] == np.arange(len(xy)), found[:, 1], found[:, 0])


def _consistency(first: sparse.csr_matrix, second: sparse.csr_matrix) -> float:
    """Mean share of nearest neighbours in the principal components of both halves together that are the same in each."""
    from scipy.spatial import KDTree

    both = _scaled((first + second).tocsr())
    centre = both.mean(axis=0)
    # Components from the (cells, cells) products: a panel may have more genes than there are cells.
    values, vectors = np.linalg.eigh((both - centre) @ (both - centre).T)
    keep = np.argsort(values)[::-1][: min(_COMPONENTS, len(values) - 1)]
    axes = (both - centre).T @ vectors[:, keep] / np.sqrt(np.maximum(values[keep], 1e-9))
    places = [(_scaled(part) - centre) @ axes for part in (first, second)]
    near = []
    for place in places:
        _, found = KDTree(place).query(place, k=NEIGHBOURS + 1)
        # Among cells with the same profile a cell need not be among its own nearest.
        near.append([set([j for j in row if j != i][:NEIGHBOURS]) for i, row in enumerate(found.tolist())])
    return float(np.mean([len(a & b) / NEIGHBOURS for a, b in zip(*near, strict=True)]))


def _scaled(counts: sparse.csr_matrix) -> np.ndarray:
    """(cells, genes) dense log(1 + counts per thousand)."""
    return np.log1p(counts.toarray() * (1000 / np.maximum(_sums(counts), 1))[:, None])


def _sums(counts: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1)).ravel()


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None
