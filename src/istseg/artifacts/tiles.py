"""`tiles/`: the index `tiles.json` and one folder per tile, self-contained: the unit that tasks stage.

A tile folder holds `tile.json`, `stains.npy` (uint16 grey values (c, y, x) of the region at working resolution, nucleus stain first, membrane
stains after it; memory-mapped on reading), `transcripts.parquet` (those inside the region) and `genes.json` (transcripts of each gene in the whole sample,
a few bytes per gene, so that every task judges the sample alike whichever tiles it has).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from istseg.artifacts.files import read_json, read_record, whole, write_json
from istseg.artifacts.genes import draw_map, places
from istseg.errors import InputError
from istseg.grid import Box, WindowGrid

FORMAT = 1
TRANSCRIPT_COLUMNS = ["transcript_id", "x_wpx", "y_wpx", "gene", "is_control"]


@dataclass
class Tile:
    """One tile.

    Attributes
    ----------
    core, region
        Boxes in working pixels of the sample; the arrays cover the region.
    windows
        (gy, gx) of the windows of the core that hold tissue.
    ring_windows
        Windows with tissue in the ring around the core: computed too, so that objects near the core's border are complete.
    stains
        Names, in the order of `stains.npy`.
    ranges
        [low, high] of each stain over the whole sample, raw grey values.
    micron_to_working
        3×3 affine, µm → working pixel (x, y) of the sample (not of the region).
    """

    sample: str
    tile_id: str
    grid: dict[str, int]
    core: Box
    region: Box
    windows: list[tuple[int, int]]
    ring_windows: list[tuple[int, int]]
    stains: list[str]
    ranges: list[tuple[float, float]]
    working_um: float
    micron_to_working: list[list[float]]
    n_transcripts: int = 0
    format: int = FORMAT
    folder: Path = field(default=Path(), repr=False)

    @property
    def window_grid(self) -> WindowGrid:
        return WindowGrid(**self.grid)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the region."""
        y0, x0, y1, x1 = self.region
        return y1 - y0, x1 - x0

    @property
    def affine(self) -> np.ndarray:
        return np.asarray(self.micron_to_working, float)

    def raw_stains(self) -> np.ndarray:
        """(c, y, x) uint16 grey values of the region, memory-mapped."""
        array = np.load(self.folder / "stains.npy", mmap_mode="r")
        if array.shape != (len(self.stains), *self.shape):
            raise InputError(f"{self.folder}/stains.npy: has the shape {array.shape}, tile.json says {(len(self.stains), *self.shape)}; run tile again.")
        return array

    def normalised(self, box: Box | None = None) -> np.ndarray:
        """(c, y, x) float32 of a box of the sample that lies inside the region (default: the region): the sample's 1st percentile → 0,
        99th → 1, not clipped.
        """
        y0, x0, y1, x1 = box or self.region
        ry, rx = self.region[:2]
        values = self.raw_stains()[:, y0 - ry : y1 - ry, x0 - rx : x1 - rx].astype(np.float32)
        low, high = np.asarray(self.ranges, np.float32).T[:, :, None, None]
        values -= low
        values /= np.maximum(high - low, np.float32(1e-6))
        # A flat stain carries no information: it becomes 0.
        values[(high <= low)[:, 0, 0]] = 0
        return values

    def transcripts(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Transcripts inside the region: `transcript_id` int64, `x_wpx`, `y_wpx` (sample frame, float32... float64), `gene` category, `is_control` bool."""
        return pq.read_table(self.folder / "transcripts.parquet", columns=columns).to_pandas()

    def transcript_counts(self, controls: bool = False) -> np.ndarray:
        """(y, x) int32: number of transcripts in each working pixel of the region; control probes are left out by default."""
        flat = self.transcript_pixels(controls)
        return np.bincount(flat, minlength=self.shape[0] * self.shape[1]).astype(np.int32).reshape(self.shape)

    def transcript_pixels(self, controls: bool = False) -> np.ndarray:
        """(n,) int64 flat working pixel in the region of each transcript that lies in it; control probes are left out by default."""
        table = self.transcripts(["x_wpx", "y_wpx", "is_control"])
        if not controls:
            table = table[~table["is_control"]]
        inside, flat = self.pixels(table)
        return flat[inside]

    def sample_genes(self) -> dict[str, int]:
        """Transcripts of each gene in the whole sample, controls left out; genes without any are there with 0."""
        return read_json(self.folder / "genes.json", "the genes.json of the stage tile (run tile again with this version)")

    def gene_map(self, genes: Sequence[str]) -> np.ndarray:
        """(y, x) int32 gene map of the region (see `artifacts.genes`) in the numbers of `genes`: the gene of one transcript of each working pixel.

        Control probes are left out; a pixel that shows a gene which is not in the list is 0.
        """
        table = self.transcripts(["transcript_id", "x_wpx", "y_wpx", "gene", "is_control"])
        table = table[~table["is_control"]]
        inside, flat = self.pixels(table)
        numbers = places(list(table["gene"].cat.categories), genes)[table["gene"].cat.codes.to_numpy() + 1]
        return draw_map(flat[inside], table["transcript_id"].to_numpy()[inside], numbers[inside], self.shape)

    def pixels(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Whether each transcript of a table with `x_wpx` and `y_wpx` lies in the region, and its flat working pixel there."""
        height, width = self.shape
        y = np.floor(table["y_wpx"].to_numpy()).astype(np.int64) - self.region[0]
        x = np.floor(table["x_wpx"].to_numpy()).astype(np.int64) - self.region[1]
        return (y >= 0) & (y < height) & (x >= 0) & (x < width), y * width + x

    @classmethod
    def read(cls, folder: str | Path) -> Tile:
        folder = Path(folder)
        raw = read_record(folder / "tile.json", "tile", FORMAT)
        for key in ("core", "region"):
            raw[key] = tuple(raw[key])
        for key in ("windows", "ring_windows", "ranges"):
            raw[key] = [tuple(v) for v in raw[key]]
        return cls(**raw, folder=folder)

    def write(self, folder: str | Path, stains: np.ndarray, transcripts: pd.DataFrame, sample_genes: Mapping[str, int]) -> None:
        """Write the whole folder or nothing. `stains` (c, y, x) uint16 of the region; `transcripts` with `TRANSCRIPT_COLUMNS`; `sample_genes` as in
        `Tile.sample_genes`.
        """
        if stains.dtype != np.uint16 or stains.shape != (len(self.stains), *self.shape):
            raise ValueError(f"stains must be uint16 {(len(self.stains), *self.shape)}, they are {stains.dtype} {stains.shape}")
        self.n_transcripts = len(transcripts)
        with whole(folder) as part:
            part.mkdir()
            np.save(part / "stains.npy", stains)
            transcripts[TRANSCRIPT_COLUMNS].to_parquet(part / "transcripts.parquet", index=False)
            write_json(part / "genes.json", dict(sample_genes))
            record = asdict(self)
            record.pop("folder")
            write_json(part / "tile.json", record)
        self.folder = Path(folder)


@dataclass
class TileIndex:
    """`tiles.json`: the grid, the tiles, and what was skipped and why.

    Attributes
    ----------
    tiles
        `{"tile_id", "core", "region", "n_windows", "n_transcripts"}` of each tile written.
    skipped
        `{"tile_id", "core", "reason"}` of each tile without tissue.
    working_um
        Size of a working pixel in µm.
    tissue_fraction
        Share of the mosaic's area that holds tissue.
    stains
        Focus and seams of each stain of the tiles (`qc.stains.measure`).
    """

    sample: str
    grid: dict[str, int]
    windows_per_side: int
    working_um: float
    micron_to_working: list[list[float]]
    tiles: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    tissue_fraction: float
    stains: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def window_grid(self) -> WindowGrid:
        return WindowGrid(**self.grid)

    @property
    def affine(self) -> np.ndarray:
        return np.asarray(self.micron_to_working, float)

    def write(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> TileIndex:
        raw = read_record(path, "tile", FORMAT)
        return cls(**raw)
