"""How fast `convert` reads: images beside `cat`, transcripts beside pandas. Prints two tables.

The files of every turn are taken out of the page cache first, so that `cat` shows what the disk gives; turns alternate and the best of each is kept.
Memory: the peak of a process of its own, at one and at four times the area.

    python benchmarks/convert.py                  # 3 stains of 8192 x 8192 pixels, 4 million transcripts
    python benchmarks/convert.py --side 4096 --rows 1000000 --repeats 2
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

PIXEL_UM = 0.108
STAINS = ("DAPI", "Cellbound1", "PolyT")
CONVERT = """
import resource, sys
from pathlib import Path
from istseg.stages import convert
convert.run(raw=Path(sys.argv[1]), sample="s", platform="merscope", out=Path(sys.argv[2]), z_planes="0")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def region(root: Path, side: int, rows: int) -> list[Path]:
    """Write a region with noise of a microscope on smooth blobs (so that nothing compresses better than images do); give its images."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    yy, xx = np.mgrid[:1024, :1024]
    tile = 400 + 300 * np.sin(yy / 31) * np.sin(xx / 37)
    images = []
    for stain in STAINS:
        path = root / "images" / f"mosaic_{stain}_z0.tif"
        stored = tifffile.memmap(path, shape=(side, side), dtype=np.uint16)
        for y in range(0, side, 1024):
            for x in range(0, side, 1024):
                stored[y : y + 1024, x : x + 1024] = rng.poisson(np.maximum(tile, 1))[: side - y, : side - x]
        stored.flush()
        images.append(path)
    np.savetxt(root / "images" / "micron_to_mosaic_pixel_transform.csv", np.diag([1 / PIXEL_UM, 1 / PIXEL_UM, 1]))
    table(root / "detected_transcripts.csv", side, rows, rng)
    return images


def table(path: Path, side: int, rows: int, rng: np.random.Generator) -> None:
    """Write transcripts as the instrument does."""
    genes = np.array([f"Gene{i}" for i in range(500)])
    for start in range(0, rows, 500_000):
        n = min(500_000, rows - start)
        xy = rng.uniform(0, side * PIXEL_UM, (n, 2))
        frame = {"": np.arange(start, start + n), "barcode_id": rng.integers(0, 500, n), "global_x": xy[:, 0], "global_y": xy[:, 1], "global_z": 0.0}
        frame |= {
            "x": xy[:, 0] % 200,
            "y": xy[:, 1] % 200,
            "fov": 0,
            "gene": genes[rng.integers(0, 500, n)],
            "transcript_id": "ENSMUST00000000001",
            "cell_id": -1,
        }
        pd.DataFrame(frame).to_csv(path, mode="a", header=not start, index=False)


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


def read_stream(path: Path) -> None:
    """Our reader, over the columns that convert takes."""
    import pyarrow as pa

    from istseg.raw import tables

    types = {"global_x": pa.float64(), "global_y": pa.float64(), "global_z": pa.float64(), "gene": pa.string(), "cell_id": pa.string(), "fov": pa.string()}
    for _ in tables.stream(path, types):
        pass


def convert(raw: Path, out: Path) -> int:
    """A process of its own; its peak memory in MiB."""
    done = subprocess.run([sys.executable, "-c", CONVERT, raw, out], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, few = Path(folder) / "raw", Path(folder) / "few"
        images = region(raw, args.side, args.rows)
        region(few, args.side // 2, 1000)
        # The image alone: start-up and a table of few rows come to about a second and are taken off.
        csv = raw / "detected_transcripts.csv"
        kept = raw / "all.rows"
        csv.rename(kept)
        table(csv, args.side, 1000, np.random.default_rng(1))
        start = best({"start": lambda: convert_small(Path(folder))}, [], 1)["start"]
        turns = {"cat": lambda: subprocess.run(["cat", *images], stdout=subprocess.DEVNULL, check=True), "convert": lambda: convert(raw, Path(folder) / "out")}
        found = best(turns, images, args.repeats)
        size = sum(p.stat().st_size for p in images) / 1e6
        wall, cpu = (max(a - b, 1e-9) for a, b in zip(found["convert"], start, strict=True))
        print(f"images of {size:.0f} MB | s | MB/s | CPU s\n---|---:|---:|---:")
        print(f"cat | {found['cat'][0]:.2f} | {size / found['cat'][0]:.0f} | {found['cat'][1]:.2f}")
        print(f"convert, without its start of {start[0]:.1f} s | {wall:.2f} | {size / wall:.0f} | {cpu:.2f}")
        kept.rename(csv)
        rows = best({"pandas": lambda: pd.read_csv(csv), "istseg": lambda: read_stream(csv)}, [csv], args.repeats)
        print(f"\ntable of {args.rows:,} rows, {csv.stat().st_size / 1e6:.0f} MB | s | CPU s\n---|---:|---:")
        for name, (wall, cpu) in rows.items():
            print(f"{name} | {wall:.2f} | {cpu:.2f}")
        print(f"times faster | {rows['pandas'][0] / rows['istseg'][0]:.1f} | {rows['pandas'][1] / rows['istseg'][1]:.1f}")
        peaks = [convert(path, Path(folder) / "out") for path in (few, raw)]
        print(f"\npeak memory: {peaks[0]} MiB at a quarter of the area with 1,000 transcripts, {peaks[1]} MiB in full")
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")


def convert_small(folder: Path) -> int:
    """What convert takes before it reads anything of size."""
    small = folder / "small"
    if not small.exists():
        region(small, 512, 1000)
    return convert(small, folder / "out")


if __name__ == "__main__":
    main()
