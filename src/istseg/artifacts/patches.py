"""`patches/<tile_id>_w<gy>_<gx>.npz`: one training patch, i.e. one window with its curated labels.

Arrays: `stains` uint16 (c, 512, 512) raw grey values, nucleus stain first (reflected outside the mosaic); `counts` uint8… uint16 (512, 512) transcripts per
working pixel, controls left out; `labels` int32 (k, 512, 512) curated cells and stand-in nuclei, one image per teacher stain; `teach` bool (k, 512, 512)
pixels that may teach (cells, nuclei and background); `nuclei` (optional) int32 (512, 512) all of the teacher's nuclei; `genes` (optional) uint16 (512, 512)
gene map. `meta` is a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.files import whole
from istseg.artifacts.genes import places
from istseg.errors import InputError
from istseg.grid import Box

_ARRAYS = ("stains", "counts", "labels", "teach")
_OPTIONAL = ("nuclei", "genes")


@dataclass
class Patch:
    """One patch.

    Attributes
    ----------
    window
        (gy, gx) on the sample's grid; neighbouring windows overlap by `overlap` working pixels.
    label_names
        Teacher layer of each label image, e.g. `cells_Cellbound1`.
    stand_ins
        For each label image, its labels that are stand-in nuclei and not cells; None when not known.
        The gate of `train` must not take a nucleus for a cell's shape.
    nuclei
        All of the teacher's nuclei in the window, kept or not; None when not known. The gate counts nuclei in predicted cells with it.
    genes
        Gene map (`artifacts.genes`) in the numbers of `gene_names`; None in patches of early versions. Networks with gene colours need it.
    gene_names
        Genes that the map shows.
    mosaic_box
        (y0, x0, y1, x1) in pixels of the patch: the part inside the mosaic; None in patches of early versions, which count as inside throughout. What lies
        outside is a reflection: the network sees it, nothing may be counted there.
    """

    sample: str
    window: tuple[int, int]
    overlap: int
    stain_names: list[str]
    ranges: list[tuple[float, float]]
    label_names: list[str]
    working_um: float
    stains: np.ndarray = field(repr=False)
    counts: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    teach: np.ndarray = field(repr=False)
    stand_ins: list[list[int]] | None = None
    nuclei: np.ndarray | None = field(default=None, repr=False)
    genes: np.ndarray | None = field(default=None, repr=False)
    gene_names: list[str] = field(default_factory=list, repr=False)
    mosaic_box: Box | None = None

    def normalised(self) -> np.ndarray:
        """(c, y, x) float32: the sample's 1st percentile → 0, 99th → 1."""
        low, high = np.asarray(self.ranges, np.float32).T[:, :, None, None]
        return np.where(high > low, (self.stains.astype(np.float32) - low) / np.maximum(high - low, np.float32(1e-6)), np.float32(0))

    def inside_mosaic(self) -> np.ndarray:
        """(y, x) bool: pixels that are no reflection."""
        y0, x0, y1, x1 = self.mosaic_box or (0, 0, *self.counts.shape)
        inside = np.zeros(self.counts.shape, bool)
        inside[y0:y1, x0:x1] = True
        return inside

    def gene_map(self, genes: Sequence[str]) -> np.ndarray:
        """(y, x) int32 gene map in the numbers of `genes`; a pixel that shows a gene which is not in the list is 0.

        Raises
        ------
        InputError
            If the patch has no gene map.
        """
        if self.genes is None:
            raise InputError(f"the patch {self.window} of the sample {self.sample} has no gene map, which a model with gene colours needs; run curate again.")
        return places(self.gene_names, genes)[self.genes]

    def write(self, path: str | Path) -> None:
        meta: dict[str, Any] = asdict(self)
        arrays = {name: meta.pop(name) for name in (*_ARRAYS, *_OPTIONAL)}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        with whole(path) as part, open(part, "wb") as stream:
            np.savez_compressed(stream, meta=np.array(json.dumps(meta)), **arrays)

    @classmethod
    def read(cls, path: str | Path) -> Patch:
        try:
            with np.load(path, allow_pickle=False) as stored:
                meta = json.loads(str(stored["meta"]))
                arrays = {name: stored[name] for name in (*_ARRAYS, *_OPTIONAL) if name in _ARRAYS or name in stored}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: is not a training patch of the stage curate ({error}).") from None
        meta["window"] = tuple(meta["window"])
        meta["ranges"] = [tuple(r) for r in meta["ranges"]]
        if meta.get("mosaic_box") is not None:
            meta["mosaic_box"] = tuple(meta["mosaic_box"])
        return cls(**meta, **arrays)
