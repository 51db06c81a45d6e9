"""Cell types of the simulated tissue and its gene panel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ZONES = ("epithelium", "stroma", "lymphoid")


@dataclass(frozen=True)
class CellType:
    """How cells of a type look. Sizes in µm; ranges set by eye against public MERSCOPE liver and brain and CosMx lung crops.

    Attributes
    ----------
    share
        Of the candidates in its zone.
    radius, spread
        Median radius and standard deviation of its logarithm.
    elongation
        Long over short axis.
    packing
        Least distance of neighbours in units of the sum of their half-axes.
    reach
        How far the cell grows past its ellipse when no neighbour is there; above 1.3 the cells fill the space.
    lobes
        Amplitude of the outline's lobes.
    nucleus
        Radius of the nucleus over that of the cell.
    without, double
        Share of cells without nucleus in the plane and with two nuclei.
    rna
        Transcripts per area relative to the mean.
    membrane, cytoplasm
        Brightness in ring and cytoplasm stains.
    """

    name: str
    zone: int
    share: float
    radius: float
    spread: float
    elongation: float
    packing: float
    reach: float
    lobes: float
    nucleus: float
    without: float
    double: float
    rna: float
    membrane: float
    cytoplasm: float
    markers: tuple[str, ...]


TYPES = (
    CellType("tumour", 0, 0.72, 5.2, 0.13, 1.25, 0.80, 1.50, 0.05, 0.58, 0.06, 0.03, 1.15, 1.0, 0.90, ("EPCAM", "KRT8", "KRT18", "CDH1")),
    CellType("secretory", 0, 0.28, 7.2, 0.14, 1.30, 0.80, 1.50, 0.05, 0.44, 0.08, 0.10, 1.35, 0.85, 1.15, ("MUC5B", "SCGB1A1", "TFF3", "AGR2")),
    CellType("fibroblast", 1, 0.48, 4.7, 0.20, 2.80, 1.02, 1.10, 0.12, 0.60, 0.12, 0.00, 0.70, 0.7, 0.70, ("COL1A1", "COL3A1", "DCN", "LUM")),
    CellType("endothelial", 1, 0.22, 3.8, 0.15, 2.10, 0.98, 1.12, 0.06, 0.66, 0.10, 0.00, 0.80, 0.9, 0.70, ("PECAM1", "VWF", "CLDN5", "CDH5")),
    CellType("macrophage", 1, 0.20, 6.4, 0.18, 1.30, 1.02, 1.05, 0.18, 0.46, 0.08, 0.05, 1.20, 0.8, 1.00, ("CD68", "CD163", "MRC1", "C1QA")),
    CellType("plasma", 1, 0.10, 4.4, 0.10, 1.30, 1.00, 1.08, 0.04, 0.56, 0.05, 0.01, 1.60, 0.8, 1.20, ("IGHG1", "JCHAIN", "MZB1", "SDC1")),
    CellType("t_cell", 2, 0.60, 3.5, 0.10, 1.15, 0.84, 1.30, 0.05, 0.72, 0.04, 0.00, 0.80, 0.9, 0.65, ("CD3E", "CD8A", "IL7R", "TRAC")),
    CellType("b_cell", 2, 0.40, 3.9, 0.10, 1.15, 0.84, 1.30, 0.05, 0.70, 0.04, 0.00, 0.85, 1.0, 0.70, ("MS4A1", "CD79A", "CD19", "PAX5")),
)
_SHARED = [
    "ACTB", "GAPDH", "B2M", "MALAT1", "EEF1A1", "TPT1", "VIM", "FTL", "TMSB4X", "HSP90AA1", "HLA-A", "HLA-DRA", "CD74", "S100A6",
    "LGALS1", "IFITM3", "JUN", "FOS", "NEAT1", "MKI67", "TOP2A", "PCNA", "STMN1", "CCND1", "MYC", "CXCL8", "HIF1A", "VEGFA",
]  # fmt: skip
GENES = sorted([g for t in TYPES for g in t.markers] + _SHARED)
BACKGROUND = 0.05
"""Transcripts outside of cells per area, relative to those of the mean cell."""
CONTROLS = 0.008
"""Control probes per area anywhere in the tissue, relative to the transcripts of the mean cell."""


def parameter(name: str) -> np.ndarray:
    """One attribute of all types, (types,)."""
    return np.array([getattr(t, name) for t in TYPES])


def profiles() -> np.ndarray:
    """Probability of each gene in each type and, in the last row, in the background: (types + 1, genes) float64. The same for every seed."""
    random = np.random.Generator(np.random.Philox(20260101))
    shared = dict(zip(_SHARED, random.lognormal(0, 0.9, len(_SHARED)), strict=True))
    weights = np.array(
        [[shared[g] * random.lognormal(0, 0.25) if g in shared else (6.0 * random.lognormal(0, 0.4) if g in t.markers else 0.08) for g in GENES] for t in TYPES]
    )
    weights /= weights.sum(axis=1, keepdims=True)
    return np.vstack([weights, weights.mean(axis=0)])
