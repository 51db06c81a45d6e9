"""Transcripts of the tissue, block by block."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from istseg.simulate.panel import BACKGROUND, CONTROLS, GENES, TYPES, profiles
from istseg.simulate.randomness import generator
from istseg.simulate.seeds import BLOCK_PX, PIXEL_UM, block_box
from istseg.simulate.tissue import Tissue

LOCALISATION_UM = 0.12
DIFFUSED_SHARE, DIFFUSION_UM = 0.10, 1.0
_EMPTY_BACKGROUND = 0.15  # of the background, where there is no tissue
_NUCLEAR = 0.75  # density inside the nucleus, relative to the cytoplasm
N_CONTROLS = 10


class Molecules:
    """Transcripts of each block.

    Parameters
    ----------
    per_um2
        Mean density inside cells.
    planes
        They are spread over that many planes.
    """

    def __init__(self, tissue: Tissue, per_um2: float, planes: int):
        self.tissue, self.per_um2, self.planes = tissue, per_um2, planes
        self._ends = np.cumsum(profiles(), axis=1)
        self.block = lru_cache(maxsize=60)(self._block)

    def _block(self, by: int, bx: int) -> dict[str, np.ndarray]:
        """`x`, `y` (scene, µm), `z` (plane), `gene` (index into GENES, controls after them), `number` (true cell, 0 for background), sorted by gene."""
        random = generator(self.tissue.seed, "molecules", by, bx)
        box = block_box(by, bx)
        numbers, nuclei = self.tissue.labels(box)
        table = self.tissue.cells(box)
        index = table.index(numbers)
        ys, xs = ((start + np.arange(BLOCK_PX) + 0.5) * PIXEL_UM for start in box[:2])
        ambient = np.where(self.tissue.layout.empty_grid(ys, xs), BACKGROUND * _EMPTY_BACKGROUND, BACKGROUND)
        cellular = np.append(table["rna"], 0.0)[index] * np.where(nuclei > 0, _NUCLEAR, 1.1)
        per_pixel = self.per_um2 * PIXEL_UM**2
        from_cell = random.poisson(cellular * per_pixel)
        from_ambient = random.poisson(ambient * per_pixel)
        from_controls = random.poisson(ambient / BACKGROUND * (CONTROLS * per_pixel))
        pixel = np.concatenate([np.repeat(np.arange(numbers.size), counts.ravel()) for counts in (from_cell, from_ambient, from_controls)])
        source = np.repeat([0, 1, 2], [from_cell.sum(), from_ambient.sum(), from_controls.sum()])
        n = len(pixel)
        row, column = np.divmod(pixel, BLOCK_PX)
        spread = np.where((source == 0) & (random.random(n) < DIFFUSED_SHARE), DIFFUSION_UM, LOCALISATION_UM)
        shift = random.standard_normal((2, n)) * spread
        kind = np.where(source == 0, np.append(table["kind"], 0)[index.ravel()[pixel]], len(TYPES))
        gene = self._genes(random, kind)
        gene[source == 2] = len(GENES) + random.integers(0, N_CONTROLS, int((source == 2).sum()))
        middle = (self.planes - 1) / 2
        z = np.clip(np.rint(random.normal(middle, 0.3 * self.planes, n)), 0, self.planes - 1).astype(np.int64)
        number = np.where(source == 0, numbers.ravel()[pixel], 0).astype(np.int32)
        x = (box[1] + column + random.random(n)) * PIXEL_UM + shift[0]
        y = (box[0] + row + random.random(n)) * PIXEL_UM + shift[1]
        order = np.argsort(gene, kind="stable")
        return {"x": x[order], "y": y[order], "z": z[order], "gene": gene[order], "number": number[order]}

    def _genes(self, random: np.random.Generator, kind: np.ndarray) -> np.ndarray:
        draw = random.random(len(kind))
        gene = np.zeros(len(kind), np.int64)
        for k in range(len(self._ends)):
            here = kind == k
            gene[here] = np.minimum(np.searchsorted(self._ends[k], draw[here], side="right"), len(GENES) - 1)
        return gene
