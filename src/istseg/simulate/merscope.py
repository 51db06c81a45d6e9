"""Writes a MERSCOPE region folder: the files, columns and quirks of the instrument (FORMATS: MERSCOPE)."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import shapely
import tifffile

from istseg.simulate import truth, vendor_merscope, work
from istseg.simulate.molecules import N_CONTROLS
from istseg.simulate.panel import GENES
from istseg.simulate.randomness import generator
from istseg.simulate.recipe import OUTSIDE_UM, Recipe
from istseg.simulate.seeds import PIXEL_UM, block_box, grow

SCALE = (9.259397506713867, 9.259394645690918)
"""Pixels per µm in x and y, as on a real region: they differ slightly."""
CONTROL_NAMES = [f"Blank-{i + 1}" for i in range(N_CONTROLS)]
_IMAGE_BLOCK = 1024
_STRIP, _ONE_STRIP = 10, 5  # lattice blocks
FIELD_PX = 2048


@dataclass(frozen=True)
class Region:
    """A region to write. `offset` (x, y): micron = scene + offset."""

    recipe: Recipe
    folder: Path
    parts: Path
    generation: str
    shape: tuple[int, int]
    offset: tuple[float, float]

    @property
    def pixel_um(self) -> tuple[float, float]:
        """(y, x)."""
        return 1 / SCALE[1], 1 / SCALE[0]

    def image(self, stain: str, plane: int) -> Path:
        """Path of a mosaic."""
        return self.folder / "images" / f"mosaic_{stain}_z{plane}.tif"


def write(recipe: Recipe, raw: Path, truth_folder: Path, generation: str) -> dict[str, object]:
    """Write the region folder `raw` and the truth.

    Parameters
    ----------
    generation
        `parquet` (newer) or `hdf5` (older vendor cells).

    Returns
    -------
    Facts for `truth.json`.
    """
    random = generator(recipe.seed, "slide")
    shape = max(int(round(recipe.height_um * SCALE[1])), 1), max(int(round(recipe.width_um * SCALE[0])), 1)
    offset = float(random.uniform(80, 3000)), float(random.uniform(80, 3000))
    (raw / "images").mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=raw.parent) as parts:
        region = Region(recipe, raw, Path(parts), generation, shape, offset)
        _open_images(region)
        strips = _strips(region)
        work.run(_Writer, region, strips, "tissue")
        names = [_part_name(strip) for strip in strips]
        with open(raw / "detected_transcripts.csv", "wb") as whole:
            whole.write((",".join(_columns(generation)) + "\n").encode())
            for name in names:
                with open(Path(parts) / f"{name}.csv", "rb") as part:
                    shutil.copyfileobj(part, whole)
        counts = {
            "transcripts": truth.join(
                [Path(parts) / f"{n}.transcripts.parquet" for n in names], truth_folder / "transcripts.parquet", truth.TRANSCRIPTS, "transcript_id"
            ),
            "cells": truth.join([Path(parts) / f"{n}.cells.parquet" for n in names], truth_folder / "cells.parquet", truth.CELLS),
            "nuclei": truth.join([Path(parts) / f"{n}.nuclei.parquet" for n in names], truth_folder / "nuclei.parquet", truth.NUCLEI),
        }
        counts["vendor_cells"] = vendor_merscope.write(raw, [Path(parts) / f"{n}.vendor.parquet" for n in names], generation, recipe.planes)
    _write_images_tables(region)
    transform = _transform(region)
    return {"counts": counts, "pixel_um": list(region.pixel_um[::-1]), "micron_to_pixel": transform.tolist(), "shape_px": list(shape)}


def _columns(generation: str) -> list[str]:
    common = ["", "barcode_id", "global_x", "global_y", "global_z", "x", "y", "fov", "gene", "transcript_id"]
    return [*common, "cell_id"] if generation == "parquet" else common


def _transform(region: Region) -> np.ndarray:
    return np.array([[SCALE[0], 0, -SCALE[0] * region.offset[0]], [0, SCALE[1], -SCALE[1] * region.offset[1]], [0, 0, 1]])


def _open_images(region: Region) -> None:
    big = region.shape[0] * region.shape[1] * 2 > 2**32 - 2**20
    for stain in region.recipe.optics.stains:
        for plane in range(region.recipe.planes):
            image = tifffile.memmap(region.image(stain, plane), shape=region.shape, dtype=np.uint16, photometric="minisblack", bigtiff=big)
            image.flush()


def _write_images_tables(region: Region) -> None:
    np.savetxt(region.folder / "images" / "micron_to_mosaic_pixel_transform.csv", _transform(region))
    height, width = region.shape
    x, y = region.offset
    stains = region.recipe.optics.stains
    manifest = {
        "microns_per_pixel": 0.108,
        "mosaic_width_pixels": width,
        "mosaic_height_pixels": height,
        "bbox_microns": [x, y, x + width / SCALE[0], y + height / SCALE[1]],
        "hor_num_tiles_box": 1,
        "vert_num_tiles_box": 1,
        "mosaic_files": [{"stain": s, "z": z, "file_name": f"mosaic_{s}_z{z}.tif"} for z in range(region.recipe.planes) for s in reversed(stains)],
    }
    (region.folder / "images" / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _strips(region: Region) -> list[tuple[int, int]]:
    """Columns [bx0, bx1) of lattice blocks that one task makes from top to bottom, so narrow that the caches hold the rows around.

    An even number of them, for two cores; the order of the rows in the tables follows from it, so it must not depend on the machine.
    """
    across = region.recipe.tissue.layout.blocks[1]
    n = 1 if across <= _ONE_STRIP else 2 * -(-across // (2 * _STRIP))
    ends = np.linspace(0, across, n + 1).round().astype(int).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def _part_name(strip: tuple[int, int]) -> str:
    return f"x{strip[0]:04d}"


class _Writer:
    """Writes one strip: its pixels into the mosaics, its tables into parts."""

    def __init__(self, region: Region):
        self.region, self.recipe = region, region.recipe
        self._landed = lru_cache(maxsize=60)(self._landing)
        self._columns = -(-region.shape[1] // FIELD_PX)

    def __call__(self, strip: tuple[int, int]) -> None:
        """Write a strip of blocks."""
        blocks = [(by, bx) for by in range(self.recipe.tissue.layout.blocks[0]) for bx in range(*strip)]
        stem = self.region.parts / _part_name(strip)
        schemas = {"cells": truth.CELLS, "nuclei": truth.NUCLEI, "transcripts": truth.TRANSCRIPTS, "vendor": vendor_merscope.schema(len(GENES) + N_CONTROLS)}
        writers = {name: pq.ParquetWriter(f"{stem}.{name}.parquet", schema) for name, schema in schemas.items()}
        with open(f"{stem}.csv", "wb") as csv:
            for by, bx in blocks:
                self._write_pixels(by, bx)
                found = self.recipe.outlines.truth(by, bx)
                writers["cells"].write_table(truth.cells_table(found, self.region.offset))
                writers["nuclei"].write_table(truth.nuclei_table(found, self.region.offset))
                writers["vendor"].write_table(self._vendor_cells(by, bx))
                table, cells = self._transcripts(by, bx)
                pacsv.write_csv(table, csv, pacsv.WriteOptions(include_header=False, quoting_style="none"))
                writers["transcripts"].write_table(pa.table({"transcript_id": np.arange(len(table)), "cell_id": cells}, schema=truth.TRANSCRIPTS))
        for writer in writers.values():
            writer.close()

    def _write_pixels(self, by: int, bx: int) -> None:
        """Image block of the same index as the lattice block: it lies near, so that the caches serve both."""
        height, width = self.region.shape
        y0, x0 = by * _IMAGE_BLOCK, bx * _IMAGE_BLOCK
        y1, x1 = min(y0 + _IMAGE_BLOCK, height), min(x0 + _IMAGE_BLOCK, width)
        if y1 <= y0 or x1 <= x0:
            return
        pixels = self.recipe.exposures((y0, x0, y1, x1), (0.0, 0.0), self.region.pixel_um, (FIELD_PX, FIELD_PX), frame=0)
        for plane in range(pixels.shape[0]):
            for i, stain in enumerate(self.recipe.optics.stains):
                image = tifffile.memmap(self.region.image(stain, plane))
                image[y0:y1, x0:x1] = pixels[plane, i]

    def _landing(self, by: int, bx: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Transcripts of a block in or near the mosaic, and the instrument's cell (number) at each."""
        found = self.recipe.molecules.block(by, bx)
        x, y = found["x"], found["y"]
        near = (x > -OUTSIDE_UM) & (y > -OUTSIDE_UM) & (x < self.recipe.width_um + OUTSIDE_UM) & (y < self.recipe.height_um + OUTSIDE_UM)
        found = {key: value[near] for key, value in found.items()}
        return found, vendor_at(self.recipe, by, bx, found["x"], found["y"])

    def _transcripts(self, by: int, bx: int) -> tuple[pa.Table, pa.Array]:
        found, vendor = self._landed(by, bx)
        n = len(found["x"])
        px, py = found["x"] * SCALE[0], found["y"] * SCALE[1]
        height, width = self.region.shape
        fx = np.clip(px, 0, width - 1).astype(np.int64) // FIELD_PX
        fy = np.clip(py, 0, height - 1).astype(np.int64) // FIELD_PX
        z = found["z"]
        columns = {
            # As on the instrument, a row number within something smaller than the table: not unique.
            "": np.arange(n, dtype=np.int64) * 7 + 3,
            "barcode_id": found["gene"],
            "global_x": np.round(found["x"] + self.region.offset[0], 5),
            "global_y": np.round(found["y"] + self.region.offset[1], 5),
            "global_z": z.astype(np.float64) if self.region.generation == "parquet" else z,
            "x": np.round(px - fx * FIELD_PX, 3),
            "y": np.round(py - fy * FIELD_PX, 3),
            "fov": fy * self._columns + fx,
            "gene": pa.array([*GENES, *CONTROL_NAMES]).take(pa.array(found["gene"])),
            "transcript_id": pa.array([f"ENSSIMT{i:011d}" for i in range(len(GENES) + N_CONTROLS)]).take(pa.array(found["gene"])),
        }
        if self.region.generation == "parquet":
            columns["cell_id"] = np.where(vendor > 0, vendor_merscope.entity_id(vendor), -1)
        return pa.table(columns), truth.true_cells(found["number"], self.recipe.outlines.kept(found["number"]))

    def _vendor_cells(self, by: int, bx: int) -> pa.Table:
        numbers, polygons = self.recipe.outlines.vendor(by, bx)
        n_genes = len(GENES) + N_CONTROLS
        counts = np.zeros((len(numbers), n_genes), np.int32)
        down, across = self.recipe.tissue.layout.blocks
        for y in range(max(by - 1, 0), min(by + 2, down)):
            for x in range(max(bx - 1, 0), min(bx + 2, across)):
                found, vendor = self._landed(y, x)
                ours = np.flatnonzero(np.isin(vendor, numbers) & (vendor > 0))
                rows = np.searchsorted(np.sort(numbers), vendor[ours])
                np.add.at(counts, (np.argsort(numbers, kind="stable")[rows], found["gene"][ours]), 1)
        centres = shapely.centroid(polygons) if len(polygons) else np.empty(0, object)
        px, py = shapely.get_x(centres) * SCALE[0] if len(polygons) else np.empty(0), shapely.get_y(centres) * SCALE[1] if len(polygons) else np.empty(0)
        fov = (py.astype(np.int64) // FIELD_PX) * self._columns + px.astype(np.int64) // FIELD_PX
        moved = shapely.transform(polygons, lambda xy: xy + np.asarray(self.region.offset)) if len(polygons) else polygons
        names = (
            vendor_merscope.entity_id(numbers).astype(str) if self.region.generation == "parquet" else [long_id(self.recipe.seed, n) for n in numbers.tolist()]
        )
        return vendor_merscope.table(list(names), fov, moved, counts)


def long_id(seed: int, number: int) -> str:
    """Cell id of the older generation: 38 or 39 digits, more than 64 bits hold."""
    return str(10**37 + int(hashlib.sha256(f"{seed}/{number}".encode()).hexdigest(), 16) % (3 * 10**38))


def vendor_at(recipe: Recipe, by: int, bx: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Number of the instrument's cell at points in or near a block, 0 where there is none: (n,) int32."""
    margin = 40
    box = grow(block_box(by, bx), margin)
    labels = recipe.tissue.vendor_labels(box)
    row, column = np.floor(y / PIXEL_UM).astype(np.int64) - box[0], np.floor(x / PIXEL_UM).astype(np.int64) - box[1]
    inside = (row >= 0) & (row < labels.shape[0]) & (column >= 0) & (column < labels.shape[1])
    inside &= (x >= 0) & (y >= 0) & (x < recipe.width_um) & (y < recipe.height_um)
    found = np.zeros(len(x), np.int32)
    found[inside] = labels[row[inside], column[inside]]
    return np.where(recipe.outlines.kept(found, "vendor"), found, 0)
