"""Colours of genes from their spatial co-expression: genes that lie close to each other get similar colours [paper: Co-expression visualization].

The neighbourhood of a molecule is the number of molecules of each gene around it, weighted by distance. The co-expression of two genes is the correlation of
their weighted numbers over many molecules [after ComSeg, Defard et al. 2024]. A principal component analysis of that matrix gives three values per gene.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds
from scipy.spatial import cKDTree

from istseg.artifacts.gene_colours import GREY
from istseg.artifacts.patches import Patch
from istseg.network.dataset import PatchRef
from istseg.progress import track

RADIUS_UM = 4.0
"""Molecules further away do not count: about a cell's radius. The weight falls linearly from 1 to 0."""
MIN_MOLECULES = 20
"""Genes with fewer get grey: their correlations are noise."""
MAX_CENTRES = 100_000
"""Molecules whose neighbourhoods are taken."""
RANGE = (2.0, 98.0)
"""Percentiles of a component over the genes that become 0 and 1."""
_CHUNK = 4096
_DENSE = 1000
"""Genes up to which all products are made; beyond, the few axes are found by iteration."""


@dataclass(frozen=True)
class Molecules:
    """Molecules of one connected area; neighbourhoods do not reach from one area into another.

    Attributes
    ----------
    xy_um
        (n, 2) places in µm.
    gene
        (n,) int: place in the list of genes.
    centre
        (n,) bool: may be the centre of a neighbourhood; the others are neighbours only (a margin that another area has as well).
    """

    xy_um: np.ndarray
    gene: np.ndarray
    centre: np.ndarray


def coexpression(areas: Iterable[Molecules], n_genes: int, centres_per_area: int, seed: int, radius_um: float = RADIUS_UM) -> tuple[np.ndarray, np.ndarray]:
    """Spatial co-expression of genes.

    Memory holds one area, a few thousand neighbourhoods and the matrix.

    Parameters
    ----------
    areas
        Read once, one by one.
    n_genes
        Length of the list of genes.
    centres_per_area
        At most so many neighbourhoods of an area, drawn at random.
    seed
        Of the draw, together with the number of the area.
    radius_um
        Reach of a neighbourhood.

    Returns
    -------
    (n_genes, n_genes) float64 correlations (0 where a gene does not vary) and (n_genes,) int number of molecules that may be centres.
    """
    neighbours = Neighbourhoods(n_genes, radius_um)
    for number, area in enumerate(areas):
        allowed = np.flatnonzero(area.centre)
        centres = np.empty(0, np.int64)
        if len(allowed):
            rng = np.random.default_rng([seed, number])
            centres = np.sort(rng.choice(allowed, min(len(allowed), centres_per_area), replace=False))
        neighbours.add(area, centres)
    return neighbours.correlations(), neighbours.molecules


class Neighbourhoods:
    """Sums over neighbourhoods, from which the co-expression follows.

    Parameters
    ----------
    n_genes
        Length of the list of genes.
    radius_um
        Reach of a neighbourhood.

    Attributes
    ----------
    molecules
        (n_genes,) int64: molecules so far that may be centres.
    centres
        Neighbourhoods so far.
    """

    def __init__(self, n_genes: int, radius_um: float = RADIUS_UM):
        self.molecules = np.zeros(n_genes, np.int64)
        self.centres = 0
        self._radius = radius_um
        self._total = np.zeros(n_genes)
        self._products = np.zeros((n_genes, n_genes))

    def add(self, area: Molecules, centres: np.ndarray) -> None:
        """Add the neighbourhoods of `centres` (places in the area's molecules)."""
        n_genes = len(self.molecules)
        self.molecules += np.bincount(area.gene[area.centre], minlength=n_genes)
        if not len(centres):
            return
        tree = cKDTree(area.xy_um)
        for start in range(0, len(centres), _CHUNK):
            near = _neighbourhoods(tree, area, centres[start : start + _CHUNK], n_genes, self._radius)
            self._total += near.sum(0)
            self._products += (near.T @ near).toarray()
        self.centres += len(centres)

    def correlations(self) -> np.ndarray:
        """(n_genes, n_genes) float64 correlations, 0 where a gene does not vary. The sums are spent: nothing can be added any more."""
        # In place: for a panel of thousands of genes the matrix is the largest thing in memory.
        mean, products = self._total / max(self.centres, 1), self._products
        products /= max(self.centres, 1)
        products -= mean[:, None] * mean
        deviation = np.sqrt(np.clip(np.diag(products), 0, None))
        inverse = np.divide(1, deviation, out=np.zeros(len(mean)), where=deviation > 1e-6)
        products *= inverse[:, None]
        products *= inverse
        return products


def colours(matrix: np.ndarray, molecules: np.ndarray) -> np.ndarray:
    """(n_genes, 3) float32 colours in 0…1 of `coexpression`'s two results: principal components of the genes' profiles.

    The sign of each component is such that its largest value is positive. Genes with too few molecules are grey, and so is a component without spread.
    """
    result = np.full((len(matrix), 3), GREY, np.float32)
    known = np.flatnonzero((molecules >= MIN_MOLECULES) & (np.diag(matrix) > 0))
    if len(known) < 2:
        return result
    profiles = matrix[np.ix_(known, known)]
    profiles -= profiles.mean(0)
    scores = profiles @ _axes(profiles, min(3, len(known)))
    scores *= np.sign(scores[np.abs(scores).argmax(0), np.arange(scores.shape[1])])
    low, high = np.percentile(scores, RANGE, axis=0)
    for i in np.flatnonzero(high - low > 1e-9):
        result[known, i] = np.clip((scores[:, i] - low[i]) / (high[i] - low[i]), 0, 1)
    return result


def _axes(profiles: np.ndarray, k: int) -> np.ndarray:
    """(n, k) principal axes of centred profiles (n, n), the largest first."""
    n = len(profiles)
    if n <= _DENSE:
        return eigh(profiles.T @ profiles, subset_by_index=(n - k, n - 1))[1][:, ::-1]
    # All axes of a panel of the whole transcriptome would take hours; the start is fixed, so the result repeats.
    _, sizes, axes = svds(profiles, k=k, v0=np.ones(n) / n**0.5)
    return axes[np.argsort(-sizes)].T


def patch_colours(refs: Sequence[PatchRef], genes: Sequence[str], seed: int) -> np.ndarray:
    """(len(genes), 3) float32 colours from the gene maps of patches; the cores of windows share no molecule."""
    areas = (_molecules(Patch.read(ref.path), genes) for ref in track(refs, "co-expression"))
    return colours(*coexpression(areas, len(genes), max(MAX_CENTRES // max(len(refs), 1), 1), seed))


def _molecules(patch: Patch, genes: Sequence[str]) -> Molecules:
    # A reflected molecule is none: it would be a centre twice, and lie beside itself.
    shown = np.where(patch.inside_mosaic(), patch.gene_map(genes), 0)
    margin = patch.overlap // 2
    y, x = np.nonzero(shown)
    height, width = shown.shape
    core = (y >= margin) & (y < height - margin) & (x >= margin) & (x < width - margin)
    return Molecules(np.column_stack([x, y]) * patch.working_um, shown[y, x] - 1, core)


def _neighbourhoods(tree: cKDTree, area: Molecules, centres: np.ndarray, n_genes: int, radius_um: float) -> coo_array:
    """(centres, genes) weighted numbers of molecules around each centre, itself left out."""
    pairs = cKDTree(area.xy_um[centres]).sparse_distance_matrix(tree, radius_um, output_type="ndarray")
    pairs = pairs[centres[pairs["i"]] != pairs["j"]]
    weight = 1 - pairs["v"] / radius_um
    return coo_array((weight, (pairs["i"], area.gene[pairs["j"]])), shape=(len(centres), n_genes)).tocsr()
