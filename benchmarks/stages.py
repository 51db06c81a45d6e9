"""Time and peak memory of every stage on a simulated MERSCOPE region: prints one table.

Each stage runs as its own process, as Nextflow runs it; the peak is the largest resident memory of that process (Linux ru_maxrss of the child).
`--sizes 8192 16384 --stages convert tile assign` shows that memory does not grow with the slide.

    python benchmarks/stages.py --sizes 8192
    python benchmarks/stages.py --sizes 8192 16384 --only convert tile assign
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIXEL_UM = 0.108
"""MERSCOPE's nominal pixel: turns pixels into the µm that `istseg simulate` takes."""

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "models" / "istseg-sim-v2.safetensors"


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its wall time in s, its peak resident memory in MiB and its CPU time in s. Ends the benchmark when it fails."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\n{error}")
    return time.monotonic() - start, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def commands(folder: Path, region: Path, tiles: list[Path], tile_um: float) -> dict[str, list[list[str]]]:
    """Stage → the processes that it needs, one after the other. `tiles` is empty until the stage tile has run."""
    istseg = str(Path(sys.executable).with_name("istseg"))
    here = lambda name: str(folder / name)  # noqa: E731
    sample = here("convert/s.zarr")
    facts = ["--sample-json", here("convert/sample.json")]
    every_tile = [part for tile in tiles for part in ("--tile", str(tile))]
    # Two segmentations, as vendor and istseg would be.
    of_both = lambda option: [  # noqa: E731
        part for name in ("istseg", "other")
        for part in (f"--{option}", f"{name}=" + here({"cells": "merge/istseg.cells.parquet", "transcripts": "assign/transcripts.parquet"}[option]))
    ]  # fmt: skip
    of_tiles = lambda stage, *rest: [istseg, stage, *every_tile, "--out", here(stage), *rest]  # noqa: E731
    return {
        "convert": [[istseg, "convert", "--raw", str(region), "--sample", "s", "--platform", "merscope", "--z-planes", "0", "--out", here("convert")]],
        "tile": [[istseg, "tile", *facts, "--zarr", sample, "--tile-um", str(tile_um), "--out", str(folder)]],
        "teach": [of_tiles("teach")],
        "calibrate": [[istseg, "calibrate", "--labels", here("teach"), "--out", here("calibrate")]],
        "curate": [of_tiles("curate", "--labels", here("teach"), "--thresholds", here("calibrate/thresholds.json"))],
        "segment": [of_tiles("segment", "--model", str(MODEL))],
        "merge": [
            [istseg, "merge", "--tiles-json", here("tiles/tiles.json"), "--cells", here("segment"), "--teacher", here("teach"),
             "--thresholds", here("calibrate/thresholds.json"), "--out", here("merge")]
        ],
        "assign": [
            [istseg, "assign", *facts, "--transcripts", sample + "/points/transcripts/points.parquet", "--cells", here("merge/istseg.cells.parquet"),
             "--segmentation", "istseg", "--labels", here("merge/labels.zarr"), "--out", here("assign")]
        ],
        "assess": [
            [istseg, "assess", *facts, "--tiles", here("tiles"), "--counts", here("assign"), "--cells", here("merge/istseg.cells.parquet"),
             "--nuclei", here("merge/nuclei.parquet"), "--thresholds", here("calibrate/thresholds.json"), "--segmentation", "istseg", "--out", here("assess")]
        ],
        "coexpression": [[istseg, "coexpression", *facts, "--zarr", sample, "--layer-um", "0", "--out", here("coexpression")]],
        "compare": [[istseg, "compare", *facts, *of_both("cells"), *of_both("transcripts"), "--out", here("compare")]],
        "regions": [
            [istseg, "regions", "--tiles", here("tiles"), "--nuclei", here("merge/nuclei.parquet"), *of_both("cells"), "--counts", here("assess/counts.h5ad"),
             "--out", here("regions")]
        ],
        "export": [
            [istseg, "export", *facts, "--zarr", sample, "--merged", here("merge"), "--assessed", here("assess"),
             "--transcripts", here("assign/transcripts.parquet"), "--out", here("export"), "--formats", "spatialdata,geojson,vizgen"]
        ],
    }  # fmt: skip


def simulate(folder: Path, size: int, stains: str, seed: int, *more: str) -> list[str]:
    """The command that writes a region of `size` × `size` px with one plane below `folder/sim`."""
    um = str(size * PIXEL_UM)
    istseg = str(Path(sys.executable).with_name("istseg"))
    place = ["--out", str(folder / "sim"), "--width-um", um, "--height-um", um]
    return [istseg, "simulate", *place, "--planes", "1", "--stains", stains, "--seed", str(seed), *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192], help="Sides of the region in full-resolution pixels.")
    parser.add_argument("--only", nargs="+", help="Show these stages only (all stages that they need run, too).")
    parser.add_argument("--stains", default="Cellbound1;PolyT")
    parser.add_argument("--tile-um", type=float, default=750.0)
    parser.add_argument("--truth-as-cells", action="store_true", help="`assign` takes the true cells (by polygons): no segmentation needed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    options = parser.parse_args()

    rows: dict[str, dict[int, tuple[float, float]]] = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            folder = Path(scratch)
            rows.setdefault("simulate", {})[size] = measure(simulate(folder, size, options.stains, options.seed))
            raw = folder / "sim" / "raw"
            for stage in commands(folder, raw, [], options.tile_um):
                if options.truth_as_cells and stage not in ("convert", "tile", "assign"):
                    continue
                tiles = sorted(p.parent for p in (folder / "tiles").glob("*/tile.json"))
                parts = commands(folder, raw, tiles, options.tile_um)[stage]
                if options.truth_as_cells and stage == "assign":
                    cut = parts[0].index("--labels")
                    parts[0][cut : cut + 2] = []
                    parts[0][parts[0].index("--cells") + 1] = str(folder / "sim" / "truth" / "cells.parquet")
                results = [measure(part) for part in parts]
                rows.setdefault(stage, {})[size] = (sum(r[0] for r in results), max(r[1] for r in results))
                print(f"{size}: {stage} {rows[stage][size][0]:.1f} s, {rows[stage][size][1]:.0f} MiB", file=sys.stderr, flush=True)

    shown = [s for s in rows if not options.only or s in options.only]
    print("| stage | " + " | ".join(f"{size}² px: s | MiB" for size in options.sizes) + (" | memory ratio |" if len(options.sizes) == 2 else " |"))
    print("|---|" + "---:|---:|" * len(options.sizes) + ("---:|" if len(options.sizes) == 2 else ""))
    for stage in shown:
        cells = " | ".join(f"{rows[stage][size][0]:.1f} | {rows[stage][size][1]:.0f}" for size in options.sizes)
        ratio = f" | {rows[stage][options.sizes[1]][1] / rows[stage][options.sizes[0]][1]:.2f} |" if len(options.sizes) == 2 else " |"
        print(f"| {stage} | {cells}{ratio}")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("istseg", "torch", "numpy", "pyarrow", "zarr"))
    print(f"\n{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores; {versions}")


if __name__ == "__main__":
    main()
