"""Do convert, tile and assign stay below 2 GB on a region of 32768² pixels, and does their time grow with the area? Prints one table.

A simulated block of 2048² pixels (DAPI and PolyT, its transcripts and true cells) is repeated to regions of the sizes asked for, so that the data cost
little to make and every block is the same work. Each stage is a process of its own; time is CPU time (user and system), which a busy machine changes least,
and the peak is the resident memory of the process.

    python benchmarks/scale.py --sizes 8192 16384 32768
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import tifffile

from istseg.artifacts import cells as cells_file

BLOCK_PX = 2048
PIXEL_UM = 0.108
STAINS = ("DAPI", "PolyT")
STAGES = ("convert", "tile", "assign")
MEMORY_GB = 2.0
TOLERANCE = 0.15


def block(folder: Path) -> None:
    """The simulated block."""
    side = str(BLOCK_PX * PIXEL_UM)
    istseg("simulate", "--out", folder, "--width-um", side, "--height-um", side, "--planes", "1", "--stains", "PolyT", "--seed", "1")


def istseg(*arguments: object) -> tuple[float, float]:
    """Run a command; its CPU seconds and its peak resident memory in GB."""
    command = [str(Path(sys.executable).with_name("istseg")), "--quiet", *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def repeat(source: Path, folder: Path, n: int) -> int:
    """Write `n` × `n` blocks as `folder/region` and `folder/cells.parquet`; the number of transcripts."""
    images = folder / "region" / "images"
    images.mkdir(parents=True)
    for stain in STAINS:
        name = f"mosaic_{stain}_z0.tif"
        row = np.tile(tifffile.imread(source / "raw" / "images" / name)[:BLOCK_PX, :BLOCK_PX], (1, n))
        shape = (n * row.shape[0], row.shape[1])
        rows = (row[y : y + 64] for _ in range(n) for y in range(0, row.shape[0], 64))
        tifffile.imwrite(images / name, rows, shape=shape, dtype=row.dtype, rowsperstrip=64, bigtiff=True, metadata=None)
    transform = "micron_to_mosaic_pixel_transform.csv"
    shutil.copy(source / "raw" / "images" / transform, images / transform)
    side_um = row.shape[0] / np.loadtxt(images / transform)[0, 0]
    table = pd.read_csv(source / "raw" / "detected_transcripts.csv", dtype={"cell_id": str})[["global_x", "global_y", "global_z", "gene", "cell_id"]]
    cells = gpd.read_parquet(source / "truth" / "cells.parquet")
    ids, polygons = [], []
    with open(folder / "region" / "detected_transcripts.csv", "w") as stream:
        for y in range(n):
            for x in range(n):
                moved = table.assign(global_x=table["global_x"] + x * side_um, global_y=table["global_y"] + y * side_um)
                moved.to_csv(stream, index=False, header=(x, y) == (0, 0))
                ids += [f"{name}_{y}_{x}" for name in cells["cell_id"]]
                polygons += list(shapely.transform(cells.geometry.to_numpy(), lambda xy, x=x, y=y: xy + [x * side_um, y * side_um]))
    cells_file.write(folder / "cells.parquet", cells_file.frame(ids, polygons))
    return len(table) * n * n


def stages(folder: Path) -> dict[str, tuple[float, float]]:
    """Stage → CPU seconds, peak memory in GB."""
    store, facts = folder / "convert" / "s.zarr", folder / "convert" / "sample.json"
    points = store / "points" / "transcripts" / "points.parquet"
    found = {"convert": istseg("convert", "--raw", folder / "region", "--sample", "s", "--platform", "merscope", "--out", folder / "convert")}
    shutil.rmtree(folder / "region")
    found["tile"] = istseg("tile", "--sample-json", facts, "--zarr", store, "--out", folder)
    shutil.rmtree(folder / "tiles")
    cells = folder / "cells.parquet"
    found["assign"] = istseg("assign", "--sample-json", facts, "--transcripts", points, "--cells", cells, "--segmentation", "truth", "--out", folder / "assign")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 16384, 32768], help=f"sides in pixels, multiples of {BLOCK_PX}, ascending")
    parser.add_argument("--scratch", help="folder for the temporary files (32768: 15 GB)")
    options = parser.parse_args()
    if any(size % BLOCK_PX for size in options.sizes):
        parser.error(f"--sizes: must be multiples of {BLOCK_PX}")
    rows: dict[int, dict[str, tuple[float, float]]] = {}
    print("| side, px | transcripts | " + " | ".join(f"{stage}: CPU s | s/Gpx | GB" for stage in STAGES) + " |")
    print("|---:|---:|" + "---:|---:|---:|" * len(STAGES))
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        block(Path(scratch) / "block")
        for size in options.sizes:
            folder = Path(scratch) / str(size)
            folder.mkdir()
            # In a process of its own: a child's peak counts what its parent held when it was started.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                transcripts = pool.apply(repeat, (Path(scratch) / "block", folder, size // BLOCK_PX))
            rows[size] = stages(folder)
            shutil.rmtree(folder)
            cells = " | ".join(f"{seconds:.1f} | {seconds / (size / 1e3) ** 2 * 1e3:.1f} | {memory:.2f}" for seconds, memory in rows[size].values())
            print(f"| {size} | {transcripts:,} | {cells} |", flush=True)
    failed = False
    for stage in STAGES:
        peak = max(row[stage][1] for row in rows.values())
        words = f"{stage}: peak {peak:.2f} GB (limit {MEMORY_GB:g})"
        failed |= peak > MEMORY_GB
        if len(rows) > 2:
            low, middle, high = sorted(rows)[-3:]
            rates = [(rows[b][stage][0] - rows[a][stage][0]) / (b**2 - a**2) for a, b in ((low, middle), (middle, high))]
            words += f"; time for one more pixel, from {middle} to {high} against {low} to {middle}: {rates[1] / rates[0]:.2f}"
            failed |= abs(rates[1] / rates[0] - 1) > TOLERANCE
        print(words)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
