"""How much memory does merge need on a whole slide? Merges tiles of made-up cells that touch each other, and prints one table and a fit.

All tiles show the same lattice of round cells: one is described, the others are its copies elsewhere, so a slide costs little to make. Every cell is there
three times, as ours, as the teacher's and as a nucleus. Peak memory does not depend on what else the machine does.

    python benchmarks/merge.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from resources import line

from istseg.artifacts.files import write_json
from istseg.artifacts.labels import describe
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import TileIndex
from istseg.grid import DEFAULT_TILE_UM, DEFAULT_WORKING_UM, WindowGrid, tile_id

PIXEL_UM = 0.108
# Tiles down and across, working pixels from one cell to the next (24: 37 µm² for a cell, less than in tissue), side of a tile in µm.
RUNS = [(1, 48, 750.0), (3, 48, 750.0), (1, 24, 750.0), (3, 24, 750.0), (4, 24, 750.0), (4, 24, 150.0), (16, 24, 150.0)]
# A process without libraries starts it: what a child inherits from its parent would count.
PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"


@dataclass
class Slide:
    """What was merged: million pixels of the mosaic, working Mpixel of a tile's region, cells of each segmentation."""

    mpx: float
    tile_plane_mpx: float
    cells: int


def write(folder: Path, side: int, spacing: int, tile_um: float = DEFAULT_TILE_UM) -> Slide:
    """Write `side` × `side` tiles below `folder` (tiles/tiles.json, cells/, teach/, thresholds.json). `spacing` must divide a tile's core."""
    grid = WindowGrid(1, 1)
    across = grid.windows_across(tile_um, DEFAULT_WORKING_UM)
    core, reach = across * grid.stride, grid.stride + grid.margin
    if core % spacing:
        raise ValueError(f"a tile's core of {core} working pixels is not a multiple of {spacing}")
    grid = WindowGrid(side * core, side * core)
    numbers, first = lattice(core, reach, spacing)
    box = (first, first, first + core, first + core)
    objects = describe("cells", numbers, box, (0, 0, *numbers.shape), numbers.shape)
    objects = objects[objects["owned"]].assign(mean_flow=0.5)
    polygons = shapely.from_wkb(objects["geometry"].to_numpy(dtype=object))

    scale = 1 / DEFAULT_WORKING_UM
    index = TileIndex("s", grid.as_dict(), across, DEFAULT_WORKING_UM, [[scale, 0.0, 0.0], [0.0, scale, 0.0], [0.0, 0.0, 1.0]], [], [], 1.0)
    images: dict[tuple[int, ...], Path] = {}
    for ty, tx in grid.tiles(across):
        name, own, region = tile_id(ty, tx), grid.tile_core(ty, tx, across), grid.tile_region(ty, tx, across)
        index.tiles.append({"tile_id": name, "core": own, "region": region, "n_windows": across**2, "n_transcripts": 0})
        dy, dx = own[0] - first, own[1] - first
        part = region[0] - dy, region[1] - dx, region[2] - dy, region[3] - dx
        moved = shapely.to_wkb(shapely.transform(polygons, lambda xy, by=np.array([dx, dy]): xy + by))
        there = objects.assign(centroid_x_wpx=objects["centroid_x_wpx"] + dx, centroid_y_wpx=objects["centroid_y_wpx"] + dy, geometry=moved)
        for stage, layers in (("cells", ["cells"]), ("teach", ["nuclei", "cells_PolyT"])):
            target = folder / stage / name
            target.mkdir(parents=True)
            pd.concat([there.assign(layer=layer) for layer in layers]).to_parquet(target / "objects.parquet", index=False)
            write_json(target / "meta.json", {"sample": "s", "tile_id": name, "core": own, "region": region, "method": {}, "layer_names": layers})
            # Tiles that see the same part of the lattice share the file.
            if (stage, *part) not in images:
                images[stage, *part] = target / "labels.npz"
                np.savez_compressed(target / "labels.npz", **dict.fromkeys(layers, numbers[part[0] : part[2], part[1] : part[3]]))
            else:
                (target / "labels.npz").hardlink_to(images[stage, *part])
    index.write(folder / "tiles" / "tiles.json")
    best = {"best_stain": "PolyT", "best_layer": "cells_PolyT"}
    Thresholds("s", 0.2, 8.0, n_nuclei=5, n_nucleus_pixels=500, teacher_cells={}, percentiles={}, **best).write(folder / "thresholds.json")
    area = max((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in (tile["region"] for tile in index.tiles))
    return Slide((side * core * DEFAULT_WORKING_UM / PIXEL_UM) ** 2 / 1e6, area / 1e6, len(objects) * side**2)


def lattice(core: int, reach: int, spacing: int) -> tuple[np.ndarray, int]:
    """Label image of round cells that holds a tile's core and `reach` pixels around it, and where the core begins in it."""
    border = -(-reach // spacing) * spacing
    n = (core + 2 * border) // spacing
    y, x = np.ogrid[: n * spacing, : n * spacing]
    inside = np.hypot(y % spacing + 0.5 - spacing / 2, x % spacing + 0.5 - spacing / 2) < spacing / 2
    return np.where(inside, y // spacing * n + x // spacing + 1, 0).astype(np.int32), border


def peak(folder: Path) -> float:
    """Run `istseg merge`; its peak resident memory, MiB."""
    istseg = str(Path(sys.executable).with_name("istseg"))
    given = {"tiles-json": "tiles/tiles.json", "cells": "cells", "teacher": "teach", "thresholds": "thresholds.json", "out": "merged"}
    command = [istseg, "--quiet", "merge", *(part for option, path in given.items() for part in (f"--{option}", str(folder / path)))]
    return float(subprocess.run([sys.executable, "-S", "-c", PEAK, *command], check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    options = parser.parse_args()
    found = []
    print("| tiles | µm² for a cell | mpx | tile_plane_mpx | cells of each of three segmentations | MiB |\n|---|---:|---:|---:|---:|---:|")
    for side, spacing, tile_um in RUNS:
        with tempfile.TemporaryDirectory(dir=options.scratch) as temporary, multiprocessing.get_context("spawn").Pool(1) as pool:
            slide = pool.apply(write, (Path(temporary), side, spacing, tile_um))
            found.append((slide, peak(Path(temporary))))
        row = f"| {side}×{side} of {tile_um:g} µm | {(spacing * DEFAULT_WORKING_UM) ** 2:.0f} | {slide.mpx:.0f} | {slide.tile_plane_mpx:.1f} |"
        print(f"{row} {slide.cells:,} | {found[-1][1]:.0f} |", flush=True)
    design = np.array([[1.0, slide.mpx, slide.tile_plane_mpx] for slide, _ in found])
    measured = np.array([memory for _, memory in found])
    terms, worst = line(design, measured)
    print("\nMiB = {:.3g} + {:.3g} mpx + {:.3g} tile_plane_mpx; at most above: {:.2f}".format(*terms, worst))


if __name__ == "__main__":
    main()
