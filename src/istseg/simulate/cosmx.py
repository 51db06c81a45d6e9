"""Writes a CosMx slide folder of one of three generations: files, columns and quirks of the instrument (FORMATS: CosMx)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from istseg.grid import Box
from istseg.simulate import cosmx_images, cosmx_tables, truth, work
from istseg.simulate.cosmx_slide import PIXEL, Slide
from istseg.simulate.optics import covering
from istseg.simulate.randomness import generator
from istseg.simulate.recipe import Recipe
from istseg.simulate.seeds import PIXEL_UM, blocks_of

REAL_FRAME = {"A": (3648, 5472), "B": (4256, 4256), "C": (4256, 4256)}
SMALL_FRAME = {"A": (500, 600), "B": (750, 750), "C": (750, 750)}
"""(height, width) of a field of view in pixels; the small ones keep small samples in several fields."""
_SMALL_UP_TO_UM = 1000.0
_GAP_PX = 5.22
_OUTSIDE_PX = 2.0
_Z_LEVELS = 9
_WORTH_PX = 8_000_000
MARKER_STAINS = ("Membrane", "PanCK", "CD45", "CD68")
"""Fill the five pages of a morphology image when fewer stains are asked for."""
COSMX_NAMES = {"Cellbound1": "Membrane", "Cellbound2": "CD298", "PolyT": "rRNA"}
"""What shows the same on this instrument as stains of MERSCOPE."""


def write(recipe: Recipe, raw: Path, truth_folder: Path, generation: str) -> dict[str, object]:
    """Write the slide folder `raw` and the truth; returns facts for `truth.json`."""
    pixel = PIXEL[generation]
    frame, corners = _fields(recipe, generation)
    # The tissue is as large as the fields of view together; the mosaic frame begins at the first one's corner.
    height, width = (max(c[axis] for c in corners) + frame[axis] for axis in (0, 1))
    stains = tuple(COSMX_NAMES.get(stain, stain) for stain in recipe.stains)
    stains = stains if generation == "A" or not stains else _five(stains)
    fitted = replace(recipe, width_um=width * pixel, height_um=height * pixel, stains=stains, planes=1, depth=_Z_LEVELS)
    with tempfile.TemporaryDirectory(dir=raw.parent) as parts:
        slide = Slide(fitted, raw, Path(parts), generation, "Sim1", frame, corners)
        fovs = list(range(1, len(corners) + 1))
        work.run(_Writer, slide, fovs, "fields of view", worth=frame[0] * frame[1] * len(fovs) > _WORTH_PX)
        counts = {
            "transcripts": truth.join(
                [Path(parts) / f"{fov}.transcripts.parquet" for fov in fovs], truth_folder / "transcripts.parquet", truth.TRANSCRIPTS, "transcript_id"
            )
        }
        counts |= _write_truth(slide, truth_folder)
        counts["vendor_cells"] = cosmx_tables.join(slide)
    cosmx_tables.write_positions(slide)
    cosmx_images.write_run_files(slide)
    return {
        "counts": counts,
        "pixel_um": [pixel, pixel],
        "micron_to_pixel": np.diag([1 / pixel, 1 / pixel, 1]).tolist(),
        "shape_px": [round(height), round(width)],
        "fovs": len(corners),
        "frame_px": list(frame),
    }


def _fields(recipe: Recipe, generation: str) -> tuple[tuple[int, int], tuple[tuple[float, float], ...]]:
    """Frame and corners of the FOVs: a grid whose fields lie some pixels apart and not quite in line."""
    size_px = recipe.height_um / PIXEL[generation], recipe.width_um / PIXEL[generation]
    small = max(recipe.height_um, recipe.width_um) <= _SMALL_UP_TO_UM
    frame = (SMALL_FRAME if small else REAL_FRAME)[generation]
    down, across = (max(1, round(size / side)) for size, side in zip(size_px, frame, strict=True))
    frame = tuple(min(side, int(np.ceil(size))) for side, size in zip(frame, size_px, strict=True))
    random = generator(recipe.seed, "fovs")
    jitter = random.uniform(0, 1.0, (down, across, 2)).round(3)
    y = np.arange(down)[:, None] * (frame[0] + _GAP_PX) + jitter[..., 0]
    x = np.arange(across)[None, :] * (frame[1] + _GAP_PX) + jitter[..., 1]
    return frame, tuple(zip((y - y.min()).ravel().tolist(), (x - x.min()).ravel().tolist(), strict=True))


def _five(stains: tuple[str, ...]) -> tuple[str, ...]:
    taken = {s.lower() for s in stains}
    return (*stains, *[s for s in MARKER_STAINS if s.lower() not in taken])[: max(4, len(stains))]


def _write_truth(slide: Slide, folder: Path) -> dict[str, int]:
    down, across = slide.recipe.tissue.layout.blocks
    n = {"cells": 0, "nuclei": 0}
    with (
        pq.ParquetWriter(folder / "cells.parquet", truth.CELLS, compression=truth.COMPRESSION) as cells,
        pq.ParquetWriter(folder / "nuclei.parquet", truth.NUCLEI, compression=truth.COMPRESSION) as nuclei,
    ):
        for by in range(down):
            for bx in range(across):
                found = slide.recipe.outlines.truth(by, bx)
                for name, writer, table in (("cells", cells, truth.cells_table(found, (0, 0))), ("nuclei", nuclei, truth.nuclei_table(found, (0, 0)))):
                    writer.write_table(table)
                    n[name] += len(table)
    return n


class _Writer:
    """Writes the images and the parts of the tables of one FOV."""

    def __init__(self, slide: Slide):
        self.slide, self.recipe = slide, slide.recipe

    def __call__(self, fov: int) -> None:
        """Write a FOV."""
        slide, parts = self.slide, self.slide.parts
        corner = tuple(c * slide.pixel_um for c in slide.corners[fov - 1])
        cosmx_images.write_pixels(slide, fov, corner)
        numbers, labels, compartments = self._labels(corner)
        cosmx_images.write_labels(slide, fov, labels, compartments)
        found = self._molecules(corner)
        row, column = found["row"], found["column"]
        inside = (row >= 0) & (column >= 0) & (row < slide.frame[0]) & (column < slide.frame[1])
        pixel = np.floor(np.where(inside, row, 0)).astype(int), np.floor(np.where(inside, column, 0)).astype(int)
        cell = np.where(inside, labels[pixel], 0)
        compartment = np.where(inside, compartments[pixel], 0)
        table = cosmx_tables.transcripts(slide, fov, found, cell, compartment)
        with open(parts / f"{fov}.tx.csv", "wb") as stream:
            pacsv.write_csv(table, stream, pacsv.WriteOptions(include_header=False, quoting_style="none"))
        cells = truth.true_cells(found["number"], self.recipe.outlines.kept(found["number"]))
        pq.write_table(pa.table({"transcript_id": np.arange(len(table)), "cell_id": cells}, schema=truth.TRANSCRIPTS), parts / f"{fov}.transcripts.parquet")
        counts = np.zeros((len(numbers) + 1, len(slide.targets)), np.int32)
        np.add.at(counts, (cell, found["gene"]), 1)
        cosmx_tables.write_cells(slide, fov, labels, counts)

    def _labels(self, corner: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The instrument's cells in this FOV: their numbers, its label image (i + 1 for numbers[i]) and its compartments."""
        height, width = self.slide.frame
        pixel = self.slide.pixel_um
        box = covering(corner, (height * pixel, width * pixel))
        rows, columns = (
            np.floor((start + (np.arange(n) + 0.5) * pixel) / PIXEL_UM).astype(int) - origin
            for start, n, origin in zip(corner, (height, width), box[:2], strict=True)
        )
        pick = np.ix_(rows, columns)
        numbers, labels = np.unique(self.recipe.tissue.vendor_labels(box)[pick], return_inverse=True)
        labels = labels.reshape(height, width)
        if len(numbers) and numbers[0] == 0:
            numbers = numbers[1:]
        else:
            labels = labels + 1
        nuclei = self.recipe.tissue.labels(box)[1][pick]
        return numbers, labels.astype(np.int32), cosmx_images.compartments(labels, nuclei)

    def _molecules(self, corner: tuple[float, float]) -> dict[str, np.ndarray]:
        """Transcripts of the FOV with their `row` and `column` in its image; a few lie a little outside of it."""
        pixel, (height, width) = self.slide.pixel_um, self.slide.frame
        box = covering(corner, (height * pixel, width * pixel))
        found = [_near(self.recipe, by, bx, corner, pixel, (height, width)) for by, bx in _touched(self.recipe, box)]
        return {key: np.concatenate([f[key] for f in found]) for key in found[0]}


def _touched(recipe: Recipe, box: Box) -> list[tuple[int, int]]:
    """Blocks whose transcripts can land in a box."""
    margin = int(8 / PIXEL_UM)
    by0, bx0, by1, bx1 = blocks_of((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin))
    return [(by, bx) for by in range(by0, by1) for bx in range(bx0, bx1) if recipe.tissue.layout.holds(by, bx)]


def _near(recipe: Recipe, by: int, bx: int, corner: tuple[float, float], pixel: float, frame: tuple[int, int]) -> dict[str, np.ndarray]:
    found = recipe.molecules.block(by, bx)
    row, column = (found["y"] - corner[0]) / pixel, (found["x"] - corner[1]) / pixel
    near = (row > -_OUTSIDE_PX) & (column > -_OUTSIDE_PX) & (row < frame[0] + _OUTSIDE_PX) & (column < frame[1] + _OUTSIDE_PX)
    return {**{key: value[near] for key, value in found.items()}, "row": row[near], "column": column[near]}
