"""How fast `convert` reads: images beside `cat`, transcripts beside pandas; what it reads of stacks; what memory it and `assign` take.

The files of every turn are taken out of the page cache first, so that `cat` shows what the disk gives; turns alternate and the best of each is kept.
Memory: the peak of a process of its own, at one and at four times the area. Prints one table for each part.

    python benchmarks/convert.py                                         # 3 stains of 8192 x 8192 pixels, 4 million transcripts
    python benchmarks/convert.py --folder data --prepare                 # writes the regions, for later runs with the same --folder
    python benchmarks/convert.py --folder data --parts images,table --repeats 5
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
import tifffile

PIXEL_UM = 0.108
STAINS = ("DAPI", "Cellbound1", "PolyT")
PLANES = 7
CELL_UM = 10.0
PARTS = {"images": ("small", "raw"), "table": ("small", "table"), "stacks": ("small", "plain", "lzw"), "memory": ("quarter", "full")}
"""Part of the benchmark → regions that it needs."""
CONVERT = """
import resource, sys
from pathlib import Path
from istseg.stages import convert
convert.run(raw=Path(sys.argv[1]), sample="s", platform="merscope", out=Path(sys.argv[2]), z_planes=sys.argv[3])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss // 1024, used.ru_inblock // 2048)
"""
ASSIGN = """
import json, resource, sys
from pathlib import Path
from istseg.artifacts import spatial
from istseg.stages import assign
out = Path(sys.argv[1])
points = spatial.transcript_parts(out / "s.zarr")[0].parent
assign.run(out / "sample.json", points, out / "vendor_cells.parquet", "vendor", out / "found", planes=out / "vendor_planes.parquet")
assert json.loads((out / "found" / "assign.json").read_text())["assignment"] == "planes"
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def noise(rng: np.random.Generator, side: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of a picture with the noise of a microscope on smooth blobs, so that nothing compresses better than images do."""
    yy, xx = np.mgrid[:1024, :1024]
    mean = np.maximum(400 + 300 * np.sin(yy / 31) * np.sin(xx / 37), 1)
    for y in range(0, side, 1024):
        for x in range(0, side, 1024):
            yield slice(y, y + 1024), slice(x, x + 1024), rng.poisson(mean)[: side - y, : side - x].astype(np.uint16)


def regions(side: int, rows: int) -> dict[str, dict]:
    """Arguments of `region` by its name."""
    stack = {"side": side // 4, "rows": 1000, "planes": PLANES}
    return {
        "small": {"side": 512, "rows": 1000},
        "raw": {"side": side, "rows": 1000},
        "table": {"side": 512, "rows": rows},
        "plain": stack,
        "lzw": {**stack, "tile": (256, 256), "compression": "lzw", "predictor": True},
        "quarter": {"side": side // 4, "rows": rows // 8, "cells": True},
        "full": {"side": side // 2, "rows": rows // 2, "cells": True},
    }


def region(root: Path, side: int, rows: int, planes: int = 1, cells: bool = False, **tiff: object) -> None:
    """Write a region unless it is there; `tiff`: layout of its images."""
    if root.exists():
        return
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    image = np.empty((side, side), np.uint16)
    for stain in STAINS:
        for plane in range(planes):
            for y, x, block in noise(rng, side):
                image[y, x] = block
            tifffile.imwrite(root / "images" / f"mosaic_{stain}_z{plane}.tif", image, **tiff)
    np.savetxt(root / "images" / "micron_to_mosaic_pixel_transform.csv", np.diag([1 / PIXEL_UM, 1 / PIXEL_UM, 1]))
    table(root / "detected_transcripts.csv", side, rows, rng, 3 if cells else 1)
    if cells:
        outlines(root / "cell_boundaries.parquet", side)


def table(path: Path, side: int, rows: int, rng: np.random.Generator, planes: int) -> None:
    """Write transcripts as the instrument does."""
    genes = np.array([f"Gene{i}" for i in range(500)])
    for start in range(0, rows, 500_000):
        n = min(500_000, rows - start)
        xy = rng.uniform(0, side * PIXEL_UM, (n, 2))
        frame = {"": np.arange(start, start + n), "barcode_id": rng.integers(0, 500, n), "global_x": xy[:, 0], "global_y": xy[:, 1]}
        frame |= {
            "global_z": rng.integers(0, planes, n).astype(float),
            "x": xy[:, 0] % 200,
            "y": xy[:, 1] % 200,
            "fov": 0,
            "gene": genes[rng.integers(0, 500, n)],
            "transcript_id": "ENSMUST00000000001",
            "cell_id": -1,
        }
        pd.DataFrame(frame).to_csv(path, mode="a", header=not start, index=False)


def outlines(path: Path, side: int) -> None:
    """Write round cells side by side, smaller from plane to plane."""
    steps = np.arange(CELL_UM / 2, side * PIXEL_UM, CELL_UM)
    x, y = (v.ravel() for v in np.meshgrid(steps, steps))
    planes = [shapely.buffer(shapely.points(x, y), CELL_UM * (0.45 - 0.1 * z)) for z in range(3)]
    frame = {"EntityID": np.tile(np.arange(1, len(x) + 1), 3), "ZIndex": np.repeat(np.arange(3), len(x)), "Geometry": shapely.to_wkb(np.concatenate(planes))}
    pd.DataFrame(frame).sort_values(["EntityID", "ZIndex"]).to_parquet(path, index=False)


def images(root: Path, plane: str = "*") -> list[Path]:
    """Mosaics of a region."""
    return sorted((root / "images").glob(f"*_z{plane}.tif"))


def megabytes(paths: list[Path]) -> float:
    return sum(p.stat().st_size for p in paths) / 1e6


def forget(paths: list[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def best(turns: dict[str, Callable[[], object]], files: list[Path], repeats: int) -> dict[str, tuple[float, float]]:
    """Least seconds of the clock and of the processor (children included) of each turn, turns alternating."""
    found = {name: (float("inf"), float("inf")) for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            forget(files)
            wall, cpu = time.monotonic(), sum(os.times()[:4])
            turn()
            spent = time.monotonic() - wall, sum(os.times()[:4]) - cpu
            found[name] = min(found[name][0], spent[0]), min(found[name][1], spent[1])
    return found


def cat(paths: list[Path]) -> None:
    subprocess.run(["cat", *paths], stdout=subprocess.DEVNULL, check=True)


def read_stream(path: Path) -> None:
    """Our reader, over the columns that convert takes."""
    import pyarrow as pa

    from istseg.raw import tables

    types = {"global_x": pa.float64(), "global_y": pa.float64(), "global_z": pa.float64(), "gene": pa.string(), "cell_id": pa.string(), "fov": pa.string()}
    for _ in tables.stream(path, types):
        pass


def convert(raw: Path, out: Path, planes: str = "0") -> tuple[int, int]:
    """A process of its own; its peak memory in MiB and what it read from the disk in MiB."""
    done = subprocess.run([sys.executable, "-c", CONVERT, raw, out, planes], check=True, capture_output=True, text=True)
    peak, read = done.stdout.split()[-2:]
    return int(peak), int(read)


def images_part(folder: Path, repeats: int) -> None:
    """`convert` beside `cat`; its start and a table of few rows are taken off."""
    raw, small, out = folder / "raw", folder / "small", folder / "out"
    files = images(raw)
    turns = {"cat": lambda: cat(files), "start": lambda: convert(small, out), "convert": lambda: convert(raw, out)}
    found, size = best(turns, files, repeats), megabytes(files)
    wall, cpu = (max(a - b, 1e-9) for a, b in zip(found["convert"], found["start"], strict=True))
    print(f"images of {size:.0f} MB | s | MB/s | CPU s\n---|---:|---:|---:")
    print(f"cat | {found['cat'][0]:.2f} | {size / found['cat'][0]:.0f} | {found['cat'][1]:.2f}")
    print(f"convert, without its start of {found['start'][0]:.1f} s | {wall:.2f} | {size / wall:.0f} | {cpu:.2f}")
    print(f"share of cat | {found['cat'][0] / wall:.2f} | | {size / cpu:.0f} MB per CPU s")


def table_part(folder: Path, rows: int, repeats: int) -> None:
    """The table of transcripts beside pandas, and the whole way of the table into the store."""
    few, many, out = folder / "small", folder / "table", folder / "out"
    csv = many / "detected_transcripts.csv"
    turns = {"pandas": lambda: pd.read_csv(csv), "istseg": lambda: read_stream(csv)}
    turns |= {"start": lambda: convert(few, out), "convert": lambda: convert(many, out)}
    found = best(turns, [csv], repeats)
    print(f"\ntable of {rows:,} rows, {megabytes([csv]):.0f} MB | s | CPU s\n---|---:|---:")
    for name in ("pandas", "istseg"):
        print(f"{name} | {found[name][0]:.2f} | {found[name][1]:.2f}")
    print(f"times faster | {found['pandas'][0] / found['istseg'][0]:.1f} | {found['pandas'][1] / found['istseg'][1]:.1f}")
    wall, cpu = ((a - b) / rows * 1e6 for a, b in zip(found["convert"], found["start"], strict=True))
    print(f"convert, for a million rows | {wall:.2f} | {cpu:.2f}")


def stacks_part(folder: Path, repeats: int) -> None:
    """Stacks of seven planes, as they are stored without and with compression: what is read, and how fast."""
    print("\nseven planes | planes used, MB | read, MB | s | MB/s | MB/s of cat | CPU s\n---|---:|---:|---:|---:|---:|---:")
    out = folder / "out"
    start = best({"start": lambda: convert(folder / "small", out)}, [], repeats)["start"]
    for name, raw in (("rows as they are", folder / "plain"), ("tiles, LZW", folder / "lzw")):
        for planes in ("3", "all"):
            used, read = images(raw, planes.replace("all", "*")), []
            turns = {"cat": lambda used=used: cat(used), "convert": lambda planes=planes, read=read, raw=raw: read.append(convert(raw, out, planes)[1])}
            found = best(turns, images(raw), repeats)
            wall, cpu = (max(a - b, 1e-9) for a, b in zip(found["convert"], start, strict=True))
            size = megabytes(used)
            what = f"{name}, {'plane 3' if planes == '3' else 'maximum of all'}"
            print(f"{what} | {size:.0f} | {min(read) * 1.048576:.0f} | {wall:.2f} | {size / wall:.0f} | {size / found['cat'][0]:.0f} | {cpu:.2f}")


def memory_part(folder: Path) -> None:
    """Peaks at one and at four times the area, with cells that differ by plane."""
    print("\npeak memory, MiB | a quarter of the area | in full\n---|---:|---:")
    peaks: dict[str, list[str]] = {"convert": [], "assign by planes": []}
    for name in ("quarter", "full"):
        out = folder / f"out_{name}"
        peaks["convert"].append(str(convert(folder / name, out)[0]))
        peaks["assign by planes"].append(subprocess.run([sys.executable, "-c", ASSIGN, out], check=True, capture_output=True, text=True).stdout.split()[-1])
    for stage, found in peaks.items():
        print(f"{stage} | {' | '.join(found)}")


@contextmanager
def kept(folder: Path | None) -> Iterator[Path]:
    """The folder that was given, or one that is removed."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="What to measure.")
    parser.add_argument("--folder", type=Path, help="Keeps the regions for other runs.")
    parser.add_argument("--prepare", action="store_true", help="Write the regions only.")
    args = parser.parse_args()
    parts = args.parts.split(",")
    with kept(args.folder) as folder:
        for name in sorted({name for part in parts for name in PARTS[part]}):
            region(folder / name, **regions(args.side, args.rows)[name])
        if args.prepare:
            return
        if "images" in parts:
            images_part(folder, args.repeats)
        if "table" in parts:
            table_part(folder, args.rows, args.repeats)
        if "stacks" in parts:
            stacks_part(folder, args.repeats)
        if "memory" in parts:
            memory_part(folder)
        print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
