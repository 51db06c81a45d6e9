"""tile: `<sample>.zarr` → `tiles/{tiles.json, <tile_id>/, overview.npz}`. Cuts a converted sample into self-contained tiles at working resolution.

Memory holds one tile: pixels are read in strips of one tile, transcripts in batches that are spread over the tiles of a row on disk.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from istseg.artifacts.files import whole
from istseg.artifacts.sample import Sample, apply_affine
from istseg.artifacts.tiles import TRANSCRIPT_COLUMNS, Tile, TileIndex
from istseg.converted import Points, StainImage
from istseg.errors import InputError
from istseg.grid import Box, WindowGrid, tile_id
from istseg.progress import track
from istseg.qc.stains import measure
from istseg.resample import sample_grid, working_image
from istseg.tissue import TissueGrid, find_tissue, stained_squares

log = logging.getLogger("istseg")

OVERVIEW_PX = 1500
"""Longest side of the overview picture."""
_COARSE_UM = 3.0
_SPILL = pa.schema([("transcript_id", pa.int64()), ("x_wpx", pa.float64()), ("y_wpx", pa.float64()), ("gene", pa.int32()), ("is_control", pa.bool_())])


def run(*, sample_json: Path, zarr: Path, out: Path, working_um: float, tile_um: float, overlap_um: float, min_transcripts: int) -> None:
    """Write the tiles of a sample to `out/tiles`.

    Raises
    ------
    InputError
        If the sample's files do not fit together, the overlap is wider than half a window, or there is no tissue at all.

    """
    sample = Sample.read(sample_json)
    image = StainImage(zarr, sample)
    points = Points(zarr, sample)
    factor = working_um / sample.pixel_size_um
    grid = sample_grid(sample.height_px, sample.width_px, factor, working_um, overlap_um)
    n = grid.windows_across(tile_um, working_um)
    tissue, genes = _tissue(sample, image, points, min_transcripts)
    if not tissue.own.any():
        raise InputError(
            f"{sample.sample}: no tissue found. No square of 24 µm holds {min_transcripts} transcripts or more inside the image, and the nucleus stain "
            f"{sample.nucleus.name} rises above its background nowhere. Check that image and transcripts belong together, "
            f"or lower tissue_transcripts (--min-transcripts of `istseg tile`)."
        )
    to_working = np.diag([1 / factor, 1 / factor, 1.0]) @ sample.affine
    index = TileIndex(sample.sample, grid.as_dict(), n, working_um, to_working.tolist(), [], [], tissue.fraction, measure(image, sample, tissue))
    cutter = _Cutter(sample, image, points, grid, n, tissue, genes, factor, to_working)
    with whole(Path(out) / "tiles") as part:
        part.mkdir()
        for ty in track(range(ceil(grid.shape[0] / n)), f"{sample.sample}: rows of tiles"):
            cutter.row(ty, part, index)
        _write_overview(part / "overview.npz", image, sample)
        index.write(part / "tiles.json")
    log.info("%s: %d tiles, %d without tissue", sample.sample, len(index.tiles), len(index.skipped))


@dataclass
class _Cutter:
    """Cuts rows of tiles."""

    sample: Sample
    image: StainImage
    points: Points
    grid: WindowGrid
    n: int
    tissue: TissueGrid
    genes: dict[str, int]
    factor: float
    to_working: np.ndarray

    @property
    def working_um(self) -> float:
        return self.factor * self.sample.pixel_size_um

    def row(self, ty: int, folder: Path, index: TileIndex) -> None:
        """Write the tiles of a row and enter them into the index."""
        tiles = []
        for tx in range(ceil(self.grid.shape[1] / self.n)):
            tile = self._plan(ty, tx)
            if tile.windows:
                tiles.append(tile)
                continue
            index.skipped.append({"tile_id": tile.tile_id, "core": tile.core, "reason": "no tissue"})
        if not tiles:
            return
        spill = folder / ".spill"
        spill.mkdir()
        self._spread(tiles, spill)
        for tile in tiles:
            stains = np.empty((len(tile.stains), *tile.shape), np.uint16)
            for plane, name in zip(stains, tile.stains, strict=True):
                plane[:] = self._stain(name, tile.region)
            tile.write(folder / tile.tile_id, stains, self._gather(spill / tile.tile_id), self.genes)
            index.tiles.append(
                {"tile_id": tile.tile_id, "core": tile.core, "region": tile.region, "n_windows": len(tile.windows), "n_transcripts": tile.n_transcripts}
            )
        shutil.rmtree(spill)

    def _plan(self, ty: int, tx: int) -> Tile:
        def with_tissue(ring: int) -> list[tuple[int, int]]:
            return [w for w in self.grid.tile_windows(ty, tx, self.n, ring) if self.tissue.touches(self.grid.core(*w), self.working_um)]

        windows = with_tissue(0)
        stains = [self.sample.nucleus, *self.sample.membranes]
        return Tile(
            sample=self.sample.sample,
            tile_id=tile_id(ty, tx),
            grid=self.grid.as_dict(),
            core=self.grid.tile_core(ty, tx, self.n),
            region=self.grid.tile_region(ty, tx, self.n),
            windows=windows,
            ring_windows=sorted(set(with_tissue(1)) - set(windows)),
            stains=[s.name for s in stains],
            ranges=[(s.low, s.high) for s in stains],
            working_um=self.working_um,
            micron_to_working=self.to_working.tolist(),
        )

    def _stain(self, name: str, region: Box) -> np.ndarray:
        return working_image(lambda box: self.image.read(name, box), region, self.factor, (self.sample.height_px, self.sample.width_px))

    def _spread(self, tiles: list[Tile], spill: Path) -> None:
        """Append the transcripts of the row to one file per tile, in the order of the points."""
        y0, _, y1, _ = tiles[0].region
        writers = {t.tile_id: pq.ParquetWriter(spill / t.tile_id, _SPILL) for t in tiles}
        try:
            for batch in self.points.batches(["transcript_id", "x", "y", "gene", "is_control"], (y0 * self.working_um, y1 * self.working_um)):
                at = apply_affine(self.to_working, np.column_stack([batch["x"].to_numpy(), batch["y"].to_numpy()]))
                columns = [
                    batch["transcript_id"].to_numpy(),
                    at[:, 0],
                    at[:, 1],
                    self.points.codes(batch["gene"]),
                    batch["is_control"].to_numpy(zero_copy_only=False),
                ]
                in_row = (at[:, 1] >= y0) & (at[:, 1] < y1)
                for tile in tiles:
                    _, x0, _, x1 = tile.region
                    inside = np.flatnonzero(in_row & (at[:, 0] >= x0) & (at[:, 0] < x1))
                    if len(inside):
                        writers[tile.tile_id].write_table(pa.table([c[inside] for c in columns], schema=_SPILL))
        finally:
            for writer in writers.values():
                writer.close()

    def _gather(self, path: Path) -> pd.DataFrame:
        frame = pq.read_table(path).to_pandas()
        frame["gene"] = pd.Categorical.from_codes(frame["gene"], self.points.categories)
        return frame[TRANSCRIPT_COLUMNS]


def _tissue(sample: Sample, image: StainImage, points: Points, min_transcripts: int) -> tuple[TissueGrid, dict[str, int]]:
    """Where tissue is, and the sample's transcripts of each gene (found in the same pass)."""
    size_um = sample.size_um
    counts, genes = points.survey()
    level = image.coarsest(size_um[0] / _COARSE_UM)
    nucleus = sample.nucleus
    stained = stained_squares(lambda box: image.read(nucleus.name, box, level), image.shape(level), size_um, nucleus.high)
    return find_tissue(counts, stained, min_transcripts, size_um), genes


def _write_overview(path: Path, image: StainImage, sample: Sample) -> None:
    """`stains` uint16 (c, y, x), `stain_names`, `um_per_px`, `origin` (x, y in µm from the mosaic's top left corner) of the whole sample."""
    longest = max(sample.height_px, sample.width_px)
    scale = min(OVERVIEW_PX / longest, 1.0)
    level = image.coarsest(sample.height_px * scale)
    size = tuple(max(round(n * scale), 1) for n in (sample.width_px, sample.height_px))
    names = [s.name for s in (sample.nucleus, *sample.membranes)]
    stains = [cv2.resize(image.read(name, (0, 0, *image.shape(level)), level), size, interpolation=cv2.INTER_AREA) for name in names]
    um_per_px = sample.pixel_size_um / scale
    # Not compressed: that takes a second for some 20 MB, longer than all else in a small sample.
    with whole(path) as part, open(part, "wb") as stream:
        np.savez(stream, stains=np.stack(stains), stain_names=np.array(names), um_per_px=um_per_px, origin=np.zeros(2))
