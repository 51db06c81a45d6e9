"""Small tissue of known cells, as training patches: windows of 128 px that overlap by 32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from istseg.artifacts.patches import Patch

SIZE, OVERLAP = 128, 32
STRIDE = SIZE - OVERLAP
GENES = ["A", "B", "C", "D"]
RANGES = [(100.0, 1100.0), (100.0, 1100.0)]


@dataclass
class Tissue:
    """Arrays (y, x) of a whole mosaic."""

    cells: np.ndarray
    nuclei: np.ndarray
    stains: np.ndarray
    counts: np.ndarray
    genes: np.ndarray


def tissue(height: int = 480, width: int = 480, seed: int = 0, radius: float = 13.0, granules: float = 0.0) -> Tissue:
    """Round cells on a jittered grid with nuclei, a membrane stain and transcripts; `granules`: brightness of specks in the stains that mean nothing."""
    rng = np.random.default_rng(seed)
    cells, nuclei = np.zeros((2, height, width), np.int32)
    yy, xx = np.indices((height, width))
    step = int(radius * 2.5)
    label = 0
    for cy in range(step // 2, height, step):
        for cx in range(step // 2, width, step):
            label += 1
            y, x = np.array([cy, cx]) + rng.uniform(-2.5, 2.5, 2)
            a, b = radius * rng.uniform(0.8, 1.1, 2)
            distance = np.hypot((yy - y) / a, (xx - x) / b)
            cells[(distance < 1) & (cells == 0)] = label
            nuclei[distance < 0.5] = label
    inner = gaussian_filter((cells > 0).astype(float), 1.5)
    ring = 4 * inner * (1 - inner)
    noise = rng.normal(0, 0.04, (2, height, width))
    stains = np.stack((gaussian_filter((nuclei > 0).astype(float), 1.0), ring)) + noise
    if granules:
        specks = np.abs(gaussian_filter(np.random.default_rng(seed + 1).normal(0, 1, cells.shape), 5))
        stains += np.array([0.6, 1.0])[:, None, None] * granules * specks / specks.mean()
    raw = np.clip(stains * 1000 + 100, 0, 65535).astype(np.uint16)
    counts = rng.poisson(np.where(cells > 0, 0.12, 0.004)).astype(np.uint16)
    # Two kinds of cells with two genes each.
    genes = np.where(counts > 0, 1 + 2 * (cells % 2) + np.random.default_rng(seed).integers(0, 2, cells.shape), 0).astype(np.uint16)
    return Tissue(cells, nuclei, raw, counts, genes)


def patch_of(t: Tissue, gy: int, gx: int, sample: str = "s", cells: np.ndarray | None = None, drop: float = 0.2, know_nuclei: bool = True) -> Patch:
    """Window of the tissue with labels `cells` (default: the true ones), of which a share is unlabelled, as after curation."""
    labels = t.cells if cells is None else cells
    y0, x0 = gy * STRIDE - OVERLAP // 2, gx * STRIDE - OVERLAP // 2
    rows = np.clip(np.arange(y0, y0 + SIZE), 0, t.cells.shape[0] - 1)
    columns = np.clip(np.arange(x0, x0 + SIZE), 0, t.cells.shape[1] - 1)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[np.ix_((rows == np.arange(y0, y0 + SIZE)), (columns == np.arange(x0, x0 + SIZE)))] = True
    box = max(-y0, 0), max(-x0, 0), min(t.cells.shape[0] - y0, SIZE), min(t.cells.shape[1] - x0, SIZE)
    at = np.ix_(rows, columns)
    window = np.where(inside, labels[at], 0)
    unlabelled = (window % 10) < drop * 10
    curated = np.where(unlabelled, 0, window).astype(np.int32)
    teach = inside & ((curated > 0) | (window == 0))
    return Patch(
        sample=sample,
        window=(gy, gx),
        overlap=OVERLAP,
        stain_names=["DAPI", "Cellbound1"],
        ranges=RANGES,
        label_names=["cells_Cellbound1"],
        working_um=0.253,
        stains=np.stack([s[at] for s in t.stains]),
        counts=t.counts[at],
        labels=curated[None],
        teach=teach[None],
        stand_ins=[[]] if know_nuclei else None,
        nuclei=np.where(inside, t.nuclei[at], 0).astype(np.int32) if know_nuclei else None,
        genes=t.genes[at],
        gene_names=GENES,
        mosaic_box=box,
    )


def write_patches(folder: Path, n: int = 4, sample: str = "s", seed: int = 0, cells=None, granules: float = 0.0, **options) -> Path:
    """Write n × n windows; `cells` maps a tissue to label images."""
    side = n * STRIDE
    t = tissue(side, side, seed, granules=granules)
    for gy in range(n):
        for gx in range(n):
            labels = None if cells is None else cells(t)
            patch_of(t, gy, gx, sample, labels, **options).write(folder / f"y000x000_w{gy}_{gx}.npz")
    return folder
