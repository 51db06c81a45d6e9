"""How much do assign, assess, compare and regions need on a large slide?

A simulated region goes through the road once; its cells, labels and transcripts are copied side by side, and the stages that read them run on the whole. Images
are there for one copy only: what is read of them is a tile at a time. Prints a table and a fit.

    python benchmarks/enlarged.py                # about 15 minutes of one core
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import shutil
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
import zarr
from resources import line

from istseg.artifacts import cells as cells_file
from istseg.artifacts import spatial
from istseg.artifacts.sample import Sample
from istseg.artifacts.shards import CHUNK, ShardedWriter
from stages import commands, measure, simulate

SIDE_PX = 2024
"""864 working pixels of 0.253 µm, so that copies of the label image lie side by side without a seam."""
ROAD = ("convert", "tile", "teach", "calibrate", "segment", "merge")
STAGES = ("assign", "assess", "compare", "regions")
RUNS = [(1, 2.0), (8, 2.0), (16, 2.0), (16, 0.5), (8, 12.0)]
"""Copies down and across, transcripts per µm²."""
MODEL = ("mpx", "mtx")


def region(folder: Path, density: float) -> None:
    """Simulate a region and bring it to its merged cells."""
    measure(simulate(folder, SIDE_PX, "Cellbound1;PolyT", 1, "--transcripts-per-um2", str(density)))
    for stage in ROAD:
        tiles = sorted(p.parent for p in (folder / "tiles").glob("*/tile.json"))
        measure(commands(folder, folder / "sim" / "raw", tiles, 750.0)[stage][0])


def enlarge(small: Path, large: Path, n: int) -> tuple[float, float, int]:
    """Write n × n copies of what a region's `ROAD` left; million pixels, million transcripts, cells."""
    sample = Sample.read(small / "convert" / "sample.json")
    if (sample.height_px, sample.width_px) != (SIDE_PX, SIDE_PX):
        raise ValueError(f"the region has {sample.height_px} x {sample.width_px} pixels, not {SIDE_PX} x {SIDE_PX}")
    totals = {k: v * n * n for k, v in sample.transcripts.items() if isinstance(v, int)}
    by_plane = {k: v * n * n for k, v in sample.transcripts["by_plane"].items()}
    bands = [SIDE_PX * n * sample.pixel_size_um * (i + 1) / n for i in range(n)]
    big = dataclasses.replace(sample, height_px=SIDE_PX * n, width_px=SIDE_PX * n, transcripts=totals | {"by_plane": by_plane}, transcript_bands_um=bands)
    (large / "convert" / "s.zarr").mkdir(parents=True)
    big.write(large / "convert" / "sample.json")
    shutil.copytree(small / "tiles", large / "tiles")
    shutil.copytree(small / "calibrate", large / "calibrate")
    step = SIDE_PX * sample.pixel_size_um
    _transcripts(small / "convert" / "s.zarr", large / "convert" / "s.zarr", n, step)
    (large / "merge").mkdir()
    for name in ("istseg.cells.parquet", "nuclei.parquet"):
        found = cells_file.read(small / "merge" / name)
        last = int(found["label"].max())
        copies = (_moved(found, k * last, k % n * step, k // n * step, k) for k in range(n * n))
        cells_file.write_parts(large / "merge" / name, copies)
        if name.startswith("istseg"):
            _labels(small / "merge" / "labels.zarr", large / "merge" / "labels.zarr", n, last)
            n_cells = len(found) * n * n
    return (SIDE_PX * n) ** 2 / 1e6, totals["total"] / 1e6, n_cells


def _transcripts(small: Path, large: Path, n: int, step: float) -> None:
    parts = spatial.write_points_metadata(large)
    table = pa.concat_tables([pq.read_table(path) for path in spatial.transcript_parts(small)], promote_options="permissive").combine_chunks()
    for row in range(n):
        with pq.ParquetWriter(parts / f"part.{row}.parquet", table.schema) as writer:
            for column in range(n):
                moved = table
                for name, by in (("x", column * step), ("y", row * step), ("transcript_id", (row * n + column) * len(table))):
                    at, old = moved.schema.get_field_index(name), moved[name]
                    moved = moved.set_column(at, moved.schema.field(at), pc.add(old, pa.scalar(by, old.type)))
                writer.write_table(moved)


def _moved(cells: gpd.GeoDataFrame, labels: int, dx: float, dy: float, copy: int) -> gpd.GeoDataFrame:
    polygons = shapely.transform(cells.geometry.to_numpy(), lambda xy: xy + np.array([dx, dy]))
    return cells_file.frame([f"{copy}_{name}" for name in cells["cell_id"]], polygons, cells["label"].to_numpy() + labels, cells["mean_flow"].to_numpy())


def _labels(small: Path, large: Path, n: int, last: int) -> None:
    group = zarr.open_group(small, mode="r")
    labels = group["istseg"][:]
    made = zarr.open_group(large, mode="w")
    made.attrs.update(group.attrs.asdict())
    height, width = labels.shape
    writer = ShardedWriter(large / "istseg", (height * n, width * n), str(labels.dtype))
    for top in range(0, height * n, CHUNK):
        rows = np.arange(top, min(top + CHUNK, height * n))
        first = (rows // height * n * last)[:, None]
        writer.write(np.hstack([np.where(part > 0, part + first + column * last, 0) for column, part in enumerate([labels[rows % height]] * n)]))
    zarr.open_array(large / "istseg", mode="r+").attrs.update(group["istseg"].attrs.asdict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    options = parser.parse_args()
    found = []
    print("| mpx | mtx | cells | " + " | ".join(f"{stage}: MiB | CPU s" for stage in STAGES) + " |\n|---:|---:|---:|" + "---:|---:|" * len(STAGES))
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        for n, density in RUNS:
            small, large = Path(temporary) / f"region_{density}", Path(temporary) / "large"
            if not small.exists():
                small.mkdir()
                region(small, density)
            # What a child inherits of its parent's memory would count.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                size = pool.apply(enlarge, (small, large, n))
            needed = [measure(commands(large, Path(), [], 750.0)[stage][0])[1:] for stage in STAGES]
            found.append((size, needed))
            print(f"| {size[0]:.0f} | {size[1]:.2f} | {size[2]:,} | " + " | ".join(f"{memory:.0f} | {cpu:.1f}" for memory, cpu in needed) + " |", flush=True)
            shutil.rmtree(large)
    design = np.array([[1.0, *size[: len(MODEL)]] for size, _ in found])
    print("\n| stage | MiB = | at most above | s = | at most above |\n|---|---|---:|---|---:|")
    for i, stage in enumerate(STAGES):
        cells = []
        for what in (0, 1):
            terms, worst = line(design, np.array([needed[i][what] for _, needed in found]))
            formula = " + ".join(f"{c:.3g}" if not k else f"{c:.3g} {MODEL[k - 1]}" for k, c in enumerate(terms))
            cells.append(f"{formula} | {worst:.2f}")
        print(f"| {stage} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
